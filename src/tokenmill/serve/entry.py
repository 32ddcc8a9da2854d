"""What the manager keeps of a model in memory: a name with its worker, and which weights it stands on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tokenmill.models.describe import Description
from tokenmill.serve.worker import Worker
from tokenmill.store import ModelFiles
from tokenmill.store.names import ModelName, parse_reference

Key = tuple[str, ...]
"""A name and the digest of what it stands for."""
Weights = tuple[str, ...]
"""The files behind a name that make its weights: equal for all names that can share them."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, as ``ps`` shows it."""

    name: str
    digest: str
    size: int
    context_length: int
    expires_at: datetime | None
    """When it goes if nobody asks for it; None while it is in use, or kept for ever."""
    worker: Worker
    description: Description
    """What its files said when they were read."""


class Entry:
    """A name in memory, with the requests that use it and the time at which it goes."""

    def __init__(self, key: Key, weights: Weights, files: ModelFiles, worker: Worker, description: Description) -> None:
        self.key, self.weights, self.files, self.worker = key, weights, files, worker
        self.description = description
        self.keep_alive = 0.0
        self.leases = 0
        self.last_used = time.monotonic()
        self.expires_at: datetime | None = None
        self.timer: asyncio.TimerHandle | None = None

    def goes_by(self, name: ModelName) -> bool:
        """Whether this is what a client means by a name, up to case as in the store."""
        return bool(self.files.digest) and str(parse_reference(self.files.name).name).casefold() == str(name).casefold()


def key_of(files: ModelFiles) -> Key:
    """What an entry is found by."""
    return files.name, files.digest or str(files.path)


def weights_of(files: ModelFiles) -> Weights:
    """A folder of links stands for what they lead to, as every Modelfile of several files has a folder of its own."""
    return tuple(f"{place} {path}" for place, top in enumerate((files.path, *files.adapters)) for path in _real(top))


def _real(top: Path) -> list[str]:
    files = [top] if not top.is_dir() else sorted(path for path in top.rglob("*") if path.is_file())
    return [f"{path.relative_to(top)} {path.resolve()}" for path in files]


def served(files: ModelFiles) -> ModelFiles:
    """A path is served under the file's or folder's own name: where it lies is this machine's matter."""
    path = files.path
    return files if files.digest else replace(files, name=path.name if path.is_dir() else path.stem)
