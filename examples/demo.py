"""`make demo`: a model's life, stage by stage. STAGES below is the table of contents; read it first.

Each stage runs the same commands that you would type, checks what came back, and adds a row to the table and to an
offline HTML report under `runs/`. A stage that fails ends the demo with exit status 1; the report says where, and the
next `make demo` goes on there. `DEMO=quick make demo` trains for a shorter time: what comes out is poorer, the way is
the same.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from life import first, hand_over, text, tune
from life.stage import MODEL, QUESTION, QUICK, Figure, Stage, StageFailedError

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
DONE = "demo.json"
"""In a demo's folder: the stages behind it. It is what a demo that was stopped goes on from."""

STAGES: list[tuple[str, str, Callable[[Stage], str]]] = [
    ("The machine", "What there is to work with.", first.look_at_the_machine),
    ("Pull", "A real instruct model into the store, every byte checked.", first.get_a_model),
    ("Show", "What the file says of itself.", first.see_what_it_is),
    ("Ask", QUESTION, first.ask_it),
    ("Customise", "A Modelfile gives it a system message and its own sampling.", first.give_it_a_role),
    ("Measure", "Perplexity of the opening of Alice in Wonderland, windows as llama.cpp takes them.", first.measure_it),
    (
        "Curate",
        "Raw pages and rows to clean text: extracted, judged, no copies, no personal data.",
        text.curate_text,
    ),
    ("Tokenizer", "One of its own for that text, beside the default model's.", text.train_a_tokenizer),
    ("Pretrain", "A new model on that text, packed into token shards.", text.pretrain_one),
    (
        "Fine-tune",
        "LoRA on 394 definitions of the Devil's Dictionary: how does it define a word that is not among them?",
        tune.tune_it,
    ),
    ("Prefer", "DPO on 80 pairs that differ in one thing: does it prefer, and do, what they prefer?", tune.prefer),
    ("Reward", "GRPO: its own answers, the shorter the better.", tune.reward_it),
    ("Compare", "The tuned model beside the first, on tasks it was not tuned for.", hand_over.compare),
    ("Compress", "GPTQ and GGUF of the tuned model: what do they save, what do they cost?", hand_over.compress),
    (
        "Serve",
        "The compressed file, in OpenAI's protocol: does it still define as the book does?",
        hand_over.serve_it,
    ),
]


def unfinished() -> tuple[Path, list[Stage]] | None:
    """The last demo's folder and the stages behind it, if it did not come to its end."""
    latest = max(RUNS.glob("*-demo"), default=None)
    if latest is None or not (latest / DONE).is_file():
        return None
    state = json.loads((latest / DONE).read_text(encoding="utf-8"))
    if state["quick"] != QUICK or len(state["stages"]) >= len(STAGES):
        return None
    stages = [Stage(**{**kept, "folder": latest}) for kept in state["stages"]]
    for stage in stages:
        stage.figures = [Figure(**figure) for figure in stage.figures]  # type: ignore[arg-type]
    return latest, stages


def begin() -> tuple[Path, list[Stage]]:
    """The folder of this demo, and what is behind it already."""
    found = unfinished()
    if found is not None:
        return found
    folder = RUNS / f"{datetime.now():%Y-%m-%d_%H%M%S}-demo"
    folder.mkdir(parents=True)
    return folder, []


def keep(folder: Path, stages: list[Stage]) -> None:
    """Note the stages that are done."""
    kept = [{**asdict(stage), "folder": ""} for stage in stages if not stage.failed]
    aside = folder / f".{DONE}"
    aside.write_text(json.dumps({"quick": QUICK, "stages": kept}), encoding="utf-8")
    os.replace(aside, folder / DONE)


def run_stages(folder: Path, stages: list[Stage]) -> list[Stage]:
    """Run the stages in order up to the first that fails; ``stages``: those done before."""
    if stages:
        print(f"Going on behind {stages[-1].title} ({folder.name}).", file=sys.stderr)
    known = stages[-1].known if stages else {}
    for title, why, work in STAGES[len(stages) :]:
        stage = Stage(title, why, folder, known)
        stages.append(stage)
        print(f"\n── {title}: {why}", file=sys.stderr)
        start = time.perf_counter()
        try:
            stage.result = work(stage)
        except StageFailedError as error:
            stage.result, stage.failed = str(error), True
        stage.seconds = time.perf_counter() - start
        keep(folder, stages)
        if stage.failed:
            break
    return stages


def print_table(stages: list[Stage]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("Stage", "Time", "Result", title="tokenmill demo")
    for stage in stages:
        mark = "[red]✗[/red]" if stage.failed else "[green]✓[/green]"
        table.add_row(f"{mark} {stage.title}", f"{stage.seconds:.1f} s", escape(stage.result))
    Console().print(table)


def write_report(stages: list[Stage], folder: Path) -> Path:
    """The HTML report and the figures behind it. What came from a model is escaped by the template engine."""
    from tokenmill.core.html import render_page, write_page

    page = render_page(
        (HERE / "demo_report.html.jinja").read_text(encoding="utf-8"),
        stages=stages,
        failed=any(stage.failed for stage in stages),
        total=sum(stage.seconds for stage in stages),
        longest=max(stage.seconds for stage in stages),
        model=MODEL,
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    report = folder / "report.html"
    write_page(report, page)
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    return report


def main() -> int:
    os.environ.setdefault("PYTHONUTF8", "1")
    folder, done = begin()
    stages = run_stages(folder, done)
    report = write_report(stages, folder)
    print_table(stages)
    print(f"Report: {report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report}")
    return int(any(stage.failed for stage in stages))


if __name__ == "__main__":
    raise SystemExit(main())
