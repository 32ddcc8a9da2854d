"""Where tokenmill keeps things, and how a file is written: a crash leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def home() -> Path:
    """The folder that holds the store, caches and settings: ``TOKENMILL_HOME``, else ``~/.tokenmill``."""
    given = os.environ.get("TOKENMILL_HOME")
    return Path(given).expanduser() if given else Path.home() / ".tokenmill"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path`; on success sync it and rename it into place, on any error remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    # not mkstemp: it makes the file private, and what we write is as shareable as any file the person creates
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
