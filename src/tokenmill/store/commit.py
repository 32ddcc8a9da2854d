"""Changes to a store: a manifest written last, a model removed, and what nobody names any more cleared away.

Blobs come first and manifests last, so a crash in between leaves unnamed blobs (used again by the next try, or cleared
a day later) and never a model with holes. Clearing and writing exclude each other by the lock ``store``: a blob that
was cleared between its arrival and the manifest is noticed under that lock, and the work is done again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tokenmill.core.errors import NotFoundError, TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.core.paths import atomic_write
from tokenmill.store.blobs import ORPHAN_AGE_S
from tokenmill.store.library import Library
from tokenmill.store.manifest import manifest_digest, parse_manifest
from tokenmill.store.names import ModelName

_LOCK = "store"
_TRIES = 3
_log = get_logger(__name__)


def store_manifest(library: Library, name: ModelName, build: Callable[[], bytes]) -> None:
    """Write what `build` gives under `name`; call it again if a blob vanished before the manifest could name it."""
    for attempt in range(_TRIES):
        data = build()
        try:
            return _commit(library, name, data)
        except NotFoundError:
            if attempt == _TRIES - 1:
                raise


def remove(library: Library, name: ModelName) -> None:
    """Remove a stored model and the blobs and view that no other model uses."""
    with library.blobs.lock(_LOCK):
        path = library.manifest_path(name)
        digests = _digests(library, name)
        path.unlink(missing_ok=True)
        for folder in list(path.parents)[:3]:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        _clear(library, digests)


def copy_manifest(library: Library, source: ModelName, target: ModelName) -> None:
    """Give a stored model a second name."""
    with library.blobs.lock(_LOCK):
        _, data = library.read(source)
        replaced = _digests(library, target)
        _write(library.manifest_path(target), data)
        _clear(library, replaced)


def _commit(library: Library, name: ModelName, data: bytes) -> None:
    with library.blobs.lock(_LOCK):
        for layer in parse_manifest(data, str(name)).all_layers:
            library.layer_path(layer)
        replaced = _digests(library, name)
        _write(library.manifest_path(name), data)
        _clear(library, replaced)


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def _digests(library: Library, name: ModelName) -> set[str]:
    try:
        return {layer.digest for layer in library.read(name)[0].all_layers}
    except TokenmillError:  # nothing there, or broken: then nothing is known to have become free
        return set()


def _clear(library: Library, candidates: Collection[str]) -> None:
    """Remove what no manifest names. With one unreadable manifest nothing is removed: it may name anything."""
    referenced: set[str] = set()
    views: set[str] = set()
    for name in library.names():
        try:
            manifest, data = library.read(name)
        except TokenmillError as error:
            _log.warning("nothing is cleared away, because a manifest cannot be read: %s", error)
            return
        referenced |= {layer.digest for layer in manifest.all_layers}
        views.add(manifest_digest(data))
    library.blobs.prune(candidates, referenced)
    folder = library.root / "views"
    for view in folder.iterdir() if folder.is_dir() else []:
        fresh = time.time() - view.lstat().st_mtime < ORPHAN_AGE_S
        being_made = view.name.startswith(".") and fresh
        if view.name not in views and not being_made:
            shutil.rmtree(view, ignore_errors=True)
