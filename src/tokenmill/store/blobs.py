"""Files kept by the sha256 of their content, under ``<root>/blobs/sha256-<hex>`` as in Ollama's store.

A blob appears under its name only after its bytes were hashed and synced, so what has the name is whole; a download
in progress is ``partial-<hash of its key>`` beside it and survives a crash. Locks are the kernel's, taken on files in
``<root>/locks``: they vanish with the process that held them.

Refuses: digests outside the grammar, blobs that lead out of the blob folder (a planted symbolic link), content that
does not have the promised digest.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenmill.core.errors import DigestError, NotFoundError, StoreError
from tokenmill.core.paths import atomic_write
from tokenmill.store.names import check_digest
from tokenmill.store.progress import Progress, silent

_CHUNK = 1 << 20
ORPHAN_AGE_S = 24 * 3600
"""What no manifest names is left alone for a day: a pull in another process may be about to name it."""


class BlobStore:
    """The blobs below one store's root. Reading makes no folders, so a foreign store can be read in place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "blobs"

    def path(self, digest: str) -> Path:
        """Where the blob is or would be. Raises StoreError for a bad digest or a link that leads out of the store."""
        path = self.folder / check_digest(digest).replace(":", "-")
        if path.is_symlink() and path.resolve().parent != self.folder.resolve():
            raise StoreError(f"{path} is a symbolic link that leads out of the store; remove it and pull again")
        return path

    def has(self, digest: str, size: int | None = None) -> bool:
        """Whether the blob is here, with `size` bytes if given. Does not hash; see `verify`."""
        path = self.path(digest)
        return path.is_file() and (size is None or path.stat().st_size == size)

    def verify(self, digest: str, progress: Progress = silent) -> bool:
        """Whether the blob is here and its bytes have this digest (reads all of it)."""
        return self.has(digest) and hash_file(self.path(digest), progress)[0] == digest

    def read(self, digest: str, limit: int) -> bytes:
        """The bytes of a small blob, verified. Raises NotFoundError, or StoreError beyond `limit` bytes."""
        path = self.path(digest)
        if not path.is_file():
            raise NotFoundError(f"{path} is missing from the store; pull or create the model again")
        if path.stat().st_size > limit:
            raise StoreError(f"{path} has {path.stat().st_size} bytes where at most {limit} are expected")
        data = path.read_bytes()
        if _digest(data) != digest:
            raise DigestError(f"{path} does not have the content its name promises; pull or create the model again")
        return data

    def add_bytes(self, data: bytes) -> str:
        """Keep `data`; gives its digest."""
        digest = _digest(data)
        if not self.has(digest, len(data)):
            with atomic_write(self.path(digest)) as file:
                file.write(data)
        return digest

    def partial_path(self, key: str) -> Path:
        """A file to download into: the same for the same `key` (a digest or a URL), so that it can be resumed.

        Hold ``lock(key)`` while writing: `prune` leaves the partial of a held lock alone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"partial-{_key(key)}"

    def adopt(self, partial: Path, digest: str, progress: Progress = silent) -> Path:
        """Turn a finished download into the blob `digest`: hash, sync, rename.

        Raises DigestError, and removes the partial, when its content is not what was promised.
        """
        check_digest(digest)
        found, size = hash_file(partial, progress)
        if found != digest:
            partial.unlink()
            raise DigestError(
                f"the {size} bytes that arrived have the digest {found}, but {digest} was promised; they were "
                "discarded, try again or distrust the source"
            )
        return self._publish(partial, digest)

    def remove(self, digest: str) -> None:
        """Remove a blob that turned out to be broken."""
        self.path(digest).unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock `key` across processes and threads; `on_wait` is called once if someone else has it."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{_key(key)}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if on_wait:
                on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def prune(self, candidates: Collection[str], referenced: Collection[str]) -> int:
        """Remove those `candidates` that are not `referenced`, and anything unreferenced older than a day.

        Gives the bytes freed. Call while holding the store's lock. Partials whose lock is held stay.
        """
        freed = 0
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            digest = path.name.replace("sha256-", "sha256:", 1)
            state = path.lstat()
            old = time.time() - state.st_mtime > ORPHAN_AGE_S
            if path.name.startswith("partial-"):
                unwanted = old and not self._is_locked(path.name.removeprefix("partial-"))
            else:
                unwanted = digest not in referenced and (digest in candidates or old)
            if unwanted:
                path.unlink(missing_ok=True)
                freed += state.st_size
        return freed

    def _is_locked(self, hashed_key: str) -> bool:
        path = self.root / "locks" / f"{hashed_key}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path).acquire(blocking=False):
                return False
        except Timeout:
            return True

    def _publish(self, partial: Path, digest: str) -> Path:
        path = self.path(digest)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        return path


def hash_file(path: Path, progress: Progress = silent) -> tuple[str, int]:
    """(``sha256:...``, number of bytes) of a file."""
    state, size, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
            size += len(chunk)
            progress("verifying sha256 digest", None, total, size)
    return f"sha256:{state.hexdigest()}", size


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]
