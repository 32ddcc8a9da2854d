"""Training speed and memory here, ours and transformers' in turn: same weights, tokens, dtype, cores and optimiser.

Each side is a process of its own, so that the peak of its memory is its own; both stay loaded and take turns, so that a
machine that is slow for a while is slow for both. Rates are of whole optimiser steps (forward, backward, clipping,
AdamW); the first step, which warms up, is not counted.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenmill.core.errors import NotFoundError, UsageError, did_you_mean
from tokenmill.core.threads import SETTINGS
from tokenmill.evals.cores import Cores
from tokenmill.evals.driver import Driver
from tokenmill.evals.peers import ENVIRONMENT

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
        # ours imports tokenmill; a foreign Python must not see it, nor anything beside the driver
        isolated = [] if name == "tokenmill" else ["-I"]
        command = [str(python), *isolated, str(DRIVERS[name]), str(folder), *work.words()]
        environment = {"OMP_NUM_THREADS": str(cores.threads), "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
        if name == "tokenmill":  # as `tokenmill train` sets them for itself
            environment |= SETTINGS
        self._driver = Driver(f"training with {name}", command, environment, cores)
        self.hello = self._driver.hello
        self.close = self._driver.close

    def steps(self, count: int) -> tuple[float, int]:
        """Do so many steps: tokens a second, and bytes of this process's peak so far."""
        said = self._driver.ask(str(count))
        return count * self._work.tokens / said["seconds"], said["peak_memory"]


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
