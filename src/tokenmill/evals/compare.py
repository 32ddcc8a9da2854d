"""A base model beside tuned ones: differences row by row, with intervals, by task and by category."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.evals.gates import Figure
from tokenmill.evals.paired import CONFIDENCE, Difference, paired_difference
from tokenmill.evals.tasks.folder import Results
from tokenmill.evals.tasks.sample import Sample
from tokenmill.evals.tasks.text_metrics import CORPUS

NEEDED = ("shots", "seed", "limit", "samples", "temperature")
"""Settings in which two results must agree."""


@dataclass(frozen=True)
class Line:
    """One figure of one tuned model beside the base's."""

    model: int
    """Place among the tuned models."""
    task: str
    metric: str
    category: str
    """Empty for all rows."""
    counts: bool
    """Whether it is the task's main figure."""
    difference: Difference
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves out zero, and where McNemar's test, if it can be made,
        agrees: the bootstrap alone is too sure of few rows that differ. Else empty."""
        one = self.difference
        if one.p is not None and one.p >= 1 - CONFIDENCE:
            return ""
        up, down = ("worse", "better") if self.lower_is_better else ("better", "worse")
        return up if one.low > 0 else down if one.high < 0 else ""


@dataclass(frozen=True)
class Comparison:
    """All of it."""

    base: Results
    tuned: tuple[Results, ...]
    labels: tuple[str, ...]
    """Of the base and the tuned ones: names that tell them apart."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> list[Line]:
        """Main figures over all rows that are certainly worse."""
        return [one for one in self.lines if one.counts and not one.category and one.verdict == "worse"]

    def document(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "base": {"model": self.labels[0], "folder": str(self.base.folder)},
            "tuned": [
                {
                    "model": self.labels[n + 1],
                    "folder": str(one.folder),
                    "differences": [_line_dict(line) for line in self.lines if line.model == n],
                }
                for n, one in enumerate(self.tuned)
            ],
            "regressions": [
                f"{self.labels[one.model + 1]}: {one.task}.{one.metric} {one.difference.value:+.4g}"
                for one in self.regressions
            ],
            "notes": list(self.notes),
        }

    def figures(self) -> list[Figure]:
        """What conditions are held against: the tuned models' figures over all rows."""
        return [
            Figure(
                model=self.labels[one.model + 1],
                task=one.task,
                metric=one.metric,
                value=self.tuned[one.model].tasks[one.task]["metrics"][one.metric]["value"],
                change=one.difference.value,
                worse=one.verdict == "worse",
                counts=one.counts,
            )
            for one in self.lines
            if not one.category
        ]


def compare(base: Results, tuned: Sequence[Results], *, seed: int = 0) -> Comparison:
    """Pair the rows of each task that all have. UsageError where no task is common, or a common one is not the same."""
    if not tuned:
        raise UsageError("there is nothing to compare with: give a base and one model more at least")
    common = [name for name in base.tasks if all(name in one.tasks for one in tuned)]
    if not common:
        raise UsageError(f"no task is common to all: the base has {', '.join(base.tasks)}")
    notes = [
        f"{name} is left out: not all have it"
        for name in dict.fromkeys(n for one in (base, *tuned) for n in one.tasks)
        if name not in common
    ]
    lines: list[Line] = []
    for number, one in enumerate(tuned):
        for name in common:
            notes += _check_same(base.tasks[name], one.tasks[name], one.model)
            lines += _lines(number, base, one, name, seed)
    if any(line.metric in CORPUS for line in lines):
        notes.append(f"differences of {' and '.join(CORPUS)} are means over rows, not over the set as one text")
    return Comparison(base, tuple(tuned), _labels([base, *tuned]), tuple(lines), tuple(dict.fromkeys(notes)))


def _check_same(first: Mapping[str, Any], second: Mapping[str, Any], model: str) -> Iterator[str]:
    """Notes on what differs; UsageError where it must not."""
    task = first["task"]
    if first["task_digest"] != second["task_digest"]:
        raise UsageError(f"{task}: {model} was asked other rows than the base; measure both again")
    here, there = first["settings"], second["settings"]
    if wrong := [f"{key} ({here[key]} and {there[key]})" for key in NEEDED if here[key] != there[key]]:
        raise UsageError(f"{task}: {model} and the base differ in {', '.join(wrong)}; measure both alike")
    for key in here:
        if here[key] != there[key]:
            yield f"{task}: {key} is {here[key]} for the base, {there[key]} for {model}"


def _lines(number: int, base: Results, tuned: Results, task: str, seed: int) -> Iterator[Line]:
    theirs = {one.id: one for one in tuned.samples[task]}
    pairs = [(one, theirs[one.id]) for one in base.samples[task] if one.id in theirs]
    main, lower = base.tasks[task]["main"], base.tasks[task].get("lower_is_better", ())
    for metric in base.tasks[task]["metrics"]:
        both = [(a, b) for a, b in pairs if metric in a.metrics and metric in b.metrics]
        if not both:
            continue
        yield Line(number, task, metric, "", metric == main, _difference(both, metric, seed), metric in lower)
        if metric != main:
            continue
        categories = dict.fromkeys(a.category for a, _ in both if a.category)
        for category in categories if len(categories) > 1 else ():
            own = [(a, b) for a, b in both if a.category == category]
            yield Line(number, task, metric, category, True, _difference(own, metric, seed), metric in lower)


def _difference(pairs: Sequence[tuple[Sample, Sample]], metric: str, seed: int) -> Difference:
    return paired_difference([a.metrics[metric] for a, _ in pairs], [b.metrics[metric] for _, b in pairs], seed=seed)


def _labels(results: Sequence[Results]) -> tuple[str, ...]:
    names = [one.model for one in results]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({one.folder.name})"
        for name, one in zip(names, results, strict=True)
    )


def _line_dict(line: Line) -> dict[str, Any]:
    return {
        "task": line.task,
        "metric": line.metric,
        **({"category": line.category} if line.category else {}),
        "main": line.counts,
        **asdict(line.difference),
        "verdict": line.verdict,
    }
