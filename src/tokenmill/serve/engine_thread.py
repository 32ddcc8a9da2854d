"""One engine on a thread of its own, so that the event loop never waits for a matrix product.

The event loop hands in requests and reads pieces of answers; the thread steps the engine while there is work and sleeps
otherwise. Nothing else touches the engine. A fault in one request ends that request; a fault of the engine itself, of
whatever kind, ends all of them with the reason, and the thread (``alive`` tells). Workers of several names share a
thread where they share an engine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from tokenmill.answers import Answer, Completion, Piece, Stats, collect
from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.engine.engine import Engine
from tokenmill.engine.request import FinishReason, Request, Step
from tokenmill.engine.scheduler import QueueFullError
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
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._open = len(requests)

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> Piece:
        if not self._open:
            raise StopAsyncIteration
        piece = await self.pieces.get()
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


def hand_out(said: Mapping[Ticket, Sequence[Piece]]) -> None:
    """Give tickets their pieces; called by the engine's thread.

    A loop is woken once for all of them: each wake-up gives the interpreter away, and to get it back takes longer than
    to make a token of a small model.
    """
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in said:
        loops.setdefault(ticket.loop, []).append(ticket)
    for loop, tickets in loops.items():
        try:
            loop.call_soon_threadsafe(_put, [(ticket, said[ticket]) for ticket in tickets])
        except RuntimeError:  # the loop has closed: nobody reads any more
            for ticket in tickets:
                ticket.cancel()


def _put(said: Sequence[tuple[Ticket, Sequence[Piece]]]) -> None:
    for ticket, pieces in said:
        for piece in pieces:
            ticket.pieces.put_nowait(piece)


class Live:
    """A request that is in the engine or on its way there."""

    def __init__(self, ticket: Ticket, answer: Answer, observer: Observer | None = None) -> None:
        self.ticket, self.answer, self.observer = ticket, answer, observer
        self.last_token = time.monotonic()


class EngineThread:
    """Runs an engine. ``name`` is for the log and for the person whose request ends with it."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.last_step = time.monotonic()
        """When the thread last came round; with work to do, an old time means that it hangs."""
        self.error: TokenmillError | None = None
        """Why the thread ended, if it was not told to."""
        self._live: dict[Request, Live] = {}
        self._new: deque[Live] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._awake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def busy(self) -> bool:
        return bool(self._live or self._calls)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self.engine.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return max(0, len(self._live) - self.running)

    def add(self, live: Sequence[Live], max_queue: int) -> None:
        """Take requests on. QueueFullError when more than ``max_queue`` would wait, UnavailableError when it ends."""
        with self._awake:
            self._check_open()
            if self.waiting and self.waiting + len(live) > max_queue:
                raise QueueFullError(f"{self.waiting} requests are waiting already; try again later")
            self._live.update((one.answer.request, one) for one in live)
            self._new += live
            self._awake.notify()

    def call(self, function: Callable[[], T], max_queue: int) -> Future[T]:
        """Run other work of the model's between two steps. Raises what :meth:`add` raises."""
        future: Future[T] = Future()
        with self._awake:
            self._check_open()
            if len(self._calls) >= max_queue:
                raise QueueFullError(f"{len(self._calls)} calls are waiting already; try again later")
            self._calls.append((function, future))
            self._awake.notify()
        return future

    def close(self) -> None:
        """End what runs, with an error, and the thread. Blocks for one step at most; safe to call twice."""
        with self._awake:
            self._closing = True
            self._awake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _check_open(self) -> None:
        if not self.alive:
            why = f"{self.name} is being unloaded; try again" if self.error is None else str(self.error)
            raise UnavailableError(why)

    def _run(self) -> None:
        why = UnavailableError("the model was unloaded before the answer was done")
        try:
            while self._wait():
                self._round()
        except BaseException as error:  # whatever ends this thread must not leave anybody waiting
            log.exception("the engine of %s failed", self.name)
            why = self.error = UnavailableError(f"the engine failed: {type(error).__name__}; the model is loaded anew")
        with self._awake:
            self._closing = True
            live, calls = list(self._live.values()), list(self._calls)
            self._live.clear()
            self._calls.clear()
        for one in live:
            one.answer.request.error = one.answer.request.error or why
            one.answer.request.finish("error")
            hand_out({one.ticket: [one.answer.ended()]})
        for _, future in calls:
            if not future.done():
                future.set_exception(why)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the worker closes."""
        with self._awake:
            self._awake.wait_for(lambda: self._closing or self._new or self._calls or not self.engine.idle)
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
        if not self.engine.idle:
            for step in self.engine.step():
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
            if one.observer is not None and request.finish_reason is not None:
                one.observer.finished(request.finish_reason, one.answer.stats)
        hand_out(said)

    def _admit(self, one: Live) -> None:
        request = one.answer.request
        try:
            if request.finish_reason is None:
                self.engine.add(request)
        except TokenmillError as error:
            request.error = error
            request.finish("error")

    def _push(self, one: Live, step: Step) -> Piece:
        """The piece of a step. Text that cannot be made is this request's fault alone."""
        now = time.monotonic()
        if one.observer is not None and step.token_id is not None:
            one.observer.token(now - one.last_token, len(step.request.output) == 1)
        one.last_token = now
        try:
            return one.answer.push(step)
        except Exception as error:
            log.exception("an answer of %s failed", self.name)
            step.request.error = TokenmillError(f"the answer could not be written as text: {type(error).__name__}")
            step.request.finish_reason = "error"
            return one.answer.ended()


def _do(function: Callable[[], T], future: Future[T]) -> None:
    if future.set_running_or_notify_cancel():  # else its caller has gone
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
