"""Files that are made from models to start faster: each says what it was made from, and goes when that is gone.

A derived file begins with 8 bytes, the length of a JSON header whose ``sources`` are triples of path, size and time.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tokenmill.core.paths import home

_ABANDONED_S = 3600.0  # a half-written file that old has no writer any more


def folder() -> Path:
    """Where packed models are kept."""
    return home() / "cache" / "packed"


def state(path: Path) -> list[Any]:
    """What shows that a source is still the same: path, size and time of change."""
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def remove_useless() -> None:
    """Remove what was made from files that are gone or have changed, and what writers left that were killed."""
    for path in folder().glob("*.packed"):
        if not _is_current(path):
            path.unlink(missing_ok=True)
    for part in folder().glob(".*.part"):
        if time.time() - part.stat().st_mtime > _ABANDONED_S:
            part.unlink(missing_ok=True)


def _is_current(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            sources = json.loads(file.read(min(size, path.stat().st_size)))["sources"]
        return all(state(Path(source[0])) == source for source in sources)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False
