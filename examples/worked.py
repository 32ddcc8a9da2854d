"""What the worked examples share: a training that goes on where it stopped, answers asked once, intervals, a report.

Everything lies in one folder. A step whose file is there is not done again; a folder made with other settings is
refused.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = "smollm2:135m"
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Figure:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share(hits: Sequence[bool]) -> Figure:
    """Of independent tries, with Wilson's interval, which holds at 0 and 1 too."""
    n, z = len(hits), 1.96
    p = sum(hits) / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n)))


def bootstrap(score: Callable[[Sequence[int]], float], count: int, *, rounds: int = 2000, seed: int = 0) -> Figure:
    """A figure of `count` cases that is no mean of them: `score` is given the numbers of cases drawn anew."""
    draw = random.Random(seed)
    found = sorted(score(draw.choices(range(count), k=count)) for _ in range(rounds))
    return Figure(score(range(count)), found[int(0.025 * rounds)], found[int(0.975 * rounds)])


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the folder was made with. SystemExit: it holds results of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"{folder} holds results of other settings ({path}): remove it, or give another --out")
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON line each. A file that says so already is left alone: a training goes on only with a file as it was."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def train_lora(folder: Path, data: Path, *overrides: str) -> Path:
    """The adapter of `tokenmill train lora`; a training that was stopped goes on at its last checkpoint."""
    latest = folder / "training" / "latest"
    # Where the loss is nearly nothing a gradient is soon an outlier; in minutes of training a step left out costs less
    # than going back to a checkpoint does, and three times back end a run
    safety = "safety_spike=skip"
    words = ["lora", f"model={MODEL}", f"data={data}", f"out={folder / 'training'}", safety, *overrides]
    if (latest / "model").is_dir():
        return latest / "model"
    if (latest / "checkpoints" / "latest").exists():
        words = ["--resume", str(latest), safety]
    done = subprocess.run([sys.executable, "-m", "tokenmill", "train", *words], stdout=sys.stderr, check=False)
    if done.returncode or not (latest / "model").is_dir():
        raise SystemExit(done.returncode or "the training was stopped; the same command goes on there")
    return latest / "model"


def answers(
    path: Path,
    questions: Sequence[Messages],
    adapter: Path | None = None,
    *,
    max_tokens: int,
    schemas: Sequence[dict[str, Any]] | None = None,
    at_once: int = 16,
) -> list[str]:
    """The most likely answer to each question, kept in `path` as it comes. `schemas`: what each may be, as JSON."""
    from tokenmill import LLM, SamplingParams

    # a last line without its end was torn when the work was stopped
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    known = [json.loads(line)["answer"] for line in lines]
    if len(known) < len(questions):
        llm = LLM(MODEL, adapter=adapter)
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        step = at_once if schemas is None else 1
        write_rows(path, [{"answer": one} for one in known])
        with path.open("a", encoding="utf-8") as file:
            for begin in range(len(known), len(questions), step):
                prompts = [llm.prompt_ids(list(one)) for one in questions[begin : begin + step]]
                form = None if schemas is None else schemas[begin]
                for done in llm.complete(prompts, params, format=form):
                    file.write(json.dumps({"answer": done.text}) + "\n")
                    known.append(done.text)
                file.flush()
                print(f"{path.stem}: {len(known)} of {len(questions)}", file=sys.stderr, flush=True)
    return known


@dataclass
class Clock:
    """Seconds of each step, kept in the folder over stops."""

    path: Path

    def measure(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` and note how long it took, where it did anything."""
        begin = time.perf_counter()
        result = work()
        seconds = self.seconds
        spent = time.perf_counter() - begin
        if spent > 1 or name not in seconds:
            seconds[name] = round(seconds.get(name, 0.0) + spent, 1)
            self.path.write_text(json.dumps(seconds, indent=1), encoding="utf-8")
        return result

    @property
    def seconds(self) -> dict[str, float]:
        """By step."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}


PAGE = """{% extends "base.html.jinja" %}
{% block title %}{{ title }}{% endblock %}
{% block content %}
<header><h1>{{ title }}</h1><p>{{ subtitle }}</p></header>
{% if warning %}<span class="verdict warn">{{ warning }}</span>
{% endif %}<section><header><h2>Figures</h2></header>
<p class="why">{{ about }}</p>
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></section>
{% for sample in samples %}<section><header><h2>{{ sample.title }}</h2></header>
<blockquote>{{ sample.asked }}</blockquote>
{% for name, text in sample.answers %}<p class="why">{{ name }}</p><pre>{{ text }}</pre>
{% endfor %}</section>
{% endfor %}<section><header><h2>Files</h2></header><table>
{% for name, what in files %}<tr><td><a href="{{ name }}">{{ name }}</a></td><td>{{ what }}</td></tr>
{% endfor %}</table></section>
{% endblock %}
"""


def report(folder: Path, **values: Any) -> Path:
    """Write ``report.html`` from `PAGE`'s values."""
    from tokenmill.core.html import render_page, write_page

    path = folder / "report.html"
    write_page(path, render_page(PAGE, **values))
    return path


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print figures."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*header, title=title)
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)
