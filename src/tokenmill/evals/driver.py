"""A program of another Python that is measured: it answers each line it is sent with a line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from tokenmill.core.errors import TokenmillError
from tokenmill.evals.cores import Cores


class Driver:
    """The running program. ``hello`` is what it said first; TokenmillError, with its last words, if it ends early."""

    def __init__(self, what: str, command: Sequence[str], environment: Mapping[str, str], cores: Cores) -> None:
        """``what``: how errors call it. ``environment`` comes on top of ours, without our settings of OpenMP."""
        self._what = what
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        with cores.all():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**inherited, **environment},
            )
        try:
            self.hello = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it said before it ended is what _read tells
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise TokenmillError(f"{self._what} ended with {status}: {self._log.read().strip()[-600:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
