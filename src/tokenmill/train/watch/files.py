"""The run folder's own files: ``metrics.jsonl``, ``samples.jsonl`` and ``run.json``.

One JSON object a line, written and handed to the system at once: what a killed process had told is there. When a run
goes on, lines past its checkpoint are cut off, for those steps will be done again. A number that JSON has no word for
(not a number, infinite) is null.
"""

from __future__ import annotations

import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import torch

from tokenmill.core.finite import finite
from tokenmill.core.log import get_logger
from tokenmill.core.machine import probe_machine
from tokenmill.core.paths import atomic_write
from tokenmill.core.version import __version__
from tokenmill.train.watch.rows import Kind, Meter, Row
from tokenmill.train.watch_protocol import RunEnd, RunStart

log = get_logger(__name__)

METRICS, SAMPLES, RUN = "metrics.jsonl", "samples.jsonl", "run.json"


class Files:
    """Sink of the run folder. Steps are written every ``log_every``, all else always."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._metrics: IO[str] | None = None
        self._samples: IO[str] | None = None

    def start(self, run: RunStart) -> None:
        """Open the files behind what is still true."""
        for name in (METRICS, SAMPLES):
            cut_behind(run.folder / name, run.step)
        self._metrics = (run.folder / METRICS).open("a", encoding="utf-8")
        self._samples = (run.folder / SAMPLES).open("a", encoding="utf-8")

    def put(self, kind: Kind, row: Row) -> None:
        """Append the row to the file of its kind."""
        if kind == "step" and row["step"] % self._log_every and "skipped" not in row:
            return
        file = self._samples if kind == "sample" else self._metrics
        assert file is not None, "put before start"
        try:
            file.write(json_line(row))
            file.flush()
        except OSError as error:  # a full disk: what a run has learned is worth more than a line about it
            log.warning("%s: a line is lost: %s", file.name, error)

    def end(self, end: RunEnd) -> None:
        """Close the files."""
        for file in (self._metrics, self._samples):
            if file is not None:
                file.close()


class RunFile:
    """Sink of ``run.json``: what the run is, where it runs, how it stands. Written at the start and at the end."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._path = Path()
        self._said: dict[str, Any] = {}

    def start(self, run: RunStart) -> None:
        """Describe the run; a run that goes on keeps when it began."""
        self._path = run.folder / RUN
        before = read_json(self._path)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._said = {
            "recipe": run.recipe.recipe,
            "status": "running",
            "started": before.get("started", now),
            "resumed": [*before.get("resumed", []), {"at": now, "step": run.step}] if run.step else [],
            "total_steps": run.total_steps,
            "tokens_per_step": run.tokens_per_step,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trainable": run.trainable,
            "world_size": run.world_size,
            "machine": describe_machine(self._meter),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        }
        self._write()

    def put(self, kind: Kind, row: Row) -> None:
        """Rows are in the other files."""

    def end(self, end: RunEnd) -> None:
        """How the run ended, and with which figures."""
        self._said["status"] = end.reason
        self._said["ended"] = datetime.now().astimezone().isoformat(timespec="seconds")
        self._said["step"] = end.step
        self._said["metrics"] = dict(end.metrics)
        self._said["model"] = None if end.model is None else end.model.name
        self._write()

    def _write(self) -> None:
        with atomic_write(self._path) as file:
            file.write((json.dumps(finite(self._said), indent=2, ensure_ascii=False) + "\n").encode())


def describe_machine(meter: Meter) -> dict[str, Any]:
    """Hardware and software that figures of speed belong to."""
    seen = probe_machine()
    gpu = torch.cuda.get_device_name(meter.device) if meter.device.type == "cuda" else None
    return {
        "cpu": seen.cpu,
        "threads": torch.get_num_threads(),
        "memory_bytes": seen.memory_total,
        "device": gpu or str(meter.device),
        "dtype": str(meter.dtype).removeprefix("torch."),
        "peak_tflops": meter.peak_flops / 1e12,
        "gflop_per_token": meter.flops_per_token / 1e9,
        "torch": torch.__version__,
        "tokenmill": __version__,
        "system": seen.system,
    }


def cut_behind(path: Path, step: int) -> None:
    """Drop the lines of steps past `step`, and a last one that was torn off by a kill."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.write("".join(kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def json_line(row: Row) -> str:
    """One line of strict JSON."""
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it is broken."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
