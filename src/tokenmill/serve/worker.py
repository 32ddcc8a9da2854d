"""One model's engine on a thread of its own, so that the event loop never waits for a matrix product.

The event loop submits requests and reads pieces of answers; the thread steps the engine while there is work and sleeps
otherwise. Nothing else touches the engine. A fault in one request ends that request; a fault of the engine itself ends
all of them with the reason, and the thread (``alive`` tells). A client that goes away cancels its ticket, and the
blocks are free again with the next step.

Refused at once: prompts that do not fit, and whatever would make more than ``max_queue`` requests wait.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.core.log import get_logger
from tokenmill.engine.generate import check_request
from tokenmill.engine.request import FinishReason, Request, Step
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.engine.scheduler import QueueFullError
from tokenmill.llm import LLM, Answer, Completion, Format, Piece, Stats, collect
from tokenmill.serve.errors import UnavailableError

log = get_logger(__name__)
T = TypeVar("T")


class Observer(Protocol):
    """Who is told what requests took; called on the worker's thread."""

    def token(self, seconds: float, first: bool) -> None:
        """A token came, ``seconds`` after the one before it or, the first, after the request was submitted."""
        ...

    def finished(self, reason: FinishReason, stats: Stats) -> None: ...


class Ticket:
    """The answers to one submitted call, as they come: an asynchronous iterator of pieces.

    ``piece.index`` is ``prompt number * n + sample``. The error of a call with one answer is raised; with several, the
    failing one ends with a piece that has the error. Whoever stops reading before the end calls :meth:`cancel`.
    """

    def __init__(self, requests: Sequence[Request], prompt_tokens: Sequence[int], n: int) -> None:
        self.requests, self._prompt_tokens, self._n = requests, prompt_tokens, n
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._open = len(requests)

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> Piece:
        if not self._open:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if piece.finish_reason is not None:
            self._open -= 1
        if piece.error is not None and len(self.requests) == 1:
            raise piece.error
        return piece

    def cancel(self) -> None:
        """End what has not ended yet; harmless afterwards. The blocks are given back with the engine's next step."""
        for request in self.requests:
            request.finish("abort")

    async def complete(self) -> list[Completion]:
        """Wait for all of it: one Completion a prompt. A caller that is cancelled cancels the work."""
        try:
            return collect([piece async for piece in self], self._prompt_tokens, self._n)
        finally:
            self.cancel()

    def put(self, pieces: Sequence[Piece]) -> None:
        """Called by the worker's thread."""
        try:
            for piece in pieces:
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the loop has closed: nobody reads any more
            self.cancel()


class _Live:
    """A request that is in the engine or on its way there."""

    def __init__(self, ticket: Ticket, answer: Answer) -> None:
        self.ticket, self.answer = ticket, answer
        self.last_token = time.monotonic()


