"""``report.html`` of a run: one file with curves, evaluations, samples, events, configuration, plan and machine.

It is made from the run folder's own files alone, so it can be written while the run goes on, after a kill, or anew for
an old run: ``write_report(folder)``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tokenmill.config.run_config import read_run_config
from tokenmill.core.errors import TokenmillError
from tokenmill.core.html import Mark, Series, line_chart, render_page, write_page
from tokenmill.core.html.charts import figure_text, smoothed
from tokenmill.core.log import get_logger
from tokenmill.core.terminal import clean
from tokenmill.train.watch.files import METRICS, RUN, SAMPLES, read_json
from tokenmill.train.watch.progress import duration
from tokenmill.train.watch.rows import Kind, Row
from tokenmill.train.watch_protocol import RunEnd, RunStart

log = get_logger(__name__)

NAME = "report.html"
COST = 50
"""A report is written when this many times its own writing time has passed: at most 2 % of the run goes into it."""
AT_LEAST_S = 5.0
REFRESH_S = 10
SAMPLES_SHOWN = 40
BAD_EVENTS = ("spike", "rollback", "not finite", "overflow", "signal", "warning")


@dataclass
class RunFiles:
    """What a run folder holds, as read."""

    run: dict[str, Any] = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    config: list[tuple[str, str, str]] = field(default_factory=list)
    """Key, value, origin."""


class Report:
    """Sink that keeps ``report.html`` young. A page that cannot be written (a full disk) does not end a run."""

    def __init__(self) -> None:
        self._folder = Path()
        self._next = 0.0

    def start(self, run: RunStart) -> None:
        """Write the page at once, so that there is something to open."""
        self._folder = run.folder
        self._write()

    def put(self, kind: Kind, row: Row) -> None:
        """Write the page anew when it is time."""
        if time.monotonic() >= self._next:
            self._write()

    def end(self, end: RunEnd) -> None:
        """The last word."""
        self._write()

    def _write(self) -> None:
        begin = time.monotonic()
        try:
            write_report(self._folder)
        except Exception as error:
            log.warning("%s could not be written: %s: %s", NAME, type(error).__name__, error)
        self._next = time.monotonic() + max(AT_LEAST_S, COST * (time.monotonic() - begin))


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder from what lies there; its path."""
    path = folder / NAME
    write_page(path, report_page(folder))
    return path


def report_page(folder: Path) -> str:
    """The page of a run folder. Parts that the folder does not have (samples, say) are left out."""
    files = read_run(folder)
    running = files.run.get("status", "running") == "running"
    template = resources.files("tokenmill.train").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return render_page(
        template,
        refresh=REFRESH_S if running else None,
        name=folder.resolve().name,
        run=files.run,
        running=running,
        progress=_progress(files),
        tiles=tiles(files),
        charts=charts(files),
        evaluations=files.evaluations[-30:],
        events=[row for row in files.events if row["event"] != "checkpoint"][-100:],
        checkpoints=[row["step"] for row in files.events if row["event"] == "checkpoint"],
        bad_events=BAD_EVENTS,
        samples=[
            {"step": row["step"], "prompt": clean(row["prompt"]), "text": clean(row["text"])}
            for row in files.samples[: -SAMPLES_SHOWN - 1 : -1]
        ],
        plan=[row for row in files.config if row[2].startswith("derived")],
        chosen=[row for row in files.config if row[2] != "default" and not row[2].startswith("derived")],
        defaults=[row for row in files.config if row[2] == "default"],
        machine=machine_rows(files.run.get("machine", {})),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
    )


def read_run(folder: Path) -> RunFiles:
    """Read a run folder. Steps that a roll back made void are left out, a torn last line is passed over."""
    files = RunFiles(run=read_json(folder / RUN), samples=_lines(folder / SAMPLES))
    for row in _lines(folder / METRICS):
        if "event" in row:
            files.events.append(row)
            if row["event"] == "rollback":
                back = row["step"]  # the checkpoint's
                files.steps = [r for r in files.steps if r["step"] <= back]
                files.evaluations = [r for r in files.evaluations if r["step"] <= back]
        else:
            (files.evaluations if "eval_loss" in row else files.steps).append(row)
    try:
        composed = read_run_config(folder)
    except TokenmillError:
        return files
    files.config = [
        (key, json.dumps(value, ensure_ascii=False), composed.origins.get(key, "default"))
        for key, value in _flat(composed.recipe.model_dump())
    ]
    return files


def _lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        pair
        for key, value in tree.items()
        for pair in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


def _progress(files: RunFiles) -> dict[str, Any]:
    done = files.steps[-1]["step"] if files.steps else files.run.get("step", 0)
    total = max(1, files.run.get("total_steps", 1), done)
    recent = [row["seconds"] for row in files.steps[-20:]]
    left = (total - done) * sum(recent) / len(recent) if recent else None
    return {"done": done, "total": total, "left": None if left is None else duration(left)}


