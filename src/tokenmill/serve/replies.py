"""How replies leave: JSON that any text fits into, and streams that no proxy holds back or cuts.

A stream that is silent while a long prompt is computed looks dead to proxies, so a ping is sent where a protocol has a
place for one: server-sent events do (a comment, or Anthropic's ``ping``), lines of JSON do not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi.responses import Response, StreamingResponse

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
SSE_PING = ": ping\n\n"
# no-transform: a proxy that compresses would wait for more to compress; x-accel-buffering: nginx's name for waiting
_HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


def json_text(data: Any) -> str:
    """JSON as short as it gets. Half a surrogate pair, which requests and models can write, has to stay escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text


def reply(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A whole answer."""
    return Response(json_text(data), status, headers, media_type="application/json")


def sse(events: AsyncGenerator[str], ping_s: float, ping: str = SSE_PING) -> StreamingResponse:
    """Server-sent events; ``ping`` is sent after ``ping_s`` seconds without one. Closing it closes ``events``."""
    return StreamingResponse(with_pings(events, ping_s, ping), media_type=SSE, headers=_HEADERS)


def ndjson(lines: AsyncIterator[str]) -> StreamingResponse:
    """Lines of JSON."""
    return StreamingResponse(lines, media_type=NDJSON, headers=_HEADERS)


async def with_pings(events: AsyncGenerator[str], ping_s: float, ping: str) -> AsyncIterator[str]:
    """``events``, and ``ping`` whenever none came for ``ping_s`` seconds."""
    coming = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=ping_s)
            if not done:
                yield ping
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            yield event
            coming = asyncio.ensure_future(anext(events))
    finally:
        if not coming.cancel():  # cancelling ends the generator too, unless it stands between two events
            await events.aclose()