class Worker:
    """Serves one LLM. ``max_queue``: how many requests may wait for a place in the batch. ``private_cache``: clients do
    not find each other's prompts in the prefix cache, where the time of an answer would tell that they were there."""

    def __init__(
        self, llm: LLM, *, max_queue: int = 512, private_cache: bool = False, observer: Observer | None = None
    ) -> None:
        self.llm, self.max_queue, self.private_cache = llm, max_queue, private_cache
        self.last_step = time.monotonic()
        """When the thread last came round; with work to do, an old time means that it hangs."""
        self.error: TokenmillError | None = None
        """Why the thread ended, if it was not told to."""
        self._observer = observer
        self._live: dict[Request, _Live] = {}
        self._new: deque[_Live] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._awake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine {llm.name}", daemon=True)

    def start(self) -> Worker:
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def busy(self) -> bool:
        return bool(self._live or self._calls)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self.llm.engine.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return max(0, len(self._live) - self.running)

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
        live = [_Live(ticket, Answer(self.llm.tokenizer, request)) for request in requests]
        with self._awake:
            self._check_open()
            if self.waiting and self.waiting + len(requests) > self.max_queue:
                raise QueueFullError(f"{self.waiting} requests are waiting already; try again later")
            self._live.update((one.answer.request, one) for one in live)
            self._new += live
            self._awake.notify()
        return ticket

    async def prepare(self, format: Format) -> None:
        """Compile a grammar off the event loop; :meth:`submit` finds it ready. Raises UsageError for a bad one."""
        if format is not None:
            plain = format if isinstance(format, str) else dict(format)
            await asyncio.to_thread(self.llm.guides.from_format, plain)

    async def call(self, function: Callable[[], T]) -> T:
        """Run other work of the model's (embeddings) on its thread, between two steps."""
        future: Future[T] = Future()
        with self._awake:
            self._check_open()
            if len(self._calls) >= self.max_queue:
                raise QueueFullError(f"{len(self._calls)} calls are waiting already; try again later")
            self._calls.append((function, future))
            self._awake.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End what runs, with an error, and the thread. Blocks for one step at most; safe to call twice."""
        with self._awake:
            self._closing = True
            self._awake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _check_open(self) -> None:
        if not self.alive:
            raise UnavailableError(
                f"{self.llm.name} is being unloaded; try again" if self.error is None else str(self.error)
            )

    def _run(self) -> None:
        why = UnavailableError("the model was unloaded before the answer was done")
        try:
            while self._wait():
                self._round()
        except Exception as error:
            log.exception("the engine of %s failed", self.llm.name)
            why = self.error = UnavailableError(f"the engine failed: {type(error).__name__}; the model is loaded anew")
        with self._awake:
            self._closing = True
            live, calls = list(self._live.values()), list(self._calls)
            self._live.clear()
            self._calls.clear()
        for one in live:
            one.answer.request.error = one.answer.request.error or why
            one.answer.request.finish("error")
            one.ticket.put([one.answer.ended()])
        for _, future in calls:
            if not future.done():
                future.set_exception(why)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the worker closes."""
        with self._awake:
            self._awake.wait_for(lambda: self._closing or self._new or self._calls or not self.llm.engine.idle)
            self.last_step = time.monotonic()
            return not self._closing

    def _round(self) -> None:
        """Admit what is new, do one call, run one pass, and hand out what it made."""
        said: dict[Ticket, list[Piece]] = {}
        while self._new:
            self._admit(self._new.popleft())
        if self._calls:
            _do(*self._calls[0])
            self._calls.popleft()  # only now, for until it is done the worker is busy
        if not self.llm.engine.idle:
            for step in self.llm.engine.step():
                if (one := self._live.get(step.request)) is not None:
                    said.setdefault(one.ticket, []).append(self._push(one, step))
        with self._awake:
            ended = [request for request in self._live if request.finish_reason is not None]
            over = [self._live.pop(request) for request in ended]
        for one in over:
            request = one.answer.request
            pieces = said.setdefault(one.ticket, [])
            if not any(piece.index == request.index and piece.finish_reason for piece in pieces):
                pieces.append(one.answer.ended())
            if self._observer is not None and request.finish_reason is not None:
                self._observer.finished(request.finish_reason, one.answer.stats)
        for ticket, pieces in said.items():
            ticket.put(pieces)

    def _admit(self, one: _Live) -> None:
        request = one.answer.request
        try:
            if request.finish_reason is None:
                self.llm.engine.add(request)
        except TokenmillError as error:
            request.error = error
            request.finish("error")

    def _push(self, one: _Live, step: Step) -> Piece:
        """The piece of a step. Text that cannot be made is this request's fault alone."""
        now = time.monotonic()
        if self._observer is not None and step.token_id is not None:
            self._observer.token(now - one.last_token, len(step.request.output) == 1)
        one.last_token = now
        try:
            return one.answer.push(step)
        except Exception as error:
            log.exception("an answer of %s failed", self.llm.name)
            step.request.error = TokenmillError(f"the answer could not be written as text: {type(error).__name__}")
            step.request.finish_reason = "error"
            return one.answer.ended()


def _do(function: Callable[[], T], future: Future[T]) -> None:
    if future.set_running_or_notify_cancel():  # else its caller has gone
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
