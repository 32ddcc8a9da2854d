"""A process that answers lines of JSON with lines of JSON, by the clock: one that hangs is ended, one that crashes
takes nothing with it. For people's own functions: rewards, tools. What a *model* wrote runs in ``core/code_sandbox``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
import weakref
from collections.abc import Sequence
from typing import Any

START_S = 120.0
"""To import people's files, with what those import."""


class LineProcess:
    """One such process; its first line says what it is. One caller at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> dict[str, Any]:
        """Start it, anew if it runs; its first line. Raises what :meth:`ask` raises."""
        self.close()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, _end, self._process)
        return self._exchange(b"", START_S)

    def ask(self, value: Any, timeout_s: float) -> dict[str, Any]:
        """Send a value, read the answer. TimeoutError: none came in time; EOFError: the process ended. It is closed
        then, and has to be started again."""
        return self._exchange(json.dumps(value, default=str).encode() + b"\n", timeout_s)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _exchange(self, sent: bytes, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        try:
            return _exchange(self._process, sent, timeout_s)
        except (TimeoutError, EOFError):
            self.close()
            raise


def _exchange(process: subprocess.Popen[bytes], sent: bytes, timeout_s: float) -> dict[str, Any]:
    """Send a line and read one, both by the clock: a function that hangs does not read either."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    rest, reply = memoryview(sent), bytearray()
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        if rest:
            waiting.register(process.stdin, selectors.EVENT_WRITE)
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer in {timeout_s:g} s")
            for key, events in waiting.select(left):
                if events & selectors.EVENT_WRITE:
                    try:
                        rest = rest[os.write(key.fd, rest[:65536]) :]
                    except BrokenPipeError:
                        rest = rest[len(rest) :]
                    if not rest:
                        waiting.unregister(key.fileobj)
                elif piece := os.read(key.fd, 1 << 16):
                    reply += piece
                else:
                    raise EOFError(f"its process ended with status {process.wait()}")
    found: dict[str, Any] = json.loads(reply)
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
