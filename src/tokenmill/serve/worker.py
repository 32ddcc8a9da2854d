"""One model's place in the server: turns what a protocol asks into requests for the engine's thread.

A client that goes away cancels its ticket, and the blocks are free again with the next step. Refused at once: prompts
that do not fit, and whatever would make more than ``max_queue`` requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenmill.answers import Answer
from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.engine.generate import check_request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Format
from tokenmill.serve.engine_thread import EngineThread, Live, Observer, Ticket

__all__ = ["Observer", "Ticket", "Worker"]
T = TypeVar("T")


class Worker:
    """Serves one LLM. ``max_queue``: how many requests may wait for a place in the batch. ``private_cache``: clients do
    not find each other's prompts in the prefix cache, where the time of an answer would tell that they were there.
    ``thread``: one that runs this LLM's engine already."""

    def __init__(
        self,
        llm: LLM,
        *,
        max_queue: int = 512,
        private_cache: bool = False,
        observer: Observer | None = None,
        thread: EngineThread | None = None,
    ) -> None:
        self.llm, self.max_queue, self.private_cache = llm, max_queue, private_cache
        self.thread = EngineThread(llm.engine, llm.name) if thread is None else thread
        self._observer = observer

    def start(self) -> Worker:
        self.thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self.thread.alive

    @property
    def busy(self) -> bool:
        return self.thread.busy

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self.thread.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return self.thread.waiting

    @property
    def last_step(self) -> float:
        """When the thread last came round, by ``time.monotonic``."""
        return self.thread.last_step

    @property
    def error(self) -> TokenmillError | None:
        """Why the thread ended, if it was not told to."""
        return self.thread.error

    def submit(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        format: Format = None,
        client: str = "",
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
    ) -> Ticket:
        """Queue ``params.n`` answers to each prompt. Called on the event loop; :meth:`prepare` a ``format`` first.

        Raises UsageError and OutOfContextError for what can never be answered, QueueFullError when too many wait
        UnavailableError when the worker closes. ``deadline``: by ``time.monotonic``.
        """
        if len(prompts) * params.n > self.max_queue + self.llm.engine.scheduler.max_running:
            raise UsageError(f"{len(prompts)} prompts with {params.n} answers each are more than this server takes")
        if self.private_cache:
            cache_salt = f"{client}\n{cache_salt}"
        more = {"client": client, "priority": priority, "deadline": deadline, "cache_salt": cache_salt}
        requests = self.llm.requests(prompts, params, format, **more)
        if not requests:
            raise UsageError("there is no prompt; give at least one")
        for request in requests:
            check_request(request, self.llm.model, self.llm.ctx_size)
        ticket = Ticket(requests, [len(ids) for ids in prompts], params.n)
        answers = [Answer(self.llm.tokenizer, request) for request in requests]
        self.thread.add([Live(ticket, answer, self._observer) for answer in answers], self.max_queue)
        return ticket

    async def prepare(self, format: Format) -> None:
        """Compile a grammar off the event loop; :meth:`submit` finds it ready. Raises UsageError for a bad one."""
        if format is not None:
            plain = format if isinstance(format, str) else dict(format)
            await asyncio.to_thread(self.llm.guides.from_format, plain)

    async def call(self, function: Callable[[], T]) -> T:
        """Run other work of the model's (embeddings) on its thread, between two steps."""
        return await asyncio.wrap_future(self.thread.call(function, self.max_queue))

    def close(self) -> None:
        """End what runs, with an error, and the thread. Blocks for one step at most; safe to call twice."""
        self.thread.close()
