"""Answers from any server that speaks OpenAI's protocol: at a bounded pace, patient with failures, each question
answered once in the life of a folder. ``/chat/completions`` unless another route and a reader of its replies are given.

Answers are kept (`core/answer_cache.py`); a run that was stopped asks only what it has no answer to. What a server says
of its limits (429, 503, ``Retry-After``) is waited for. A question that the server refuses as such (400, 413, 422) is
told from a server that cannot be used: the first costs one answer, the second stops the run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tokenmill.core.answer_cache import Answer, AnswerCache
from tokenmill.core.errors import ConfigError, NetworkError

__all__ = ["Answer", "Endpoint"]

WAIT_S = 1.0
"""Before the second try; doubled with each further one, up to `LONGEST_WAIT_S`."""
LONGEST_WAIT_S = 60.0
_REFUSED = (400, 413, 422)
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class Endpoint:
    """One server and one folder of its answers.

    Args:
        url: up to and with the version, as in ``http://127.0.0.1:11434/v1``.
        key_variable: the environment variable that holds the key; None: no key is sent.
        cache: folder of answers; None: they are not kept.
        concurrency: questions under way at a time.
        per_minute: questions begun in a minute at most; None: no limit.
        retries: further tries after a failure that may pass.
        timeout_s: for one answer.
        route: what is asked, below `url`.
        read: takes the answer out of a reply (httpx.Response); None where the reply is not of the protocol.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None,
        *,
        key_variable: str | None = None,
        concurrency: int = 8,
        per_minute: int | None = None,
        retries: int = 5,
        timeout_s: float = 300.0,
        route: str = "/chat/completions",
        read: Callable[[Any], Answer | None] | None = None,
    ) -> None:
        import httpx

        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {url!r} is not the address of a server, such as http://127.0.0.1:11434/v1")
        headers = {}
        if key_variable is not None:
            if not os.environ.get(key_variable):
                raise ConfigError(f"key_variable: the environment variable {key_variable} is not set")
            headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=timeout_s, limits=limits)
        self.url, self.concurrency, self.retries = url.rstrip("/"), concurrency, retries
        self._answers = None if cache is None else AnswerCache(cache)
        self._route, self._read = route, read or _read
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()
        self._stop = threading.Event()
        self._cause: BaseException | None = None

    def ask_all(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """An answer to each question (the body of a request), in order.

        Raises:
            NetworkError: the server fails and goes on failing. ConfigError: it does not know the model or the key.
        """
        self._stop.clear()
        self._cause = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._ask_or_stop, question) for question in questions]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                if self._cause is not None:
                    raise self._cause
                return [future.result() for future in futures]
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _ask_or_stop(self, question: Mapping[str, Any]) -> Answer:
        """The first failure stops all others at once, before another question goes out, and is the one that counts."""
        try:
            return self.ask(question)
        except BaseException as error:
            with self._lock:
                if not self._stop.is_set():
                    self._cause = error
                    self._stop.set()
            raise

    def ask(self, question: Mapping[str, Any]) -> Answer:
        """The answer to one question, from the folder if it is there."""
        if self._answers is None:
            return self._answer(question)
        kept = self._answers.get(question)
        if kept is not None:
            return kept
        answer = self._answer(question)
        if answer.finish_reason != "refused":  # perhaps for a reason that will be mended: asked again the next time
            self._answers.put(question, answer)
        return answer

    def _answer(self, question: Mapping[str, Any]) -> Answer:
        import httpx

        problem, pause = "", WAIT_S
        for attempt in range(self.retries + 1):
            if attempt:
                self._pause(pause)
                pause = min(2 * pause, LONGEST_WAIT_S)
            self._pace()
            try:
                reply = self._client.post(f"{self.url}{self._route}", json=dict(question))
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == 200:
                found = self._read(reply)
                if found is not None:
                    return found
                problem = f"no answer in what it sent: {reply.text[:200]!r}"
            elif reply.status_code in _REFUSED:
                return Answer(reply.text[:400], "refused")
            elif reply.status_code in _AGAIN:
                problem = f"{reply.status_code}: {reply.text[:200]!r}"
                pause = max(pause, _retry_after(reply))
            else:
                raise ConfigError(f"{self.url} cannot be used: {reply.status_code}: {reply.text[:300]!r}")
        tries = f"{self.retries + 1} tries"
        raise NetworkError(
            f"{self.url}: no answer after {tries} ({problem}). What was answered so far is kept; the same command goes "
            "on there"
        )

    def _pace(self) -> None:
        """Wait for this question's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap_s
        self._pause(turn - now)

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stop.wait(seconds)
        if self._stop.is_set():
            raise NetworkError(f"{self.url}: stopped, since another question failed")


def _read(reply: Any) -> Answer | None:
    """None if the reply is not of the protocol."""
    try:
        choice = reply.json()["choices"][0]
        text = choice["message"].get("content") or ""
        return Answer(str(text), str(choice.get("finish_reason") or "stop"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _retry_after(reply: Any) -> float:
    try:
        return min(max(float(reply.headers.get("Retry-After", 0)), 0.0), 10 * LONGEST_WAIT_S)
    except ValueError:  # a date: the doubled wait will do
        return 0.0
