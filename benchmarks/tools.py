"""Tool calls of the default model before and after a short LoRA on made conversations.

    python benchmarks/tools.py --work build/tools

Rows are made from ``examples/tools.yaml`` as `tokenmill data tools make` does: requests and the calls that answer them,
with drawn arguments. They are written Hermes' way, since the model's template has no place for tools, and trained by
the recipe ``tools``. Held out are rows of another seed whose requests no training row has. Measured by the task kind
``tools``: calls that are all right (name, arguments in any order), the right function, arguments that fit their schema,
and no call where none is needed. What is stopped goes on where it was. The figures go to ``results/tools.json``;
``page.py`` writes the table of docs/benchmarks.md from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill.cli.subjects import open_subject
from tokenmill.data.tool_formats import convert_tools
from tokenmill.data.tool_make import MakeOptions, make_rows, read_tool_file
from tokenmill.evals.tasks.run import Settings, run_task
from tokenmill.evals.tasks.task import load_task

MODEL = "smollm2:135m"
ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "tools.json"
TRAINING, HELD_OUT = 120, 30
OFFERED = 3
"""Tools on offer at most: their schemas are most of a prompt."""


def write_data(folder: Path) -> tuple[Path, Path, dict[str, int]]:
    """Training rows as text, held-out rows as a task, and how many of each."""
    tools = read_tool_file(ROOT / "examples" / "tools.yaml")
    training = make_rows(tools, MakeOptions(TRAINING, seed=0, offered=OFFERED))
    known = {row["prompt"] for row in training if row["calls"]}
    held_out = [
        row
        for row in make_rows(tools, MakeOptions(3 * HELD_OUT, seed=1, offered=OFFERED))
        if row["prompt"] not in known
    ][:HELD_OUT]
    paths = folder / "training.jsonl", folder / "held-out.jsonl"
    for path, rows in zip(paths, ([convert_tools(row, "hermes") for row in training], held_out), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # a run that goes on knows the file's time
            path.write_text(text, encoding="utf-8")
    return *paths, {"training": len(training), "held_out": len(held_out)}


def trained(folder: Path, data: Path, steps: int) -> str:
    """The adapter of the run in this folder, begun, gone on with, or finished already."""
    runs = folder / "run"
    done = runs / "model.txt"
    if done.exists():
        return done.read_text()
    if (runs / "latest" / "checkpoints" / "latest").exists():
        result = tokenmill.train(resume=runs / "latest")
    else:
        values: dict[str, Any] = {"steps": steps, "sample_tokens": 0, "eval_every": 0, "save_minutes": 1.0}
        values |= {"batch_tokens": 1024}
        told = {"path": str(data), "eval_share": 0.0}
        result = tokenmill.train("tools", model=MODEL, data=told, out=str(runs), trackers=[], **values)
    if result.reason == "stopped":
        raise SystemExit(f"stopped at step {result.step}; run the same command again to go on")
    done.write_text(str(result.model))
    return str(result.model)


def measured(adapter: str | None, held_out: Path) -> dict[str, Any]:
    """The task's figures, and an answer."""
    subject = open_subject(MODEL, adapter=[adapter] if adapter else None, exact=False)
    result = run_task(subject, load_task(str(held_out)), Settings(max_tokens=64), use_cache=False)
    figures = {name: one["value"] for name, one in result.summary["metrics"].items()}
    return {**figures, "example": result.samples[0].output}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/tools"))
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps of training")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    training, held_out, rows = write_data(arguments.work)
    result: dict[str, Any] = {"model": MODEL, "steps": arguments.steps, "rows": rows}
    result["before"] = measured(None, held_out)
    result["after"] = measured(trained(arguments.work, training, arguments.steps), held_out)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
