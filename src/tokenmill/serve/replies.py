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
from starlette.types import Send

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


class EventStream(StreamingResponse):
    """Server-sent events, and a ping whenever none came for ``ping_s`` seconds. Its end in any way closes ``events``.

    One task a stream watches the clock. A wait with a timeout for each event, which is the obvious way, took a quarter
    of all that the server did at 16 streams.
    """

    def __init__(self, events: AsyncGenerator[str], ping_s: float, ping: str) -> None:
        super().__init__(events, media_type=SSE, headers=_HEADERS)
        self._events, self._ping_s, self._ping = events, ping_s, ping.encode()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        clock = asyncio.get_running_loop().time
        last = clock()

        async def say(data: bytes) -> None:
            nonlocal last
            last = clock()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def watch() -> None:
            while True:
                if (pause := last + self._ping_s - clock()) > 0:
                    await asyncio.sleep(pause)
                else:
                    await say(self._ping)

        watcher = asyncio.create_task(watch())
        try:
            async for event in self._events:
                await say(event.encode())
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)  # a client that has gone is told of by the other task
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def sse(events: AsyncGenerator[str], ping_s: float, ping: str = SSE_PING) -> StreamingResponse:
    """Server-sent events; ``ping`` is sent after ``ping_s`` seconds without one. Closing it closes ``events``."""
    return EventStream(events, ping_s, ping)


def ndjson(lines: AsyncIterator[str]) -> StreamingResponse:
    """Lines of JSON."""
    return StreamingResponse(lines, media_type=NDJSON, headers=_HEADERS)
