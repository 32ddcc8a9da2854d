"""What stands before every route but ``/health`` and the page: who asks, from where, how much, is there still service?

Plain ASGI, because it must also see streams end. In this order: a server that drains answers 503; on an open server a
``Host`` that is not this machine (a web page that had its own name point here) and an ``Origin`` of another site are
refused with 403; a wrong or missing key with 401; a body over the limit with 413, counted as it comes; a body that
stops coming with 408. What a route raises and nobody foresaw is answered with 500 and logged, without its text.

Each request gets an id (the client's ``X-Request-Id`` if it is a plain word) that its reply and its log lines carry.
Keys, queries and bodies are never logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmill.core.errors import TokenmillError
from tokenmill.core.log import get_logger
from tokenmill.serve.errors import HTTPError, UnavailableError
from tokenmill.serve.manager import ModelManager
from tokenmill.serve.metrics import Metrics
from tokenmill.serve.settings import ServerSettings, is_loopback
from tokenmill.serve.web import wants_page

log = get_logger(__name__)
OPEN_PATHS = ("/health", "/health/live")
UPLOADS = "/api/blobs/"
JSON_PATHS = ("/api/", "/v1/", "/tokenize", "/detokenize")
FORM = "application/x-www-form-urlencoded"
BODY_PAUSE_S = 60.0
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """How many requests are being answered, and whether more are let in."""

    def __init__(self) -> None:
        self.draining = False
        self.inside = 0


class Guard:
    """``refuse`` renders an error in the shape of the protocol that a path belongs to."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        gate: Gate,
        manager: ModelManager,
        metrics: Metrics,
        refuse: Callable[[str, Exception], Response],
    ) -> None:
        self.app, self.settings, self.gate = app, settings, gate
        self.manager, self.metrics, self.refuse = manager, metrics, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "there are no WebSockets here"})
        elif scope["type"] != "http" or scope["path"] in OPEN_PATHS or _is_page(scope):
            await self.app(scope, receive, send)
        else:
            self.gate.inside += 1
            try:
                with self.manager.scope():
                    await self._answer(scope, receive, send)
            finally:
                self.gate.inside -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, headers, status = time.perf_counter(), Headers(scope=scope), 0
        given = headers.get("x-request-id", "")
        request_id = given if _PLAIN.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"], state["client"] = request_id, ""

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._check(scope, headers, state)
            if scope["path"].startswith(JSON_PATHS) and headers.get("content-type", "").startswith(FORM):
                # curl -d calls its body a form, as in every example of Ollama's documentation. A page that sends a
                # form names its origin, and was refused above.
                MutableHeaders(scope=scope)["content-type"] = "application/json"
            await self.app(scope, self._measured(scope, headers, receive), tell)
        except TokenmillError as error:
            await self.refuse(scope["path"], error)(scope, receive, tell)
        except Exception:
            log.exception("request %s failed", request_id, extra={"fields": {"request_id": request_id}})
            if status:  # the reply has begun: only a broken connection tells the client now
                raise
            problem = HTTPError(500, f"an internal error; the server's log has it under request id {request_id}")
            await self.refuse(scope["path"], problem)(scope, receive, tell)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _check(self, scope: Scope, headers: Headers, state: dict[str, str]) -> None:
        if self.gate.draining:
            raise UnavailableError("this server is shutting down")
        if self.settings.api_keys:
            state["client"] = self._key_owner(headers)
        else:
            peer = scope.get("client")
            state["client"] = peer[0] if peer else ""
            self._check_browser(headers)
        limit = self._limit(scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > limit:
            raise HTTPError(413, f"the body is larger than {limit} bytes")

    def _key_owner(self, headers: Headers) -> str:
        """Part of the key's hash names its owner. All keys are compared, so that the time tells nothing."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).hexdigest()
        if not sum(hmac.compare_digest(digest, known) for known in self.settings.api_keys):
            raise HTTPError(
                401, "a valid API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
            )
        return digest[:12]

    def _check_browser(self, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        private = is_loopback(self.settings.host) and not self.settings.insecure
        if private and not (host == self.settings.host or is_loopback(host) or not host):
            raise HTTPError(403, f"this server answers to localhost, not to {host[:100]!r}; keys open it to others")
        origin = headers.get("origin", "")
        allowed = self.settings.cors_origins
        if origin and not (origin in allowed or "*" in allowed or origin.partition("://")[2] == headers.get("host")):
            raise HTTPError(403, f"pages of {origin[:100]!r} may not call this server; --cors allows them")

    def _limit(self, scope: Scope) -> int:
        upload = scope["path"].startswith(UPLOADS)
        return self.settings.max_upload_bytes if upload else self.settings.max_body_bytes

    def _measured(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """``receive``, counting. HTTPException, for frameworks take anything else for a body that cannot be parsed."""
        limit, got, complete = self._limit(scope), 0, False

        async def count() -> Message:
            nonlocal got, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), BODY_PAUSE_S)
            except TimeoutError:
                raise HTTPException(408, "the body did not arrive") from None
            got += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if got > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes")
            return message

        return count

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)  # not the path itself: a client could make up any number
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(route or "none", method, str(status)).inc()
        state = scope["state"]
        fields = {
            "request_id": state["request_id"],
            "client": state["client"] or "-",
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "ms": round(1000 * seconds),
        }
        # quoted where a client wrote it, so that nobody can write lines of their own into the log
        text = " ".join(f"{name}={value!r}" if name == "path" else f"{name}={value}" for name, value in fields.items())
        log.info("%s", text, extra={"fields": fields})


def _is_page(scope: Scope) -> bool:
    """The page at / is the same for everybody, and asks for the key itself."""
    return wants_page(scope["method"], scope["path"], Headers(scope=scope).get("accept", ""))


def _host_name(host: str) -> str:
    """``Host`` without its port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
