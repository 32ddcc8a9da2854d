"""The application under uvicorn, from an address to a clean end.

Told to stop (SIGTERM, Ctrl-C), it drains: new requests get 503 and ``/health`` says so, those inside have ``drain_s``
seconds to finish, then the models are unloaded and the program ends with status 0. Told again, it stops at once.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.serve.app import create_app
from tokenmill.serve.settings import ServerSettings
from tokenmill.store import ModelFiles, Store

log = get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which waits for the requests inside before it closes its socket."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(
            # log_config: the program that we are part of decides; lifespan: `serve` runs it, for its errors are ours
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        )
        self._gate, self._drain_s, self._on_ready = app.state.gate, app.state.settings.drain_s, on_ready
        self._until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._gate.draining:
            self.should_exit = self.force_exit = True
            return
        log.info("draining: %d requests are inside", self._gate.inside)
        self._until = time.monotonic() + self._drain_s
        self._gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._gate.draining and (self._gate.inside == 0 or time.monotonic() >= self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    settings: ServerSettings,
    *,
    store: Store | None = None,
    models: Sequence[ModelFiles] = (),
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal. ``on_ready`` is told the address once requests are answered; port 0 takes a free one."""
    listener = _listen(settings.host, settings.port)  # before the models are loaded, for that takes time
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    app = create_app(settings, store, models)
    server = DrainingServer(app, lambda: on_ready(f"http://{host}:{port}"))

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await server.serve([listener])

    with listener:
        asyncio.run(run())


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        what = f"cannot listen on {host} port {port}"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise TokenmillError(f"{what}: this machine has no such address; --host takes another") from None
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there (Ollama's port is the same)" if taken else error.strerror
        raise TokenmillError(f"{what}: {why}; --port takes another") from None
