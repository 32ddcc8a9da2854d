"""What alignment does to the default model, on planted preferences: DPO and a reward model, before and after.

    python benchmarks/alignment.py --work build/alignment

Pairs are made from templates: the chosen answer begins with "Certainly!", the rejected one says the same without it.
Questions about things that no training pair names are held out. Shown: how often DPO's policy prefers the held-out
chosen answer more than the model that it began as, the share of its answers to held-out questions that begin as asked,
and how often a reward model scores the held-out chosen answer higher. Minutes on two cores; a run that is stopped goes
on where it was. The figures go to ``result.json`` in the work folder.
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
WORD = "Certainly!"
THINGS = """apples bread candles doors engines flowers gardens houses islands jackets kites lamps mountains notebooks
oceans pencils rivers shoes trains umbrellas violins windows""".split()  # noqa: SIM905
QUESTIONS = ("Tell me about {}.", "What are {} for?", "Why do people like {}?", "Describe {}.", "How are {} made?")
ANSWERS = ("{} are useful.", "People like {}.", "There is a lot to say about {}.", "It depends on the {}.")
HELD_OUT = 5
"""Things that no training pair names."""


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
                prompt = question.format(thing)
                rows.append({"prompt": prompt, "chosen": f"{WORD} {answer}", "rejected": answer})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


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


def asked_for(adapter: str | None, held_out: Path) -> dict[str, Any]:
    """Greedy answers to held-out questions: the share that begins as asked, and one of them."""
    llm = LLM(MODEL, adapter=adapter)
    prompts = [json.loads(line)["prompt"] for line in held_out.read_text(encoding="utf-8").splitlines()]
    params = SamplingParams(temperature=0.0, max_tokens=12)
    said = [llm.chat([{"role": "user", "content": prompt}], params).text for prompt in prompts]
    return {"share": sum(text.startswith(WORD) for text in said) / len(said), "example": f"{prompts[0]} > {said[0]}"}


def judged(model: str, held_out: Path) -> dict[str, Any]:
    """A reward model on held-out pairs."""
    pairs = [pair_documents(json.loads(line)) for line in held_out.read_text(encoding="utf-8").splitlines()]
    scorer = RewardModel.load(model)
    chosen, rejected = (scorer.score_documents([pair[side] for pair in pairs]) for side in (0, 1))
    found = judge_scores(chosen, rejected, [(length_of(a), length_of(b)) for a, b in pairs])
    return {name: value for name, value in found.as_dict().items() if name != "bins"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/alignment"))
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps of each run")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    pairs, held_out = write_data(work)
    values: dict[str, Any] = {"steps": arguments.steps, "seq_len": 512, "batch_tokens": 512, "sample_tokens": 0}
    values |= {"eval_every": 0, "save_minutes": 1.0, "trackers": []}
    # so few steps ask for a higher rate than the recipes': what they learn is one word
    dpo = trained("dpo", work, pairs, held_out, lr=5e-4, **values)
    reward = trained("reward", work, pairs, held_out, lr=5e-4, **values)
    result = {
        "model": MODEL,
        "steps": arguments.steps,
        "dpo": {
            "held_out_accuracy": dpo["metrics"]["eval_rewards/accuracies"],
            "held_out_margin": dpo["metrics"]["eval_rewards/margins"],
            "answers_before": asked_for(None, held_out),
            "answers_after": asked_for(dpo["model"], held_out),
        },
        "reward": judged(reward["model"], held_out),
    }
    (work / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
