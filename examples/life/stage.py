"""One step of the demo: the commands it runs, the figures it keeps, what later steps need to know."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
QUICK = os.environ.get("DEMO") == "quick"
MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"
TEXT = "texts/alice.txt"  # Lewis Carroll, 1865: in the public domain


class StageFailedError(Exception):
    """What a stage found is not what it should be."""


@dataclass(frozen=True)
class Figure:
    """One number or fact, and the command that produced it."""

    name: str
    value: str
    command: str


@dataclass
class Stage:
    """What happened in one step of the demo."""

    title: str
    why: str
    folder: Path = HERE.parent / "runs"
    """Of this demo: its report, and what its stages make."""
    known: dict[str, str] = field(default_factory=dict)
    """What stages tell later ones: paths, mostly. Shared by all stages."""
    seconds: float = 0.0
    result: str = ""
    failed: bool = False
    quote: str = ""
    """Text worth showing as it is: an answer."""
    figures: list[Figure] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    """Curves, as `tokenmill.core.html.line_chart` draws them."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Text and address, from the report's folder."""

    def tokenmill(self, *words: str | Path) -> dict[str, Any]:
        """Run `tokenmill WORDS --json` and give its document; progress goes to the terminal."""
        said = [os.path.relpath(word, HERE) if isinstance(word, Path) else word for word in words]
        self.commands.append("tokenmill " + shlex.join(said))
        command = [sys.executable, "-m", "tokenmill", *said, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE)
        if done.returncode:
            raise StageFailedError(f"`{self.commands[-1]}` ended with exit status {done.returncode}")
        document = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(document, dict)
        return document

    def figure(self, name: str, value: str) -> None:
        """Keep a figure of the last command."""
        self.figures.append(Figure(name, value, self.commands[-1]))

    def answer(self, prompt: str, model: str | Path, *more: str | Path, tokens: int) -> str:
        """What a model says, greedily unless told otherwise."""
        words = more if "--temperature" in more else (*more, "--temperature", "0")
        return str(self.tokenmill("run", model, prompt, *words, "--max-tokens", str(tokens))["text"])

    def train(self, recipe: str, *words: str | Path) -> dict[str, Any]:
        """A training run: its loss curve and figures, and the way to its own report."""
        from tokenmill.core.html import Series, line_chart

        run = self.tokenmill("train", recipe, *words, f"out={os.path.relpath(self.folder.parent, HERE)}")
        rows = metrics(run)
        curves = [
            Series(name, [(row["step"], row[key]) for row in rows if row.get(key) is not None])
            for name, key in (("training", "loss"), ("held out", "eval_loss"))
        ]
        self.charts.append(line_chart("Loss", curves))
        self.links.append(("the run's own report", f"../{Path(run['folder']).name}/report.html"))
        steps = [row for row in rows if "tokens_per_s" in row]
        self.figure("tokens seen", f"{steps[-1]['total_tokens']:,} in {len(steps)} steps")
        self.figure("speed", f"{statistics.median(row['tokens_per_s'] for row in steps):.0f} tokens/s")
        self.figure("share of peak FLOPs", f"{100 * statistics.median(row['mfu'] for row in steps):.0f} %")
        self.figure("peak memory", f"{steps[-1]['memory_mb'] / 1e3:.2f} GB")
        return run


def metrics(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    text = (Path(run["folder"]) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
