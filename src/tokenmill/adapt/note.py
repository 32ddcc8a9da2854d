"""What an adapter's base was like while it was trained, beside PEFT's two files: PEFT has no place for it.

An adapter trained over quantised weights belongs to these weights, and one with new tokens to a larger vocabulary:
``tokenmill.json`` says so, and whoever loads the folder makes the base that way.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError

FILE = "tokenmill.json"
TRAINED_OVER = ("nf4", "nf4-double")
"""Number formats that adapters are trained over; layers packed for serving have others, and are left alone."""


@dataclass(frozen=True)
class BaseNote:
    """``quantization``: ``nf4`` or ``nf4-double``, None for plain weights. ``vocab_size``: the base's, grown or not."""

    quantization: str | None = None
    vocab_size: int | None = None


def read_note(folder: Path) -> BaseNote:
    """The note of an adapter folder; an empty one where there is none (PEFT wrote it) or it is a file."""
    path = folder / FILE
    if not folder.is_dir() or not path.exists():
        return BaseNote()
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        note = BaseNote(**raw)
    except (OSError, ValueError, TypeError) as error:
        raise FormatError(path, "", f"is no note about an adapter's base: {error}") from error
    if note.quantization not in (None, *TRAINED_OVER):
        raise FormatError(path, "quantization", f"{note.quantization!r} is not known; nf4 and nf4-double are")
    if note.vocab_size is not None and (type(note.vocab_size) is not int or not 1 <= note.vocab_size < 1 << 31):
        raise FormatError(path, "vocab_size", f"{note.vocab_size!r} is no size of a vocabulary")
    return note


def write_note(folder: Path, note: BaseNote) -> None:
    """Write ``tokenmill.json``."""
    (folder / FILE).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")
