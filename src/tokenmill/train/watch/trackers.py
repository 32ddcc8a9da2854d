"""Curves elsewhere: TensorBoard files in the run folder, and W&B, MLflow or Trackio by name when they are installed.

TensorBoard's files are written by tensorboardX, which needs neither TensorBoard nor TensorFlow; to look at them:
``pip install tensorboard && tensorboard --logdir runs``. The other three keep their own settings (login, server,
project) in their own environment variables; nothing leaves this machine unless they are asked for. One that fails in
the middle of a run is switched off with a line on stderr: hours of training are worth more than a curve.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.core.log import get_logger
from tokenmill.train.watch.rows import Kind, Row, Sink
from tokenmill.train.watch_protocol import RunEnd, RunStart

log = get_logger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def trackers(names: Sequence[str]) -> list[Sink]:
    """The sinks of the trackers named. UsageError, before anything is trained, when one is not installed."""
    missing = [name for name in names if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise UsageError(
            f"trackers={','.join(names)}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"pip install {packages}, or leave it out (metrics.jsonl and report.html are always written)"
        )
    return [_MAKERS[name]() for name in names]


def scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a row, but for its step."""
    numbers = {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, int | float)}
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


class TensorBoard:
    """Sink of ``tensorboard/``: what an earlier process wrote past the checkpoint is marked as void."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: RunStart) -> None:
        """Open an event file."""
        from tensorboardX import SummaryWriter

        purge = {"purge_step": run.step + 1} if run.step else {}
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), flush_secs=10, **purge)

    def put(self, kind: Kind, row: Row) -> None:
        """Numbers as curves, samples and events as text. TensorBoard draws text as Markdown: the fence keeps it."""
        if kind in ("step", "eval"):
            for name, value in scalars(row).items():
                group = "" if "/" in name else "eval/" if kind == "eval" else "train/"
                self._writer.add_scalar(group + name.removeprefix("eval_"), value, row["step"])
        elif kind == "sample":
            text = f"{row['prompt']}▸{row['text']}".replace("\n", "\n    ")
            self._writer.add_text("sample", f"    {text}", row["step"])
        else:
            self._writer.add_text(f"event/{row['event']}", str(row["message"]), row["step"])

    def end(self, end: RunEnd) -> None:
        """Flush and close."""
        self._writer.close()


class Remote:
    """Sink of a tracker with a life of its own. `begin` gives (log numbers at a step, finish)."""

    def __init__(self, name: str, begin: Callable[[RunStart], tuple[Callable[..., Any], Callable[..., Any]]]) -> None:
        self._name, self._begin = name, begin
        self._log: Callable[..., Any] | None = None
        self._finish: Callable[..., Any] | None = None

    def start(self, run: RunStart) -> None:
        """Open the run there; its own errors are the person's to see before hours are spent."""
        try:
            self._log, self._finish = self._begin(run)
        except Exception as error:
            raise UsageError(f"tracker {self._name} does not start: {type(error).__name__}: {error}") from error

    def put(self, kind: Kind, row: Row) -> None:
        """Numbers only: texts stay on this machine."""
        if self._log is None or kind not in ("step", "eval"):
            return
        try:
            self._log(scalars(row), step=row["step"])
        except Exception as error:
            log.warning("tracker %s is switched off: %s: %s", self._name, type(error).__name__, error)
            self._log = None

    def end(self, end: RunEnd) -> None:
        """Close the run there."""
        if self._finish is not None:
            with suppress(Exception):  # the run is over here, whatever a server says
                self._finish()


def settings(run: RunStart) -> dict[str, Any]:
    """The recipe as flat ``a.b: value``, which is what trackers sort runs by."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    walk("", run.recipe.model_dump(mode="json"))
    return flat


def _wandb(run: RunStart) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import wandb

    active = wandb.init(
        project="tokenmill",
        name=run.folder.name,
        id=_id(run.folder),
        resume="allow",
        dir=str(run.folder),
        config=settings(run),
    )
    return active.log, active.finish


def _mlflow(run: RunStart) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import mlflow

    mlflow.set_experiment("tokenmill")
    mlflow.start_run(run_name=run.folder.name)
    if not run.step:
        mlflow.log_params({key: str(value)[:500] for key, value in settings(run).items()})
    return mlflow.log_metrics, mlflow.end_run


def _trackio(run: RunStart) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import trackio

    trackio.init(project="tokenmill", name=run.folder.name, config=settings(run), resume="allow")
    return trackio.log, trackio.finish


def _id(folder: Path) -> str:
    """The same for a run that goes on, so that its curve does too."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.resolve().name)


_MAKERS: dict[str, Callable[[], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: Remote("wandb", _wandb),
    "mlflow": lambda: Remote("mlflow", _mlflow),
    "trackio": lambda: Remote("trackio", _trackio),
}
