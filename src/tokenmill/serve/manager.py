"""The models of one server: loaded when they are first asked for, kept while they are used, unloaded when memory is
wanted or nobody has asked for ``keep_alive`` seconds.

One load at a time; whoever asks for a model that is being loaded waits for the same load, and names of the same files
share one worker. Room is made by unloading the model that was used least recently and is not busy; if all are busy,
the load waits for one. A model is busy while a request that opened it runs (:meth:`ModelManager.scope`), even between
its steps. A worker whose engine has failed is replaced when its model is next asked for.

Refused: names that are not on this machine (a server does not download because somebody asks for an answer), paths
that clients send, and models that alone are over the memory limit.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from tokenmill.core.errors import FormatError, NotFoundError, StoreError, UsageError
from tokenmill.core.log import get_logger
from tokenmill.engine.scheduler import QueueFullError
from tokenmill.llm import LLM
from tokenmill.serve.errors import BrokenModelError
from tokenmill.serve.settings import ServerSettings
from tokenmill.serve.worker import Observer, Worker
from tokenmill.store import ModelFiles, Store
from tokenmill.store.names import parse_reference

log = get_logger(__name__)
POLL_S = 0.05
HANGS_S = 600.0  # a pass over a long prompt on a slow machine takes minutes; none takes this long
Key = tuple[str, ...]


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


class _Entry:
    def __init__(self, key: Key, files: ModelFiles, worker: Worker) -> None:
        self.key, self.files, self.worker = key, files, worker
        self.keep_alive = 0.0
        self.leases = 0
        self.last_used = time.monotonic()
        self.expires_at: datetime | None = None
        self.timer: asyncio.TimerHandle | None = None


_LEASES: ContextVar[list[_Entry]] = ContextVar("models that the current request has opened")


class ModelManager:
    """``models``: files that whoever started the server named. They are kept while there is room, and paths among them
    are served under the name of the file or folder."""

    def __init__(
        self,
        store: Store,
        settings: ServerSettings,
        *,
        models: Sequence[ModelFiles] = (),
        observer: Callable[[str], Observer] | None = None,
    ) -> None:
        self.store, self.settings = store, settings
        self.given = {files.name: files for files in map(_served, models)}
        self._observer = observer
        self._entries: dict[Key, _Entry] = {}
        self._loads: dict[Key, asyncio.Task[_Entry]] = {}
        self._wanted: Counter[Key] = Counter()
        self._one_load = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, name: str, keep_alive: float | None = None) -> Worker:
        """The worker of a model, loaded if need be. ``keep_alive`` in seconds: negative for ever, 0 until it is idle.

        Raises NotFoundError for a model that is not on this machine, QueueFullError when too many wait for loads.
        """
        if keep_alive is not None and math.isnan(keep_alive):
            raise UsageError("keep_alive must be a number of seconds")
        files = await asyncio.to_thread(self.resolve, name)
        key = _key(files)
        if self._wanted.total() >= self.settings.max_queue:
            raise QueueFullError("too many requests wait for models to be loaded; try again later")
        self._wanted[key] += 1
        try:
            entry = self._entries.get(key)
            if entry is None or not entry.worker.alive:
                # shielded: a client that goes must not take the load from those who wait for it too
                entry = await asyncio.shield(self._load_once(key, files))
            self._lease(entry)
        finally:
            self._wanted[key] -= 1
        default = -1.0 if files.name in self.given else self.settings.keep_alive
        entry.keep_alive = default if keep_alive is None else keep_alive
        if entry.leases == 0:
            self._start_timer(entry)
        return entry.worker

    def resolve(self, name: str) -> ModelFiles:
        """The files of a name that a client sent. Reads the store: not for the event loop."""
        if (given := self.given.get(name)) is not None:
            return given
        stored = self.store.library.find(parse_reference(name).name)
        try:
            return self.store.resolve(name, paths=False)
        except (StoreError, FormatError) as error:
            if stored is None:  # it is the name that is wrong
                raise
            log.error("%s: %s", name, error)
            raise BrokenModelError(name) from None

    def models(self) -> list[ModelFiles]:
        """All that can be asked for: what the server was started with, and the store's. Not for the event loop."""
        return [*self.given.values(), *(files for files in self.store.list() if files.name not in self.given)]

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, those used last first."""
        return [
            LoadedModel(e.files.name, e.files.digest, e.files.size, e.worker.llm.ctx_size, e.expires_at, e.worker)
            for e in sorted(self._entries.values(), key=lambda e: -e.last_used)
        ]

    async def unload(self, name: str) -> None:
        """Take a model out of memory, when the requests that use it have ended. NotFoundError if it is not there."""
        entry = self._entries.get(_key(await asyncio.to_thread(self.resolve, name)))
        if entry is None:
            raise NotFoundError(f"model {name!r} is not loaded")
        entry.keep_alive = 0.0
        if not self._busy(entry):
            await self._evict(entry)

    async def close(self) -> None:
        """Unload everything; what still runs ends with an error."""
        for load in list(self._loads.values()):
            load.cancel()
        for entry in list(self._entries.values()):
            await self._evict(entry)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def faults(self) -> list[str]:
        """What is wrong with the engines, without the models' names; empty when all is well."""
        found = []
        for entry in self._entries.values():
            if not entry.worker.alive:
                found.append("an engine has stopped")
            elif entry.worker.busy and time.monotonic() - entry.worker.last_step > HANGS_S:
                found.append("an engine hangs")
        return found

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is opened inside stays in memory until the end of the block. For one request, or one task."""
        leases: list[_Entry] = []
        token = _LEASES.set(leases)
        try:
            yield
        finally:
            _LEASES.reset(token)
            for entry in leases:
                entry.leases -= 1
                entry.last_used = time.monotonic()
                if entry.leases == 0:
                    self._start_timer(entry)

    def _lease(self, entry: _Entry) -> None:
        entry.last_used = time.monotonic()
        leases = _LEASES.get(None)
        if leases is not None and entry not in leases:
            leases.append(entry)
            entry.leases += 1
            self._stop_timer(entry)

    def _busy(self, entry: _Entry) -> bool:
        return entry.worker.alive and bool(entry.leases or self._wanted[entry.key] or entry.worker.busy)

    def _load_once(self, key: Key, files: ModelFiles) -> asyncio.Task[_Entry]:
        if (load := self._loads.get(key)) is None:
            load = self._loads[key] = asyncio.create_task(self._load(key, files))
            load.add_done_callback(lambda _: self._loads.pop(key))
        return load

    async def _load(self, key: Key, files: ModelFiles) -> _Entry:
        settings = self.settings
        if settings.memory_limit is not None and files.size > settings.memory_limit:
            raise UsageError(
                f"{files.name} has {files.size} bytes and this server's memory limit is {settings.memory_limit}"
            )
        async with self._one_load:
            if (failed := self._entries.get(key)) is not None:
                await self._evict(failed)
            await self._make_room(files.size)
            llm = await asyncio.to_thread(self._llm, files)
            observer = None if self._observer is None else self._observer(files.name)
            worker = Worker(
                llm, max_queue=settings.max_queue, private_cache=settings.private_cache, observer=observer
            ).start()
            entry = _Entry(key, files, worker)
            self._entries[key] = entry
            log.info("loaded %s in %.1f s", files.name, llm.load_s)
            return entry

    def _llm(self, files: ModelFiles) -> LLM:
        # the Modelfile knows its model; the server's own wish is for models that do not say
        ctx_size = None if "num_ctx" in files.parameters else self.settings.ctx_size
        try:
            llm = LLM(files, device=self.settings.device, dtype=self.settings.dtype, ctx_size=ctx_size)
        except (FormatError, OSError) as error:
            log.error("%s: %s", files.name, error)
            raise BrokenModelError(files.name) from error
        llm.engine.keep_pace()
        return llm

    async def _make_room(self, size: int) -> None:
        limit = self.settings.memory_limit
        while len(self._entries) >= self.settings.max_models or (
            limit is not None and sum(e.files.size for e in self._entries.values()) + size > limit
        ):
            idle = [entry for entry in self._entries.values() if not self._busy(entry)]
            if idle:
                await self._evict(min(idle, key=lambda entry: entry.last_used))
            else:
                await asyncio.sleep(POLL_S)  # engines do not tell the event loop when they fall idle

    def _start_timer(self, entry: _Entry) -> None:
        self._stop_timer(entry)
        if entry.keep_alive >= 0 and math.isfinite(entry.keep_alive):
            seconds = min(entry.keep_alive, 10 * 365 * 86400.0)
            entry.expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
            entry.timer = asyncio.get_running_loop().call_later(seconds, self._expire, entry)

    def _stop_timer(self, entry: _Entry) -> None:
        entry.expires_at = None
        if entry.timer is not None:
            entry.timer.cancel()

    def _expire(self, entry: _Entry) -> None:
        if self._busy(entry):
            entry.timer = asyncio.get_running_loop().call_later(POLL_S, self._expire, entry)
            return
        task = asyncio.create_task(self._evict(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _evict(self, entry: _Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        self._stop_timer(entry)
        await asyncio.to_thread(entry.worker.close)
        log.info("unloaded %s", entry.files.name)
        await asyncio.to_thread(gc.collect)  # modules refer to each other; their weights should go now


def _key(files: ModelFiles) -> Key:
    return files.digest or str(files.path), *map(str, files.adapters)


def _served(files: ModelFiles) -> ModelFiles:
    """A path is served under the file's or folder's own name: where it lies is this machine's matter."""
    path = files.path
    return files if files.digest else replace(files, name=path.name if path.is_dir() else path.stem)
