"""The installed command as people call it: a process of its own, on pipes or on a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., subprocess.CompletedProcess[str]]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07")
PATIENCE = 120.0  # seconds for a busy machine; nothing here measures time


def environment(home: Path) -> dict[str, str]:
    """What a command is given: the store, a fixed width, no cursor reports (nobody here answers them)."""
    fixed = {"TOKENMILL_HOME": str(home), "COLUMNS": "80", "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    return {**os.environ, **fixed, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What ``--json`` printed, which is all that stdout may hold."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


def runner(home: Path, cwd: Path) -> Run:
    def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, **options} if "input" not in options else options
        return subprocess.run(
            ["tokenmill", *words],
            env=environment(home),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    return run


class Terminal:
    """A child process on a pseudo-terminal: type, and wait for words."""

    def __init__(self, words: list[str], env: dict[str, str], cwd: Path) -> None:
        self._fd, child = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=child, stdout=child, stderr=child, env=env, cwd=cwd, start_new_session=True, close_fds=True
        )
        os.close(child)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, pattern: str) -> str:
        """What came since the last wait, up to and with `pattern`."""
        ends = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            assert self._read(ends), f"{pattern!r} did not come; got: {self.seen[-2000:]!r}"
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def _read(self, ends: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux: the child closed the terminal
            return False
        self.seen += ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        os.close(self._fd)
