"""Reports of measurements as HTML: one model's tasks, and a comparison. Every number links the file it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tokenmill.core.html import Interval, interval_chart, radar_chart, render_page, write_page
from tokenmill.evals.compare import Comparison, Line
from tokenmill.evals.tasks.folder import REPORT, RESULTS, SAMPLES, Results
from tokenmill.evals.tasks.sample import Sample

SHOWN, LONGEST = 12, 1200
"""Samples shown of a task, and characters of each text; the log has them whole."""


def write_tasks_report(results: Results) -> Path:
    """``report.html`` in the folder of results; returns its path."""
    tasks = list(results.tasks.values())
    page = _page(
        "tasks.html.jinja",
        results=results,
        model=results.document["model"],
        tasks=tasks,
        radar=radar_chart("What it can do", *_radar({results.model: results})),
        mains=[(one, one["metrics"][one["main"]]) for one in tasks],
        wrong={name: _wrong(samples, results.tasks[name]["main"]) for name, samples in results.samples.items()},
        results_file=RESULTS,
        samples_of=lambda name: f"{SAMPLES}/{quote(name)}.jsonl",
    )
    write_page(results.folder / REPORT, page)
    return results.folder / REPORT


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """The page of a comparison, links relative to it."""

    def link(results: Results, name: str = "") -> str:
        file = results.folder / (f"{SAMPLES}/{name}.jsonl" if name else RESULTS)
        return quote(os.path.relpath(file.resolve(), path.parent.resolve()).replace(os.sep, "/"))

    everyone = (comparison.base, *comparison.tuned)
    whole = [line for line in comparison.lines if not line.category]
    intervals = [
        interval_chart(
            f"{label} against {comparison.labels[0]}",
            [_interval(line) for line in whole if line.model == n and line.counts],
            x_label="difference with its 95 % interval",
        )
        for n, label in enumerate(comparison.labels[1:])
    ]
    page = _page(
        "compare.html.jinja",
        comparison=comparison,
        everyone=list(zip(comparison.labels, everyone, strict=True)),
        radar=radar_chart("What it can do", *_radar(dict(zip(comparison.labels, everyone, strict=True)))),
        intervals=[one for one in intervals if one],
        whole=whole,
        parts=[line for line in comparison.lines if line.category],
        sides=_side_by_side(comparison),
        link=link,
    )
    write_page(path, page)
    return path


def _page(template: str, **values: Any) -> str:
    text = (resources.files("tokenmill.evals") / template).read_text(encoding="utf-8")
    return render_page(text, cut=_cut, **values)


def _radar(models: Mapping[str, Results]) -> tuple[list[str], dict[str, list[float]]]:
    """Axes and values: the tasks that all models have, or where they are fewer than three, categories of rows."""
    several = all(len(results.tasks) > 2 for results in models.values())
    found = {label: _mains(results) if several else _abilities(results) for label, results in models.items()}
    axes = [name for name in next(iter(found.values())) if all(name in one for one in found.values())]
    return axes, {label: [values[name] for name in axes] for label, values in found.items()}


def _mains(results: Results) -> dict[str, float]:
    return {name: task["metrics"][task["main"]]["value"] for name, task in results.tasks.items()}


def _abilities(results: Results) -> dict[str, float]:
    """The main figures, averaged over the rows of each category; a task without categories is one by itself."""
    sums: dict[str, tuple[float, int]] = {}
    for task in results.tasks.values():
        parts = task["categories"] or {task["task"]: task["metrics"][task["main"]]}
        for name, figure in parts.items():
            if figure:
                total, rows = sums.get(name, (0.0, 0))
                sums[name] = (total + figure["value"] * figure["rows"], rows + figure["rows"])
    return {name: total / rows for name, (total, rows) in sums.items()}


def _wrong(samples: Sequence[Sample], main: str) -> list[Sample]:
    return [one for one in samples if one.metrics.get(main, 1.0) < 1.0][:SHOWN]


def _interval(line: Line) -> Interval:
    tones = {"better": "good", "worse": "bad", "": ""}
    one = line.difference
    return Interval(f"{line.task} {line.metric}", one.value, one.low, one.high, tones[line.verdict])


def _side_by_side(comparison: Comparison) -> dict[str, list[list[tuple[Sample, float]]]]:
    """Of each task the rows where models differ in the main figure: the base's sample, then the others', each with its
    value."""
    found: dict[str, list[list[tuple[Sample, float]]]] = {}
    everyone = (comparison.base, *comparison.tuned)
    for task in dict.fromkeys(line.task for line in comparison.lines):
        main = comparison.base.tasks[task]["main"]
        others = [{one.id: one for one in results.samples[task]} for results in everyone]
        rows = []
        for sample in comparison.base.samples[task]:
            row = [own[sample.id] for own in others if sample.id in own]
            values = [one.metrics.get(main, 0.0) for one in row]
            if len(row) == len(everyone) and len(set(values)) > 1:
                rows.append(list(zip(row, values, strict=True)))
        found[task] = rows[:SHOWN]
    return {task: rows for task, rows in found.items() if rows}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
