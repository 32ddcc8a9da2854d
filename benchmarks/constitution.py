"""Constitutional AI on the default model: ten red-team prompts to pairs, DPO on them, declined before and after.

    python benchmarks/constitution.py --work build/constitution

The model answers ten of the shipped red-team prompts and six harmless ones, critiques and revises its own answers by
the shipped principles, and is trained on the pairs by the recipe ``constitutional``. Held out are the other shipped
prompts: the share of the harmful ones that it declines and of the harmless ones that it answers, by the words that
greedy answers begin with, before and after. What is stopped goes on where it was. The figures go to
``results/constitution.json``; ``page.py`` writes the table of docs/benchmarks.md from them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill import LLM, SamplingParams
from tokenmill.align.constitution import Prompt, read_prompts
from tokenmill.cli.app import main as command
from tokenmill.evals.tasks.kinds import declines

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "constitution.json"
RED, HARMLESS = 10, 6
"""Prompts of each sort that pairs are made of; the rest is held out."""


def split_prompts() -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to make pairs of, prompts to measure on."""
    prompts = read_prompts(None)
    red, harmless = ([one for one in prompts if one.refuse is sort] for sort in (True, False))
    return [*red[:RED], *harmless[:HARMLESS]], [*red[RED:], *harmless[HARMLESS:]]


def made_pairs(folder: Path, prompts: list[Prompt]) -> dict[str, Any]:
    """The verb's own work: pairs, transcripts and report in the folder."""
    asked = folder / "prompts.jsonl"
    asked.write_text("".join(one.model_dump_json() + "\n" for one in prompts), encoding="utf-8")
    words = ["data", "constitution", str(asked), "--model", MODEL, "--out", str(folder / "pairs")]
    if command([*words, "--samples", "2", "--rounds", "2", "--max-tokens", "80"]):
        raise SystemExit("no pairs")
    rows = [json.loads(line) for line in (folder / "pairs" / "transcripts.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["reason"] is None]
    red = [row for row in kept if not row["harmless"]]
    return {
        "answers": len(rows),
        "pairs": len(kept),
        "red_team_pairs": len(red),
        "red_team_prompts_with_pairs": len({row["prompt"] for row in red}),
        "example": next(json.loads(line) for line in (folder / "pairs" / "pairs.jsonl").read_text().splitlines()),
    }


def trained(folder: Path, steps: int) -> str:
    """The adapter of the run in this folder, begun, gone on with, or finished already."""
    runs = folder / "run"
    done = runs / "model.txt"
    if done.exists():
        return done.read_text()
    if (runs / "latest" / "checkpoints" / "latest").exists():
        result = tokenmill.train(resume=runs / "latest")
    else:
        data = {"path": str(folder / "pairs" / "pairs.jsonl"), "eval_share": 0.0}
        values: dict[str, Any] = {"steps": steps, "sample_tokens": 0, "eval_every": 0, "save_minutes": 1.0}
        result = tokenmill.train("constitutional", model=MODEL, data=data, out=str(runs), trackers=[], **values)
    if result.reason == "stopped":
        raise SystemExit(f"stopped at step {result.step}; run the same command again to go on")
    done.write_text(str(result.model))
    return str(result.model)


def measured(adapter: str | None, prompts: list[Prompt]) -> dict[str, Any]:
    """Shares of held-out prompts, and two answers."""
    llm = LLM(MODEL, adapter=adapter)
    params = SamplingParams(temperature=0.0, max_tokens=40)
    ids = [llm.prompt_ids([{"role": "user", "content": one.prompt}]) for one in prompts]
    said = [completion.text for completion in llm.complete(ids, params)]
    sorts: dict[bool, list[bool]] = {True: [], False: []}
    for one, text in zip(prompts, said, strict=True):
        sorts[one.refuse].append(declines(text))
    last = next(n for n, one in enumerate(prompts) if not one.refuse)
    return {
        "declined_harmful": sum(sorts[True]) / len(sorts[True]),
        "answered_harmless": 1 - sum(sorts[False]) / len(sorts[False]),
        "examples": [f"{prompts[n].prompt} > {said[n]}" for n in (0, last)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/constitution"))
    parser.add_argument("--steps", type=int, default=22, help="optimiser steps of training")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    asked, held_out = split_prompts()
    counts = {"harmful": sum(one.refuse for one in held_out), "harmless": sum(not one.refuse for one in held_out)}
    result = {"model": MODEL, "steps": arguments.steps, "held_out": counts, **made_pairs(arguments.work, asked)}
    result["before"] = measured(None, held_out)
    result["after"] = measured(trained(arguments.work, arguments.steps), held_out)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
