"""Watching a run: everything a recipe asks for, as one `Watcher` for the loop.

    with_these = watchers(recipe)                   # refuses a tracker that is not installed, before anything is done
    loop = Loop(..., watcher=Watchers(*with_these))

The loop's own words become rows once (`rows`), and the rows go to every sink: files, trackers, screen, report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.config.recipe import Recipe
from tokenmill.train.report import Report
from tokenmill.train.watch.files import Files, RunFile
from tokenmill.train.watch.profiler import Profiler
from tokenmill.train.watch.progress import Progress
from tokenmill.train.watch.rows import Meter, Sink
from tokenmill.train.watch.statistics import Statistics
from tokenmill.train.watch.trackers import trackers
from tokenmill.train.watch_protocol import (
    EvalMetrics,
    Event,
    Gradients,
    RunEnd,
    RunStart,
    Sample,
    StepMetrics,
    Watcher,
)

__all__ = ["Watch", "watchers"]


def watchers(recipe: Recipe, *, screen: bool = True) -> list[Watcher]:
    """The watchers of a recipe. ``screen=False``: nothing is shown while it runs (files, trackers and report are).

    UsageError when a tracker that the recipe names is not installed.
    """
    sinks: list[Sink] = [Files(recipe.log_every), *trackers(recipe.trackers), *([Progress()] if screen else [])]
    chosen: list[Watcher] = [Watch([*sinks, Report()], Statistics(recipe.stats_every))]
    return [*chosen, Profiler(recipe.profile)] if recipe.profile else chosen


class Watch(Watcher):
    """Turns what the loop tells into rows and hands them to sinks, in order; the report, which reads files, comes
    last."""

    def __init__(self, sinks: Sequence[Sink], statistics: Statistics) -> None:
        self._sinks = list(sinks)
        self._statistics = statistics
        self._meter: Meter | None = None

    def on_start(self, run: RunStart) -> None:
        """Measure what this machine can do, then start the sinks."""
        self._meter = Meter(run)
        self._sinks = [RunFile(self._meter), *self._sinks]
        for sink in self._sinks:
            sink.start(run)

    def on_gradients(self, step: int, gradients: Gradients) -> None:
        """Norms, in the steps that are looked at."""
        self._statistics.gradients(step, gradients)

    def on_step(self, metrics: StepMetrics) -> None:
        """A row of a step."""
        assert self._meter is not None, "on_step before on_start"
        self._put("step", self._meter.step(metrics) | self._statistics.after_step())

    def on_eval(self, metrics: EvalMetrics) -> None:
        """A row of an evaluation."""
        assert self._meter is not None, "on_eval before on_start"
        self._put("eval", self._meter.evaluation(metrics))

    def on_sample(self, sample: Sample) -> None:
        """A row of a sample."""
        self._put("sample", {"step": sample.step, "prompt": sample.prompt, "text": sample.text})

    def on_event(self, event: Event) -> None:
        """A row of an event; its data stand beside its message."""
        self._put("event", {**event.data, "step": event.step, "event": event.kind, "message": event.message})

    def on_end(self, end: RunEnd) -> None:
        """End every sink. After a failure before the start there is nothing to end."""
        if self._meter is not None:
            for sink in self._sinks:
                sink.end(end)

    def _put(self, kind: Any, row: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.put(kind, row)
