"""A threaded HTTP server for tests: files with ranges and ETags, a log of requests, and faults on order.

Each path has a queue of faults; a request to the path takes the next one, and gets an honest answer when none is left.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Served:
    """A file, as the server has it. `length` lies about the length, `endless` never stops."""

    data: bytes
    etag: str | None = '"v1"'
    ranges: bool = True
    length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


Fault = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """One connection; hands every request to its server's `answer`."""

    protocol_version = "HTTP/1.1"
    owner: Server
    body: bytes

    def _serve(self) -> None:
        length = self.headers.get("content-length")
        if length is not None:
            self.body = self.rfile.read(int(length))
        elif "chunked" in self.headers.get("transfer-encoding", ""):
            self.body = self._read_chunks()
        else:
            self.body = b""
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, unquote(parts.path), parts.query, headers, self.body)
        self.owner.seen.append(seen)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.owner.faults[seen.path]:
                self.owner.faults[seen.path].popleft()(self)
            else:
                self.owner.answer(self, seen)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer; header names are given with ``_`` for ``-``."""
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **named}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, served: Served) -> None:
        """Answer GET or HEAD as a web server does: ranges, If-Range, 416."""
        total, etag = len(served.data), served.etag
        extra = dict(served.headers) | ({"ETag": etag} if etag else {})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if_range = self.headers.get("if-range")
        if not served.ranges or not wanted or (if_range is not None and if_range != etag):
            length = served.length if served.length is not None else total
            self.reply(200, served.data, **{**_keywords(extra), "Content_Length": str(length)})
            if length > total:
                self.hang_up()
            return
        start = int(wanted[1])
        end = min(int(wanted[2] or total), total - 1)
        if start >= total:
            self.reply(416, Content_Range=f"bytes */{total}")
            return
        extra["Content-Range"] = f"bytes {start}-{end}/{total}"
        self.reply(206, served.data[start : end + 1], **_keywords(extra))

    def hang_up(self) -> None:
        """Cut the connection."""
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Tests stay quiet; `Server.seen` is the log."""


def _keywords(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    mishaps: list[BaseException]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests; anything else is a bug of the fake, kept for `__exit__`."""
        error = sys.exception()
        if error is not None and not isinstance(error, (ConnectionError, ssl.SSLError)):
            self.mishaps.append(error)


class Server:
    """Serves `files` by path. Subclasses override `answer` to speak a protocol. Use as a context manager."""

    def __init__(self, files: Mapping[str, Served | bytes] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.files = {path: f if isinstance(f, Served) else Served(f) for path, f in (files or {}).items()}
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.seen: list[Seen] = []
        handler = type("BoundExchange", (Exchange,), {"owner": self})
        self._http = _Threads(("127.0.0.1", 0), handler)
        self._http.mishaps = []
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port: int = self._http.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        if self._http.mishaps:
            raise self._http.mishaps[0]

    def answer(self, exchange: Exchange, seen: Seen) -> None:
        served = self.files.get(seen.path)
        if served is None or seen.method not in ("GET", "HEAD"):
            exchange.reply(404)
        else:
            exchange.send_file(served)

    def fault(self, path: str, *faults: Fault) -> None:
        """Queue `faults` for the next requests to `path`."""
        self.faults[path].extend(faults)

    def requests(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Answer with `code`."""
    return lambda exchange: exchange.reply(code, body, **headers)


def redirect(url: str, code: int = 302) -> Fault:
    return lambda exchange: exchange.reply(code, Location=url)


def cut(after: int) -> Fault:
    """Send the honest header, then `after` bytes of what was asked for, then hang up."""

    def fault(exchange: Exchange) -> None:
        served = exchange.owner.files[urlsplit(exchange.path).path]
        start = int(re.sub(r"\D", "", exchange.headers.get("range", "")) or 0)
        rest = served.data[start:]
        exchange.send_response(206 if start else 200)
        exchange.send_header("Content-Length", str(len(rest)))
        if start:
            exchange.send_header("Content-Range", f"bytes {start}-{len(served.data) - 1}/{len(served.data)}")
        if served.etag:
            exchange.send_header("ETag", served.etag)
        exchange.end_headers()
        exchange.wfile.write(rest[:after])
        exchange.hang_up()

    return fault


def endless(chunk: bytes = b"x" * 65536) -> Fault:
    """A chunked body that does not stop until the client hangs up."""

    def fault(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Transfer-Encoding", "chunked")
        exchange.end_headers()
        exchange.close_connection = True
        while True:
            exchange.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    return fault


def slow(seconds: float) -> Fault:
    """Wait before an honest answer."""

    def fault(exchange: Exchange) -> None:
        threading.Event().wait(seconds)
        exchange.owner.answer(exchange, exchange.owner.seen[-1])

    return fault
