"""Training speed and memory here, ours and transformers' in turn: same weights, tokens, dtype, cores and optimiser.

Each side is a process of its own, so that the peak of its memory is its own; both stay loaded and take turns, so that a
machine that is slow for a while is slow for both. Rates are of whole optimiser steps (forward, backward, clipping,
AdamW); the first step, which warms up, is not counted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tokenmill.core.errors import NotFoundError, TokenmillError, UsageError, did_you_mean
from tokenmill.evals.peers import ENVIRONMENT, Cores

Method = Literal["full", "lora"]
METHODS: tuple[Method, ...] = ("full", "lora")
PEERS = ("transformers", "peft")
DRIVERS = {
    "tokenmill": Path(__file__).with_name("train_driver.py"),
    "transformers": Path(__file__).with_name("hf_train_driver.py"),
}


@dataclass(frozen=True)
class Work:
    """What a step is: ``rows`` documents of ``length`` tokens, trained by ``method`` in ``dtype``."""

    method: Method
    rows: int
    length: int
    dtype: str

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def words(self) -> list[str]:
        """As a driver takes them."""
        return [self.method, str(self.rows), str(self.length), self.dtype]


class Side:
    """A process that trains when it is told to."""

    def __init__(self, name: str, python: Path, folder: Path, work: Work, cores: Cores) -> None:
        self.name, self._work = name, work
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        # ours imports tokenmill; a foreign Python must not see it, nor anything beside the driver
        isolated = [] if name == "tokenmill" else ["-I"]
        command = [str(python), *isolated, str(DRIVERS[name]), str(folder), *work.words()]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        environment |= {"OMP_NUM_THREADS": str(cores.threads), "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
        with cores.all():
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
            )
        try:
            self.hello = self._read()
        except BaseException:
            self.close()
            raise

    def steps(self, count: int) -> tuple[float, int]:
        """Do so many steps: tokens a second, and bytes of this process's peak so far."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it said before it ended is what _read tells
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        said = self._read()
        return count * self._work.tokens / said["seconds"], said["peak_memory"]

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise TokenmillError(f"training with {self.name} ended with {status}: {self._log.read().strip()[-600:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(
    folder: Path,
    work: Work,
    *,
    peer: Path | None,
    cores: Cores,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Speed and peak memory of ``work`` on the Hugging Face folder, beside transformers when ``peer`` is its Python.

    Rates are medians over ``rounds`` of ``steps`` each; ``ratio`` holds ours over theirs, of each round's speed (the
    median) and of the peaks.
    """
    pythons = {"tokenmill": Path(sys.executable)} | ({"transformers": peer} if peer else {})
    with ExitStack() as stack:
        sides = []
        for name, python in pythons.items():
            sides.append(Side(name, python, folder, work, cores))
            stack.callback(sides[-1].close)
        rates: dict[str, list[float]] = {side.name: [] for side in sides}
        memory: dict[str, int] = {}
        for _ in range(rounds):
            for side in sides:
                rate, memory[side.name] = side.steps(steps)
                rates[side.name].append(rate)
    result: dict[str, Any] = {"method": work.method, "rows": work.rows, "length": work.length, "dtype": work.dtype}
    for side in sides:
        result[side.name] = {
            "tok_s": statistics.median(rates[side.name]),
            "peak_memory_mb": memory[side.name] / 1e6,
            **side.hello,
        }
    if peer:
        speed = [ours / theirs for ours, theirs in zip(rates["tokenmill"], rates["transformers"], strict=True)]
        result["ratio"] = {
            "tok_s": statistics.median(speed),
            "peak_memory": memory["tokenmill"] / memory["transformers"],
        }
    return result


def wanted(given: str, known: Sequence[str], what: str) -> list[str]:
    """``a,b`` as a list of known names; UsageError for another."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no {what} {unknown[0]!r}{did_you_mean(unknown[0], known)}; use {', '.join(known)}")
    return list(dict.fromkeys(names))


def find_python(packages: Sequence[str], folder: Path | None) -> Path:
    """A Python that has the packages: ours, or ``hf/bin/python`` below a folder or ``TOKENMILL_PEERS``."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing and folder is None:
        return Path(sys.executable)
    for root in (folder, os.environ.get(ENVIRONMENT)):
        for inner in ("hf/bin/python", "bin/python"):
            if root and (Path(root) / inner).is_file():
                return Path(root) / inner
    raise NotFoundError(
        f"{' and '.join(missing or packages)} not found: pip install {' '.join(missing or packages)}, "
        f"or give --peer-dir or {ENVIRONMENT} a folder with hf/bin/python"
    )
