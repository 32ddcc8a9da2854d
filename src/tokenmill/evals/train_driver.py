"""Our side of ``bench train``: the training loop itself, steps on request, and what they took.

Arguments and answers are those of ``hf_train_driver``. The loop runs as in any training run; a watcher holds it between
steps until more are asked for.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from tokenmill.adapt import adapt
from tokenmill.config.compose import compose
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.device import pick_device
from tokenmill.core.machine import process_memory
from tokenmill.core.version import __version__
from tokenmill.data.batch import NO_LABEL, Batch, Sample
from tokenmill.models import load_model
from tokenmill.train.loop import Loop, Settings
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.optim import build_optimizer
from tokenmill.train.schedules import Schedule
from tokenmill.train.watch_protocol import StepMetrics, Watcher


class Same:
    """The same batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batch

    def state(self) -> dict[str, Any]:
        """None is needed."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """None is needed."""


class Answer(Watcher):
    """Holds the loop after a step until the next request, and answers those that are done."""

    def __init__(self, answers: IO[str], device: torch.device) -> None:
        self._answers, self._device = answers, device
        self._wanted, self._done, self._began = 1, 0, 0.0

    def on_step(self, metrics: StepMetrics) -> None:
        """One step more; the first, which warms up, is answered by the versions."""
        self._done += 1
        if self._done < self._wanted:
            return
        if self._began:
            self._say({"seconds": time.perf_counter() - self._began, "peak_memory": self._memory()})
        else:
            versions = {"torch": torch.__version__, "tokenmill": __version__}
            self._say({"versions": versions, "threads": torch.get_num_threads()})
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self._wanted, self._done, self._began = int(line), 0, time.perf_counter()

    def _say(self, document: dict[str, Any]) -> None:
        print(json.dumps(document), file=self._answers, flush=True)

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return process_memory()[1]


def same_batch(vocabulary: int, rows: int, length: int) -> Batch:
    """``rows`` documents of random tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, length), generator=draw).numpy()
    return Batch.of([Sample(n, row, np.append(row[1:], NO_LABEL)) for n, row in enumerate(ids)])


def main() -> None:
    """Load, adapt, train until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    folder, method, rows, length, dtype = sys.argv[1:]
    device = pick_device()
    model = load_model(Path(folder), device=device, dtype=dtype)
    if method == "lora":
        adapt(model, AdapterConfig(rank=16, alpha=32.0))
    else:
        model.decoder.requires_grad_(True)
    recipe = compose("sft", ["model=given", "data=given", "weight_decay=0.1"]).recipe
    with tempfile.TemporaryDirectory() as scratch:
        optimizer = build_optimizer(model.decoder, recipe, Path(scratch))
        batch = same_batch(model.decoder.config.vocab_size, int(rows), int(length))
        schedule = Schedule("constant", peak=1e-5, total=10**9)
        parts = (model.decoder, NextToken(), Same(batch), optimizer, schedule)
        watcher = Answer(answers, device)
        Loop(*parts, folder=Path(scratch), settings=Settings(), device=device, watcher=watcher).run()


if __name__ == "__main__":
    main()
