"""Work that nobody waits for any more is ended: for answers that are not streamed.

(A stream's generator is closed by the web framework when its client goes.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from tokenmill.serve.errors import HTTPError

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for the log; the client does not see it."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; if the client goes first, ``work`` is cancelled and HTTPError raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPError(CLIENT_CLOSED_REQUEST, "the client closed the connection before the answer was done")
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
