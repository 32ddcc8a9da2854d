"""Runs Python that nobody has read, such as what a model wrote, in a process that can do nothing but compute.

    result = run_code("print(sum(range(10)))")
    assert result.status == "ok" and result.stdout == "45\\n"

A fresh interpreter without site packages and environment, in a fresh empty folder that goes with it. It reads Python's
standard library and writes into that folder; other files, the network, other processes and programs do not exist for
it, and time, memory, output and disk are bounded. ``core/code_sandbox_launch.py`` says how. Where the kernel offers no
isolation (not Linux, or a container that hides it) nothing runs, unless the caller says ``unisolated=True``.

Several threads may call at once. What it costs: a start of Python, some 40 ms.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tokenmill.core import code_sandbox_launch as launch
from tokenmill.core.errors import TokenmillError, UsageError

Status = Literal["ok", "error", "timeout", "memory"]
NEEDED = ("privileges", "landlock", "seccomp")
"""Layers without which foreign code does not run; ``namespaces`` is put on where it can be."""

MOST_OUTPUT = 1 << 20
"""Bytes of stdout and of stderr each; a program that writes more is stopped."""
MOST_DISK, MOST_FILES = 64 << 20, 256
"""Bytes and files that a program may keep in its folder."""
_FILE_BYTES, _OPEN_FILES = 16 << 20, 32
_LOOK_S = 0.05


@dataclass(frozen=True)
class CodeResult:
    """What became of a program."""

    status: Status
    """``ok``: it ended by itself with exit status 0; ``error``: it raised, exited with another status, crashed, or
    wrote more than it may; ``timeout``; ``memory``."""
    stdout: str
    stderr: str
    """With the traceback, and in the last line the reason if it was stopped."""
    seconds: float


@dataclass(frozen=True)
class Isolation:
    """What this machine can put around a program: the layers, and why others are missing."""

    active: tuple[str, ...]
    missing: dict[str, str]

    @property
    def enough(self) -> bool:
        """Whether foreign code may run: no files, no network, no processes."""
        return all(name in self.active for name in NEEDED)


class SandboxError(TokenmillError):
    """A program could not be started isolated, although this machine can isolate."""


@functools.cache
def isolation() -> Isolation:
    """Tried out once in a process of its own."""
    done = subprocess.run(_command(None), capture_output=True, env={}, cwd="/", timeout=60, check=False)
    try:
        found: dict[str, str | None] = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        return Isolation((), dict.fromkeys(NEEDED, f"Python does not start in isolated mode: {reason}"))
    return Isolation(
        tuple(name for name, problem in found.items() if problem is None),
        {name: problem for name, problem in found.items() if problem is not None},
    )


def run_code(
    source: str, *, stdin: str = "", timeout_s: float = 5.0, memory_mb: int = 512, unisolated: bool = False
) -> CodeResult:
    """Run a program and wait for its end.

    Args:
        stdin: what it reads.
        timeout_s: seconds on the clock, the start of Python among them.
        memory_mb: address space in MiB; Python itself takes some 30.
        unisolated: run it even where this machine cannot isolate: only for code that you would run yourself.

    Raises:
        UsageError: a limit that is none, or no isolation on this machine.
    """
    if timeout_s <= 0 or memory_mb < 64:
        raise UsageError(f"timeout_s={timeout_s}, memory_mb={memory_mb}: a program needs time, and 64 MiB at least")
    found = isolation()
    if not found.enough and not unisolated:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.missing.items())
        raise UsageError(f"this machine cannot isolate foreign code ({reasons}). It needs Linux 5.13 or later with "
                         "Landlock and seccomp; containers may hide them")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tokenmill-code-") as name:
        root = Path(name)
        folder, program = root / "files", root / "program.py"
        folder.mkdir()
        program.write_bytes(source.encode("utf-8", "surrogatepass"))
        limits = {"memory": memory_mb << 20, "cpu_s": math.ceil(timeout_s) + 1, "file_bytes": _FILE_BYTES}
        order: dict[str, object] = {
            "program": str(program),
            "folder": str(folder),
            "layers": found.active if found.enough else (),
            "limits": {**limits, "files": _OPEN_FILES},
        }
        return _run(order, folder, stdin, timeout_s)


def run_tests(program: str, tests: str, *, timeout_s: float = 5.0, memory_mb: int = 512) -> CodeResult:
    """Run a program and, in the same module, tests of it that raise when they fail.

    ``ok`` only if the last line of the tests was reached: a program that exits with status 0 before them has failed,
    which is the first thing that a model in training finds out.
    """
    mark = secrets.token_hex(16)
    result = run_code(f"{program}\n\n{tests}\n\nprint('\\n{mark}')\n", timeout_s=timeout_s, memory_mb=memory_mb)
    before, _, after = result.stdout.rpartition(f"\n{mark}\n")
    if not before and not result.stdout.startswith(f"\n{mark}\n"):
        status = "error" if result.status == "ok" else result.status
        return replace(result, status=status)
    return replace(result, stdout=before + after)


def _command(order: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-X", "utf8", "-B", launch.__file__, json.dumps(order)]


def _run(order: dict[str, object], folder: Path, stdin: str, timeout_s: float) -> CodeResult:
    ready, ready_end = os.pipe()
    begin = time.monotonic()
    with tempfile.TemporaryFile() as given, open(ready, "rb") as started:
        given.write(stdin.encode("utf-8", "surrogatepass"))
        given.seek(0)
        try:
            process = subprocess.Popen(
                _command({**order, "ready": ready_end}),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(ready_end,),
                start_new_session=True,
            )
        finally:
            os.close(ready_end)
        try:
            outputs, stopped = _watch(process, folder, begin + timeout_s)
        finally:
            _kill(process)
        seconds = time.monotonic() - begin
        stdout, stderr = (text.decode("utf-8", "replace") for text in outputs)
        if process.returncode == launch.BROKEN_STATUS and not started.read():
            raise SandboxError(f"the sandbox could not be put up: {stderr.strip()}")
    status = _status(process.returncode, stopped, seconds >= timeout_s)
    return CodeResult(status, stdout, stderr + (f"\n{stopped}\n" if stopped else ""), seconds)


def _watch(process: subprocess.Popen[bytes], folder: Path, deadline: float) -> tuple[tuple[bytes, bytes], str]:
    """What it writes, and why it has to be stopped; the empty string when it ended by itself."""
    assert process.stdout is not None
    assert process.stderr is not None
    texts = (bytearray(), bytearray())
    stopped, look = "", time.monotonic() + _LOOK_S
    with selectors.DefaultSelector() as waiting:
        for pipe, text in zip((process.stdout, process.stderr), texts, strict=True):
            waiting.register(pipe, selectors.EVENT_READ, text)
        while waiting.get_map() and not stopped:
            for key, _ in waiting.select(_LOOK_S):
                if not (piece := os.read(key.fd, 1 << 16)):
                    waiting.unregister(key.fileobj)
                key.data.extend(piece)
            now = time.monotonic()
            if now >= deadline:
                stopped = "stopped: out of time"
            elif max(map(len, texts)) > MOST_OUTPUT:
                stopped = f"stopped: more than {MOST_OUTPUT} bytes of output"
            elif now >= look:
                look = now + _LOOK_S
                stopped = _too_much_disk(folder)
        if not stopped:  # both pipes are closed, which the program may do and go on
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                stopped = "stopped: out of time"
    stdout, stderr = (bytes(text[:MOST_OUTPUT]) for text in texts)
    return (stdout, stderr), stopped


def _too_much_disk(folder: Path) -> str:
    size = count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
            if size > MOST_DISK or count > MOST_FILES:
                return f"stopped: more than {MOST_DISK} bytes or {MOST_FILES} files in its folder"
    return ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process, and what it left behind where it was not isolated."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _status(returncode: int, stopped: str, late: bool) -> Status:
    if "out of time" in stopped or returncode == -signal.SIGXCPU or (returncode == -signal.SIGKILL and late):
        return "timeout"
    if stopped:
        return "error"
    if returncode in (launch.MEMORY_STATUS, -signal.SIGKILL):  # the second: the kernel's choice when all memory is gone
        return "memory"
    return "ok" if returncode == 0 else "error"
