"""What alignment does to the default model, on planted preferences: every objective, before and after.

    python benchmarks/alignment.py --work build/alignment
    python benchmarks/alignment.py --work build/alignment --only kto reward

Pairs are made from templates: the chosen answer begins with "Certainly!", the rejected one says the same without it, or
begins with other words that make it the longer one, so that length tells nothing. Questions about things that no
training pair names are held out. Shown: the share of held-out pairs on which the policy gained more for the chosen
answer than for the rejected one against the model that it began as; the share on which it finds the chosen one likelier
token by token, before and after; the share of its answers to held-out questions that begin as asked; and how often a
reward model scores the held-out chosen answer higher. Minutes a run on two cores; what is stopped goes on where it was.
The figures go to ``results/alignment.json``; ``page.py`` writes the table of docs/benchmarks.md from them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill import LLM, SamplingParams
from tokenmill.align.reward_model import RewardModel, length_of, pair_documents
from tokenmill.evals.calibration import judge_scores

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "alignment.json"
WORD = "Certainly!"
OTHERS = ("", "", "Well, as far as I can say about it:")
"""What rejected answers begin with."""
THINGS = """apples bread candles doors engines flowers gardens houses islands jackets kites lamps mountains notebooks
oceans pencils rivers shoes trains umbrellas violins windows""".split()  # noqa: SIM905
QUESTIONS = ("Tell me about {}.", "What are {} for?", "Why do people like {}?", "Describe {}.", "How are {} made?")
ANSWERS = ("{} are useful.", "People like {}.", "There is a lot to say about {}.", "It depends on the {}.")
HELD_OUT = 5
"""Things that no training pair names."""
POLICIES = {"dpo": (5e-4, 10), "kto": (5e-4, 36), "orpo": (5e-4, 24), "simpo": (3e-4, 30)}
"""Learning rate and optimiser steps: so few steps ask for a higher rate than the recipes' own; without a reference too
high a one repeats itself."""
REWARD = (5e-4, 10)


def write_data(folder: Path) -> tuple[Path, Path]:
    """Training and held-out pairs."""
    draw = random.Random(0)
    things = draw.sample(THINGS, len(THINGS))
    paths = folder / "pairs.jsonl", folder / "held-out.jsonl"
    if all(path.exists() for path in paths):  # written anew they would be other data to a run that goes on
        return paths
    for path, some in zip(paths, (things[HELD_OUT:], things[:HELD_OUT]), strict=True):
        rows = []
        for thing in some:
            for question in QUESTIONS:
                answer = draw.choice(ANSWERS).format(thing)
                rejected = f"{draw.choice(OTHERS)} {answer}".strip()
                rows.append({"prompt": question.format(thing), "chosen": f"{WORD} {answer}", "rejected": rejected})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(recipe: str, folder: Path, pairs: Path, held_out: Path, **values: Any) -> Any:
    """The run of a recipe in this folder, begun, gone on with, or finished already."""
    runs = folder / recipe
    done = runs / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    if (runs / "latest" / "checkpoints" / "latest").exists():
        result = tokenmill.train(resume=runs / "latest")
    else:
        data = {"path": str(pairs), "eval": str(held_out)}
        result = tokenmill.train(recipe, model=MODEL, data=data, out=str(runs), eval_batches=1000, **values)
    if result.reason == "stopped":
        raise SystemExit(f"stopped at step {result.step}; run the same command again to go on")
    told = {"model": str(result.model), "steps": result.step, "metrics": dict(result.metrics)}
    done.write_text(json.dumps(told))
    return told


def policy_of(adapter: str | None, rows: list[dict[str, str]]) -> dict[str, Any]:
    """A policy on held-out rows: log-probabilities of both answers, and its own greedy ones."""
    llm = LLM(MODEL, adapter=adapter)
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    prompts = [llm.tokenizer.render_chat(turn, add_generation_prompt=True) for turn in turns]
    sides = {name: llm.score(prompts, [row[name] for row in rows]) for name in ("chosen", "rejected")}
    params = SamplingParams(temperature=0.0, max_tokens=12)
    said = [completion.text for completion in llm.complete([llm.prompt_ids(turn) for turn in turns], params)]
    return {
        "totals": [(a.total, b.total) for a, b in zip(*sides.values(), strict=True)],
        "means": [
            (a.total / len(a.token_ids), b.total / len(b.token_ids)) for a, b in zip(*sides.values(), strict=True)
        ],
        "asked_for": sum(text.startswith(WORD) for text in said) / len(said),
        "example": f"{rows[0]['prompt']} > {said[0]}",
    }


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What training did, in shares of the held-out rows."""
    gains = [(a[0] - b[0], a[1] - b[1]) for a, b in zip(after["totals"], before["totals"], strict=True)]
    return {
        "accuracy": wins(gains),
        "likelier_before": wins(before["means"]),
        "likelier_after": wins(after["means"]),
        "asked_for_before": before["asked_for"],
        "asked_for_after": after["asked_for"],
        "chosen_gain": sum(chosen for chosen, _ in gains) / len(gains),
        "rejected_gain": sum(rejected for _, rejected in gains) / len(gains),
        "example_before": before["example"],
        "example_after": after["example"],
    }


def wins(pairs: list[tuple[float, float]]) -> float:
    """The share in which the first is greater."""
    return sum(chosen > rejected for chosen, rejected in pairs) / len(pairs)


def judged(model: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    """A reward model on held-out pairs."""
    pairs = [pair_documents(row) for row in rows]
    scorer = RewardModel.load(model)
    chosen, rejected = (scorer.score_documents([pair[side] for pair in pairs]) for side in (0, 1))
    found = judge_scores(chosen, rejected, [(length_of(a), length_of(b)) for a, b in pairs])
    return {name: value for name, value in found.as_dict().items() if name != "bins"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/alignment"))
    parser.add_argument("--only", nargs="+", choices=[*POLICIES, "reward"], default=[*POLICIES, "reward"])
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    pairs, held_out = write_data(work)
    values: dict[str, Any] = {"seq_len": 256, "batch_tokens": 256, "sample_tokens": 0}
    values |= {"eval_every": 0, "save_minutes": 1.0, "trackers": []}
    rows = rows_of(held_out)
    before = policy_of(None, rows)
    result: dict[str, Any] = {
        "model": MODEL,
        "pairs": {"training": len(rows_of(pairs)), "held_out": len(rows)},
    }
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"policies": known.get("policies", {}), "reward": known.get("reward")}
    for recipe in (name for name in POLICIES if name in arguments.only):
        lr, steps = POLICIES[recipe]
        run = trained(recipe, work, pairs, held_out, lr=lr, steps=steps, **values)
        result["policies"][recipe] = {"steps": steps, **compared(before, policy_of(run["model"], rows))}
        print(recipe, result["policies"][recipe], flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "reward" in arguments.only:
        lr, steps = REWARD
        run = trained("reward", work, pairs, held_out, lr=lr, steps=steps, **values)
        result["reward"] = {"steps": steps, **judged(run["model"], rows)}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
