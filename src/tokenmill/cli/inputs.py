"""Files that a person names on the command line, read with a message for the person."""

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
