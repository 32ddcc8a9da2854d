"""What a person names on the command line, read or refused with a message for the person."""

from __future__ import annotations

from pathlib import Path

from tokenmill.core.errors import UsageError


def text_of(option: str, path: Path) -> str:
    """What the UTF-8 file says that an option names. UsageError where it is not there, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: byte {error.start} is no UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None


def calibration_size(samples: int | None, seq_len: int | None, data: object) -> tuple[int, int]:
    """Documents, and tokens of one at most: as given, else 128 and 512. UsageError where there is no ``data``."""
    if not data and (samples is not None or seq_len is not None):
        raise UsageError("--samples and --seq-len are of calibration data: give --data FILE, or leave them out")
    return samples or 128, seq_len or 512
