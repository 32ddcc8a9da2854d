"""A server of OpenAI's ``/v1/chat/completions`` that answers by a script, notes what it is asked, fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | tuple[str, str] | tuple[int, dict[str, str], str]
"""A text; a text with its finish_reason; or status, headers and body of something else."""


class FakeEndpoint:
    """Answers with what `script` makes of the request's body. Notes bodies, headers and times; `busiest` is the largest
    number of requests under way at a time."""

    def __init__(self, script: Callable[[dict[str, Any]], Reply]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            said = self.script(body)
        finally:
            with self.lock:
                self.busy -= 1
        if isinstance(said, tuple) and len(said) == 3:
            return said[0], said[1], said[2].encode()
        text, reason = said if isinstance(said, tuple) else (said, "stop")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        return 200, {}, json.dumps({"choices": [choice]}).encode()


@contextmanager
def endpoint(script: Callable[[dict[str, Any]], Reply]) -> Iterator[FakeEndpoint]:
    """A running one; its ``url`` ends in ``/v1``."""
    fake = FakeEndpoint(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["path"] = self.path
            status, headers, content = fake.reply(body, dict(self.headers.items()))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
