"""The models of one server: loaded when they are first asked for, kept while they are used, unloaded when memory is
wanted or nobody has asked for ``keep_alive`` seconds.

One load at a time; whoever asks for a model that is being loaded waits for the same load. Names with the same weights
and adapters share them in memory, and the engine too where they want the same context; each has its own system
message, template and parameters, its own ``keep_alive``, and its own line in ``ps``. Room is made by unloading the
weights that were used least recently and are not busy, under all their names; if all are busy, the load waits. A model
is busy while a request that opened it runs (:meth:`ModelManager.scope`), even between its steps. A worker whose engine
has failed is replaced when its model is next asked for.

A model in memory goes on answering when its files cannot be read any more, say because their disk is gone, as long as
its name was not removed from a store that is still there.

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
from datetime import UTC, datetime, timedelta
from pathlib import PurePath

from tokenmill.core.errors import FormatError, NotFoundError, StoreError, UsageError
from tokenmill.core.log import get_logger
from tokenmill.engine.scheduler import QueueFullError
from tokenmill.llm import LLM
from tokenmill.models.describe import describe
from tokenmill.serve.entry import Entry, Key, LoadedModel, Weights, key_of, served, weights_of
from tokenmill.serve.errors import BrokenModelError
from tokenmill.serve.settings import ServerSettings
from tokenmill.serve.worker import Observer, Worker
from tokenmill.store import ModelFiles, Store
from tokenmill.store.names import ModelName, parse_reference

log = get_logger(__name__)
__all__ = ["LoadedModel", "ModelManager"]
POLL_S = 0.05
HANGS_S = 600.0  # a pass over a long prompt on a slow machine takes minutes; none takes this long

_LEASES: ContextVar[list[Entry]] = ContextVar("models that the current request has opened")


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
        self.given = {files.name: files for files in map(served, models)}
        if len(self.given) < len({files.path for files in models}):
            raise UsageError("two of the models would have the same name here; give their folders or files other names")
        self._observer = observer
        self._entries: dict[Key, Entry] = {}
        self._loads: dict[Key, asyncio.Task[Entry]] = {}
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
        key, weights = key_of(files), await asyncio.to_thread(weights_of, files)
        if self._wanted.total() >= self.settings.max_queue:
            raise QueueFullError("too many requests wait for models to be loaded; try again later")
        self._wanted[key] += 1
        try:
            entry = self._entries.get(key)
            if entry is None or not entry.worker.alive:
                # shielded: a client that goes must not take the load from those who wait for it too
                entry = await asyncio.shield(self._load_once(key, weights, files))
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
        parsed = parse_reference(name)
        if parsed.kind == "path":  # as whoever started the server wrote it; where it leads is not looked at
            last = PurePath(name)
            if (given := self.given.get(last.name, self.given.get(last.stem))) is not None:
                return given
            return self.store.resolve(name, paths=False)  # which says that a path is none of these names
        reference = parsed.name
        try:
            return self.store.resolve(name, paths=False)
        except (StoreError, FormatError, OSError) as error:
            loaded = next((e.files for e in list(self._entries.values()) if e.goes_by(reference)), None)
            stored = self._is_stored(reference)
            if loaded is not None and stored is not False:
                log.warning("%s is answered from memory, for its files cannot be read: %s", name, error)
                return loaded
            if not stored and not isinstance(error, OSError):  # it is the name that is wrong
                raise
            log.error("%s: %s", name, error)
            raise BrokenModelError(name) from None

    def _is_stored(self, name: ModelName) -> bool | None:
        """Whether the store has a name; None where the store itself cannot be read."""
        try:
            if self.store.library.find(name) is not None:
                return True
        except (StoreError, OSError):
            return None
        return False if (self.store.root / "manifests").is_dir() else None

    def models(self) -> list[ModelFiles]:
        """All that can be asked for: what the server was started with, and the store's. Not for the event loop."""
        return [*self.given.values(), *(files for files in self.store.list() if files.name not in self.given)]

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, those used last first."""
        return [
            LoadedModel(
                e.files.name,
                e.files.digest,
                e.files.size,
                e.worker.llm.ctx_size,
                e.expires_at,
                e.worker,
                e.description,
            )
            for e in sorted(self._entries.values(), key=lambda e: -e.last_used)
        ]

    async def unload(self, name: str) -> None:
        """Take a model out of memory, when the requests that use it have ended. NotFoundError if it is not there."""
        entry = self._entries.get(key_of(await asyncio.to_thread(self.resolve, name)))
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
        for thread in {entry.worker.thread for entry in self._entries.values()}:
            if not thread.alive:
                found.append("an engine has stopped")
            elif thread.busy and time.monotonic() - thread.last_step > HANGS_S:
                found.append("an engine hangs")
        return found

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is opened inside stays in memory until the end of the block. For one request, or one task."""
        leases: list[Entry] = []
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

    def _lease(self, entry: Entry) -> None:
        entry.last_used = time.monotonic()
        leases = _LEASES.get(None)
        if leases is not None and entry not in leases:
            leases.append(entry)
            entry.leases += 1
            self._stop_timer(entry)

    def _busy(self, entry: Entry) -> bool:
        return entry.worker.alive and bool(entry.leases or self._wanted[entry.key] or self._answering(entry))

    def _answering(self, entry: Entry) -> bool:
        """Whether the entry's thread has work; where others answer on it too, only leases tell whose it is."""
        return entry.worker.busy and not any(
            other.leases for other in self._beside(entry) if other.worker.thread is entry.worker.thread
        )

    def _beside(self, entry: Entry) -> list[Entry]:
        """The other names of an entry's weights."""
        return [e for e in self._entries.values() if e.weights == entry.weights and e is not entry]

    def _load_once(self, key: Key, weights: Weights, files: ModelFiles) -> asyncio.Task[Entry]:
        if (load := self._loads.get(key)) is None:
            load = self._loads[key] = asyncio.create_task(self._load(key, weights, files))
            load.add_done_callback(lambda _: self._loads.pop(key))
        return load

    async def _load(self, key: Key, weights: Weights, files: ModelFiles) -> Entry:
        settings = self.settings
        if settings.memory_limit is not None and files.size > settings.memory_limit:
            raise UsageError(
                f"{files.name} has {files.size} bytes and this server's memory limit is {settings.memory_limit}"
            )
        async with self._one_load:
            same = [entry for entry in self._entries.values() if entry.weights == weights]
            for failed in [entry for entry in same if not entry.worker.alive]:
                await self._evict(failed)
                same.remove(failed)
            if not same:
                await self._make_room(files.size)
            with self._held(same):
                llm = await asyncio.to_thread(self._llm, files, same[0].worker.llm if same else None)
                threads = {e.worker.thread for e in same if e.worker.thread.engine is llm.engine}
                if not all(thread.alive for thread in threads):  # it has failed just now
                    llm, threads = await asyncio.to_thread(self._llm, files, None), set()
                thread = threads.pop() if threads else None
            worker = Worker(
                llm,
                max_queue=settings.max_queue,
                private_cache=settings.private_cache,
                observer=None if self._observer is None else self._observer(files.name),
                thread=thread,
            )
            if thread is None:
                worker.start()
            description = same[0].description if same else await asyncio.to_thread(describe, files.path)
            entry = self._entries[key] = Entry(key, weights, files, worker, description)
            log.info("%s %s in %.1f s", "joined" if thread else "loaded", files.name, llm.load_s)
            return entry

    def _llm(self, files: ModelFiles, same: LLM | None) -> LLM:
        # the Modelfile knows its model; the server's own wish is for models that do not say
        ctx_size = None if "num_ctx" in files.parameters else self.settings.ctx_size
        if same is not None:
            llm = same.sibling(files, ctx_size=ctx_size)
            if llm.engine is not same.engine:
                llm.engine.keep_pace()
            return llm
        try:
            llm = LLM(
                files,
                device=self.settings.device,
                dtype=self.settings.dtype,
                ctx_size=ctx_size,
                deterministic=self.settings.deterministic,
                kv_cache_dtype=self.settings.kv_cache_dtype,
            )
        except (FormatError, StoreError, OSError) as error:
            log.error("%s: %s", files.name, error)
            raise BrokenModelError(files.name) from error
        llm.engine.keep_pace()
        return llm

    @contextmanager
    def _held(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Entries that must not be unloaded inside, for somebody is about to share what they have."""
        for entry in entries:
            self._wanted[entry.key] += 1
        try:
            yield
        finally:
            for entry in entries:
                self._wanted[entry.key] -= 1

    async def _make_room(self, size: int) -> None:
        limit = self.settings.memory_limit
        while True:
            groups: dict[Weights, list[Entry]] = {}
            for entry in self._entries.values():
                groups.setdefault(entry.weights, []).append(entry)
            taken = sum(max(entry.files.size for entry in group) for group in groups.values())
            if len(groups) < self.settings.max_models and (limit is None or taken + size <= limit):
                return
            idle = [group for group in groups.values() if not any(map(self._busy, group))]
            if not idle:
                await asyncio.sleep(POLL_S)  # engines do not tell the event loop when they fall idle
                continue
            for entry in min(idle, key=lambda group: max(entry.last_used for entry in group)):
                await self._evict(entry)

    def _start_timer(self, entry: Entry) -> None:
        self._stop_timer(entry)
        if entry.keep_alive >= 0 and math.isfinite(entry.keep_alive):
            seconds = min(entry.keep_alive, 10 * 365 * 86400.0)
            entry.expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
            entry.timer = asyncio.get_running_loop().call_later(seconds, self._expire, entry)

    def _stop_timer(self, entry: Entry) -> None:
        entry.expires_at = None
        if entry.timer is not None:
            entry.timer.cancel()

    def _expire(self, entry: Entry) -> None:
        if self._busy(entry):
            entry.timer = asyncio.get_running_loop().call_later(POLL_S, self._expire, entry)
            return
        task = asyncio.create_task(self._evict(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _evict(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        self._stop_timer(entry)
        if not any(other.worker.thread is entry.worker.thread for other in self._entries.values()):
            await asyncio.to_thread(entry.worker.close)
        log.info("unloaded %s", entry.files.name)
        await asyncio.to_thread(gc.collect)  # modules refer to each other; their weights should go now
