"""A server under load: requests sent at their times over HTTP, their answers read as streams, everything timed.

For every server that speaks OpenAI's ``/v1/completions`` (prompts as token ids, so that lengths are exact) or
``/v1/chat/completions`` (prompts as words). What fails is counted by reason and is no part of the latencies. Token
counts are the server's own; one that tells none is counted by pieces.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.evals.latencies import Timing, summary
from tokenmill.evals.workload import Ask

if TYPE_CHECKING:
    import httpx

ENDPOINTS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
SLO_METRICS = ("ttft", "tpot", "e2el")


class FailedError(TokenmillError):
    """The server did not answer a request in full; the message says what it said instead."""


@dataclass(frozen=True)
class Target:
    """What is asked: a server's address without ``/v1``, a model's name there, and how."""

    url: str
    model: str
    endpoint: str = "completions"
    api_key: str | None = None
    ignore_eos: bool = True
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise UsageError(f"there is no endpoint {self.endpoint!r}; use {' or '.join(ENDPOINTS)}")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"{self.url!r} is no address; give http://HOST:PORT")

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request for one prompt: greedy, streamed, with the counts at its end."""
        prompt: dict[str, Any] = {"prompt": ask.token_ids}
        if self.endpoint == "chat":
            prompt = {"messages": [{"role": "user", "content": ask.text}]}
        more = {"ignore_eos": True} if self.ignore_eos else {}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "temperature": 0, "max_tokens": ask.output_len, **prompt, **options, **more}


@dataclass(frozen=True)
class Answered:
    """One request's end: its timing and tokens, or why it failed. ``start`` is in seconds after the load began."""

    start: float
    timing: Timing
    prompt_tokens: int
    cached_tokens: int = 0
    error: str = ""


@dataclass
class LoadResult:
    """All of one load. ``peak``: the most requests that were open at a time."""

    duration: float
    answers: list[Answered]
    peak: int
    slo: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds a metric may take for a request to count as good."""

    def document(self) -> dict[str, Any]:
        """The figures under the names that ``vllm bench serve`` writes, failures by reason."""
        done = [answer for answer in self.answers if not answer.error]
        tokens_in = sum(answer.prompt_tokens for answer in done)
        tokens_out = sum(answer.timing.output_tokens for answer in done)
        good = sum(self._good(answer.timing) for answer in done)
        failed = Counter(answer.error for answer in self.answers if answer.error)
        return {
            "duration": self.duration,
            "completed": len(done),
            "failed": len(self.answers) - len(done),
            "errors": dict(failed.most_common()),
            "total_input_tokens": tokens_in,
            "total_cached_tokens": sum(answer.cached_tokens for answer in done),
            "total_output_tokens": tokens_out,
            "request_throughput": len(done) / self.duration,
            "request_goodput": good / self.duration if self.slo else None,
            "output_throughput": tokens_out / self.duration,
            "total_token_throughput": (tokens_in + tokens_out) / self.duration,
            "max_concurrent_requests": self.peak,
            **summary(answer.timing for answer in done),
        }

    def _good(self, timing: Timing) -> bool:
        return all((timing.milliseconds(metric) or 0.0) <= limit for metric, limit in self.slo.items())


async def run_load(
    target: Target,
    asks: Sequence[Ask],
    *,
    max_concurrency: int | None = None,
    slo: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadResult:
    """Send each ask at its time, ``max_concurrency`` open at most, and wait for all of them.

    A request's clock starts when it is sent: time that it waited here for a free place does not count.
    """
    import httpx

    answers: list[Answered | None] = [None] * len(asks)
    places = asyncio.Semaphore(max_concurrency or len(asks))
    headers = {"accept-encoding": "identity"}
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    open_now = peak = done = 0

    async def one(number: int, ask: Ask) -> None:
        nonlocal open_now, peak, done
        async with places:
            open_now += 1
            peak = max(peak, open_now)
            answers[number] = await _answer(client, target, ask, began)
            open_now -= 1
        done += 1
        if progress is not None:
            progress(done, len(asks))

    async with httpx.AsyncClient(
        base_url=target.url.rstrip("/"), headers=headers, limits=limits, timeout=target.timeout_s, trust_env=False
    ) as client:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, ask in enumerate(asks):
                if (wait := began + ask.at - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(one(number, ask))
        duration = time.perf_counter() - began
    return LoadResult(duration, [answer for answer in answers if answer is not None], peak, dict(slo or {}))


async def _answer(client: httpx.AsyncClient, target: Target, ask: Ask, began: float) -> Answered:
    import httpx

    start = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, Any] = {}
    error = ""
    try:
        async with client.stream("POST", ENDPOINTS[target.endpoint], json=target.body(ask)) as reply:
            async for event in _events(reply):
                if _text(event):
                    arrivals.append(time.perf_counter() - start)
                usage = event.get("usage") or usage
    except httpx.HTTPError as problem:
        error = type(problem).__name__
    except FailedError as problem:
        error = str(problem)
    count = usage.get("completion_tokens")
    timing = Timing(tuple(arrivals), time.perf_counter() - start, len(arrivals) if count is None else count)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt_tokens = usage.get("prompt_tokens", len(ask.token_ids))
    return Answered(start - began, timing, prompt_tokens, cached, error)


async def _events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of a reply. FailedError for a refusal, an error event, or an end before ``[DONE]``."""
    if reply.status_code != 200:
        raise FailedError(f"HTTP {reply.status_code}: {_reason(await reply.aread())}")
    rest, complete = b"", False
    async for data in reply.aiter_raw():  # to its very end, so that the connection can be used again
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            content = line[5:].strip() if line.startswith(b"data:") else b""
            complete = complete or content == b"[DONE]"
            if content and not complete:
                yield _event(content)
    if not complete:
        raise FailedError("the stream ended before [DONE]")


def _event(content: bytes) -> dict[str, Any]:
    try:
        event = json.loads(content)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise FailedError("an event of the stream is no JSON object")
    if event.get("error"):
        raise FailedError(f"in the stream: {_reason(content)}")
    return event


def _text(event: Mapping[str, Any]) -> str:
    """What an event adds to the answer, thoughts included; roles, ends and counts add nothing."""
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta") or choices[0]
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("text") or ""


def _reason(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or the beginning of whatever was sent, as one line."""
    try:
        error = json.loads(body)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        said = body.decode("utf-8", "replace")
    return " ".join(said.split())[:200]


def parse_slo(given: Sequence[str]) -> dict[str, float]:
    """``["ttft:300", "tpot:50"]`` as limits in milliseconds. UsageError for anything else."""
    limits = {}
    for one in given:
        metric, _, value = one.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if metric not in SLO_METRICS or not limit > 0:
            raise UsageError(f"--goodput {one!r}: give METRIC:MILLISECONDS, METRIC one of {', '.join(SLO_METRICS)}")
        limits[metric] = limit
    return limits
