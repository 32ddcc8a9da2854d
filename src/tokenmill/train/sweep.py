"""Several runs of one recipe and what came of each: a grid, or a search that learns from run to run.

A run that fails is a line of the table, not the end of the sweep; one that is stopped by hand ends it. The table is
written after every run (``summary.json``), so nothing of a long sweep is lost.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.config.sweep import Range, grid, space
from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.core.paths import atomic_write
from tokenmill.train.run import RunResult

Run = Callable[[list[str]], RunResult]
"""Trains with these overrides added."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    overrides: list[str]
    folder: str | None
    value: float | None
    """The held-out loss; the training loss of the last step where nothing is held out; None if it failed."""
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    stopped: bool = False


@dataclass
class Sweep:
    """All runs so far."""

    folder: Path
    runs: list[SweptRun] = field(default_factory=list)

    @property
    def best(self) -> SweptRun | None:
        """The run with the lowest loss."""
        done = [run for run in self.runs if run.value is not None]
        return min(done, key=lambda run: run.value or 0.0, default=None)

    def add(self, run: SweptRun) -> None:
        """Remember a run and write the table anew."""
        self.runs.append(run)
        with atomic_write(self.folder / "summary.json") as file:
            file.write((json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        best = self.best
        return {"runs": [asdict(run) for run in self.runs], "best": None if best is None else asdict(best)}

    def table(self) -> list[tuple[str, str, str]]:
        """(overrides, loss, folder or problem), the best first, failed ones last."""
        ranked = sorted(self.runs, key=lambda run: math.inf if run.value is None else run.value)
        return [
            (
                " ".join(run.overrides),
                "" if run.value is None else f"{run.value:.4f}",
                run.problem or (f"{run.folder} (stopped)" if run.stopped else run.folder or ""),
            )
            for run in ranked
        ]


def sweep_grid(sweeps: Sequence[str], run: Run, *, out: Path, recipe: str) -> Iterator[Sweep]:
    """Run every combination; the sweep so far after each."""
    runs = grid(sweeps)
    sweep = Sweep(_folder(out, recipe))
    for overrides in runs:
        sweep.add(_done(overrides, run))
        yield sweep
        if sweep.runs[-1].stopped:
            return


def sweep_search(sweeps: Sequence[str], run: Run, *, trials: int, seed: int, out: Path, recipe: str) -> Iterator[Sweep]:
    """`trials` runs whose values Optuna's TPE chooses by the losses before; the sweep so far after each.

    UsageError where optuna is not installed.
    """
    ranges = space(sweeps)
    try:
        import optuna
    except ImportError as error:
        raise UsageError("--sweep-optuna needs optuna: pip install 'tokenmill[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
    sweep = Sweep(_folder(out, recipe))
    for _ in range(trials):
        trial = study.ask()
        done = _done([one.override(_suggested(trial, one)) for one in ranges], run)
        if done.value is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, done.value)
        sweep.add(done)
        yield sweep
        if done.stopped:
            return


def _suggested(trial: Any, one: Range) -> Any:
    if one.kind == "choice":
        return trial.suggest_categorical(one.key, one.choices)
    if one.kind == "int":
        return trial.suggest_int(one.key, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(one.key, one.low, one.high, log=one.log)


def _done(overrides: list[str], run: Run) -> SweptRun:
    try:
        result = run(overrides)
    except UsageError:
        raise  # no other run would be any better
    except TokenmillError as error:
        return SweptRun(overrides, None, None, problem=str(error).splitlines()[0])
    metrics = dict(result.metrics)
    value = metrics.get("eval_loss", metrics.get("loss"))
    finite = value is not None and math.isfinite(value)
    return SweptRun(
        overrides,
        str(result.folder),
        value if finite else None,
        metrics={name: number for name, number in metrics.items() if math.isfinite(number)},
        problem=None if finite else f"its loss is {value}",
        stopped=result.reason == "stopped",
    )


def _folder(out: Path, recipe: str) -> Path:
    return out / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{recipe}-sweep"
