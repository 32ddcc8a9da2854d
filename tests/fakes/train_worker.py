"""A training run in a process of its own, to be killed: ``python train_worker.py FOLDER [resume]``.

FOLDER holds ``recipe.json``, of any objective; the run goes to FOLDER/runs. Prints every step and how it ended.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenmill.align.policy import train
from tokenmill.train.watch_protocol import StepMetrics, Watcher


class Steps(Watcher):
    """Tells the parent of every step, so that it can kill between any two of them."""

    def on_step(self, metrics: StepMetrics) -> None:
        print(f"step {metrics.step} {metrics.loss!r}", flush=True)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if len(sys.argv) > 2:
        result = train(resume=place / "runs" / "latest", watchers=[Steps()])
    else:
        recipe = json.loads((place / "recipe.json").read_text())
        result = train(recipe, watchers=[Steps()])
    print(f"end {result.reason} {result.step}", flush=True)
