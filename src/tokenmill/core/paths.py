"""Where tokenmill keeps things, and how a file is written: a crash leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import tempfile
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; what we write is as shareable as any file the person creates
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
