"""A person's own Python function as a reward, in a process of its own: one that hangs is ended, one that crashes takes
nothing with it, and the run goes on.

    # my_rewards.py
    def short(samples):
        return [1.0 if len(sample.completion) < 80 else 0.0 for sample in samples]

The function is trusted: it is the person's code, with their rights. What a *model* wrote runs in ``core/code_sandbox``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.scored import Failure, Outcome, outcome
from tokenmill.config.rewards import FunctionReward
from tokenmill.core.errors import ConfigError

START_S = 120.0
"""To import the file, with what it imports."""
HANGS = 3
"""Samples that may hang one after the other before the rest of a call is not tried any more."""


class Function:
    """See :class:`~tokenmill.config.rewards.FunctionReward`. ConfigError where there is no such function."""

    def __init__(self, config: FunctionReward) -> None:
        file, _, function = config.path.rpartition(":")
        if not file or not function.isidentifier():
            raise ConfigError(f"reward function: {config.path!r} is not FILE.py:function")
        if not Path(file).is_file():
            raise ConfigError(f"reward function: there is no file {file}")
        self.name, self.timeout_s = config.name or function, config.timeout_s
        self._file, self._function = str(Path(file).resolve()), function
        self._process: subprocess.Popen[bytes] | None = None
        self._running()

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        if not samples:
            return []
        found = self._ask(samples)
        if not isinstance(found, Failure):
            return found
        if len(samples) == 1:
            return [found]
        outcomes: list[Outcome] = []  # one of them is at fault: which?
        hung = 0
        for sample in samples:
            one = Failure("timed_out", "not tried: others before it hung") if hung == HANGS else self._ask([sample])
            hung = hung + (hung < HANGS) if isinstance(one, Failure) and one.kind == "timed_out" else 0
            outcomes.append(one if isinstance(one, Failure) else one[0])
        return outcomes

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _ask(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        process = self._running()
        sent = json.dumps([vars(sample) for sample in samples], default=str).encode() + b"\n"
        reply = _exchange(process, sent, self.timeout_s)
        if isinstance(reply, Failure):
            self.close()
            return reply
        if "error" in reply:
            return Failure("raised", reply["error"])
        return [outcome(score) for score in reply["scores"]]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "tokenmill.align.rewards.function_worker", self._file, self._function]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            weakref.finalize(self, _end, self._process)
            first = _exchange(self._process, b"", START_S)
            problem = first.message if isinstance(first, Failure) else first.get("error")
            if problem:
                self.close()
                raise ConfigError(f"reward function: {self._file}:{self._function} cannot be used: {problem}")
        return self._process


def _exchange(process: subprocess.Popen[bytes], sent: bytes, timeout_s: float) -> dict[str, Any] | Failure:
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
                return Failure("timed_out", f"no answer in {timeout_s:g} s")
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
                    return Failure("raised", f"its process ended with status {process.wait()}")
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