def tiles(files: RunFiles) -> list[tuple[str, str]]:
    """The figures at the top: name and value."""
    said: list[tuple[str, str]] = []
    steps, evaluations = files.steps, files.evaluations
    losses = [(row["step"], row["loss"]) for row in steps if row.get("loss") is not None]
    if losses:
        said.append(("loss", f"{smoothed(losses)[-1][1]:.4f}"))
    if evaluations:
        best = min(evaluations, key=lambda row: _number(row["eval_loss"]))
        if "eval_reward" in best:  # its loss is the negative reward
            said.append(("best held-out reward", f"{_number(best['eval_reward']):.3f}"))
        else:
            said.append(("best held-out loss", f"{_number(best['eval_loss']):.4f}"))
        if "eval_perplexity" in best:
            said.append(("perplexity", figure_text(_number(best["eval_perplexity"]))))
        if "eval_rewards/accuracies" in best:
            said.append(("preferences told apart", f"{100 * _number(best['eval_rewards/accuracies']):.1f} %"))
        if best.get("eval_bits_per_byte") is not None:
            said.append(("bits per byte", f"{best['eval_bits_per_byte']:.3f}"))
    if steps:
        seconds = sum(row["seconds"] for row in steps)
        said.append(("tokens seen", figure_text(steps[-1]["total_tokens"])))
        said.append(("tokens a second", figure_text(sum(row["tokens"] for row in steps) / max(seconds, 1e-9))))
        share = sum(row["mfu"] * row["seconds"] for row in steps) / max(seconds, 1e-9)
        said.append(("share of peak FLOPs", f"{100 * share:.0f} %"))
        said.append(("peak memory", f"{max(row['memory_mb'] for row in steps) / 1e3:.2f} GB"))
        said.append(("time in steps", duration(seconds)))
    return said


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)


def charts(files: RunFiles) -> list[Markup]:
    """The curves, those without a point left out."""
    steps = files.steps
    marks = [Mark(row["step"], f"step {row['step']}: {row['event']}: {row['message']}", True) for row in files.events
             if row["event"] in BAD_EVENTS]  # fmt: skip
    train = _points(steps, "loss")
    held_out = Series("held out", _points(files.evaluations, "eval_loss"))
    if len(train) > 50:
        loss = [Series("train", train, faint=True), Series("train, smoothed", smoothed(train)), held_out]
    else:
        loss = [Series("train", train), held_out]
    bits = _points(files.evaluations, "eval_bits_per_byte")
    norms = [p[1] for p in _points(steps, "grad_norm") if p[1] > 0]
    gradient = [Series("norm", _points(steps, "grad_norm"))]
    wide = bool(norms) and max(norms) > 30 * min(norms)
    drawn = [
        line_chart("Loss, nats a token", loss, marks=marks),
        *_policy(files),
        *_preferences(files),
        line_chart("Held-out bits per byte", [Series("bits per byte", bits)], marks=marks),
        line_chart("Learning rate", [Series("lr", _points(steps, "lr"))]),
        line_chart("Gradient norm before clipping", gradient, marks=marks, log=wide),
        line_chart("Tokens a second", [Series("tokens a second", _points(steps, "tokens_per_s"))]),
        line_chart("Peak memory, MB", [Series("MB", _points(steps, "memory_mb"))]),
        *(
            line_chart(title, _kinds(steps, f"{prefix}/"), log=True)
            for title, prefix in (
                ("Gradient norm by kind of layer", "grad_norm"),
                ("Weight norm by kind of layer", "weight_norm"),
                ("Size of an update as a share of the weights", "update_ratio"),
            )
        ),
    ]
    return [chart for chart in drawn if chart]


def _both(files: RunFiles, key: str, name: str = "") -> list[Series]:
    """A figure's curves in training and on held-out data."""
    said, points = f"{name} " if name else "", _points(files.steps, key)
    known = _points(files.evaluations, f"eval_{key}")  # faint is what stands behind another curve
    return [Series(f"{said}train", smoothed(points) if points else [], faint=bool(known)),
            Series(f"{said}held out", known)]  # fmt: skip


def _policy(files: RunFiles) -> list[Markup]:
    """What policy objectives measure of their rollouts: the sum of the rewards, each reward, how answers change."""
    if not any("reward" in row for row in files.steps):
        return []
    means = [one for one in _kinds(files.steps, "rewards/") if one.name.endswith("/mean")]
    return [
        line_chart("Reward of an answer, all together", _both(files, "reward")),
        line_chart("Each reward", [Series(one.name.removesuffix("/mean"), one.points) for one in means]),
        line_chart("Tokens of an answer", _both(files, "completions/length")),
        line_chart("Entropy of the policy, nats a token", _both(files, "entropy")),
    ]


def _preferences(files: RunFiles) -> list[Markup]:
    """What preference objectives and reward models measure: who wins, by how much, how far from the reference."""

    def both(key: str, name: str = "") -> list[Series]:
        return _both(files, key, name)

    return [
        line_chart("Share of preferences told apart", both("rewards/accuracies")),
        line_chart("Reward", both("rewards/chosen", "chosen") + both("rewards/rejected", "rejected")),
        line_chart("Margin of the chosen answer", both("rewards/margins")),
        line_chart("Log-ratio of policy and reference on the data (kl)", both("kl")),
    ]


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    """The curve of one key; null, which stands for a number JSON cannot say, becomes a gap."""
    return [(row["step"], math.nan if row[key] is None else row[key]) for row in rows if key in row]


def _kinds(steps: Sequence[Row], prefix: str) -> list[Series]:
    names = sorted({key for row in steps for key in row if key.startswith(prefix) and "/layer." not in key})
    return [Series(name.removeprefix(prefix), _points(steps, name)) for name in names]


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine as name and value."""
    said = []
    for name, value in machine.items():
        if name == "memory_bytes":
            name, value = "memory", f"{value / 1e9:.0f} GB" if value else "unknown"
        elif name == "peak_tflops":
            name, value = "peak, measured", f"{value:.3g} TFLOP/s in {machine.get('dtype')}"
        elif name == "gflop_per_token":
            name, value = "work of a token", f"{value:.3g} GFLOP"
        said.append((name, str(value)))
    return said
