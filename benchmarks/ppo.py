"""What PPO does to the default model: a reward model learns a planted preference, the policy learns from it.

    python benchmarks/ppo.py --work build/ppo

Pairs are made from templates: the short answer is chosen, the same one with more sentences behind it rejected.
Questions about things that no training row names are held out. Shown: how often the reward model scores the held-out
short answer higher; the mean reward of the policy's answers to held-out questions before and after; the share of them
that end by themselves within the longest length; the distance to the reference in the last rollouts, beside its target.
Minutes on two cores; what is stopped goes on where it was. The figures go to ``results/ppo.json``.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill.align.policy import train
from tokenmill.align.reward_model import RewardModel, length_of, pair_documents
from tokenmill.evals.calibration import judge_scores

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "ppo.json"
THINGS = """apples bread candles doors engines flowers gardens houses islands jackets kites lamps mountains notebooks
oceans pencils rivers shoes trains umbrellas violins windows""".split()  # noqa: SIM905
QUESTIONS = ("Describe {} in one sentence.", "Name one use of {}.", "What are {} for?", "Why do people like {}?")
SHORT = ("{} are useful.", "People like {}.", "{} have many uses.", "They help people.", "{} make life easier.")
MORE = (
    "They come in many shapes and sizes, and are found in most places around the world.",
    "For centuries they have played an important role in culture and history, as many stories tell.",
    "There is a lot more to say about how they are made, used and kept in different countries.",
    "Some people say that they are a symbol of joy, love and harmony, which is a matter of taste.",
)
HELD_OUT = 5
"""Things that no training row names."""
TARGET = 6.0
"""Nats an answer."""


def write_data(folder: Path) -> None:
    """Pairs and prompts, for training and held out."""
    draw = random.Random(0)
    things = draw.sample(THINGS, len(THINGS))
    for name, some in (("train", things[HELD_OUT:]), ("held-out", things[:HELD_OUT])):
        pairs, prompts = [], []
        for thing in some:
            for question in QUESTIONS:
                prompt, short = {"prompt": question.format(thing)}, draw.choice(SHORT).format(thing).capitalize()
                longer = " ".join([short, *draw.sample(MORE, draw.choice((1, 2, 2, 3)))])
                pairs.append({**prompt, "chosen": short, "rejected": longer})
                prompts.append(prompt)
        for kind, rows in (("pairs", pairs), ("prompts", prompts)):
            path = folder / f"{kind}-{name}.jsonl"
            if not path.exists():  # written anew it would be other data to a run that goes on
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def trained(recipe: str, folder: Path, **values: Any) -> Path:
    """The folder of a run, begun, gone on with, or finished already."""
    latest = folder / recipe / "latest"
    if (latest / "model").exists():
        return latest
    if (latest / "checkpoints" / "latest").exists():
        result = train(resume=latest, overrides=[f"steps={values['steps']}"])
    else:
        values |= {
            "out": str(folder / recipe),
            "eval_every": 0,
            "sample_tokens": 0,
            "trackers": [],
            "save_minutes": 1.0,
        }
        result = (tokenmill.train if recipe == "reward" else train)(recipe, model=MODEL, **values)
    if result.reason == "stopped":
        raise SystemExit(f"stopped at step {result.step}; run the same command again to go on")
    return Path(result.folder)


def judged(model: Path, pairs: Path) -> float:
    """The share of held-out pairs whose chosen side the reward model scores higher."""
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    documents = [pair_documents(row) for row in rows]
    scorer = RewardModel.load(model)
    chosen, rejected = (scorer.score_documents([pair[side] for pair in documents]) for side in (0, 1))
    found = judge_scores(chosen, rejected, [(length_of(a), length_of(b)) for a, b in documents])
    return float(found.as_dict()["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/ppo"))
    parser.add_argument("--rollouts", type=int, default=10)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    write_data(work)
    pairs = {"path": str(work / "pairs-train.jsonl"), "eval": str(work / "pairs-held-out.jsonl")}
    reward = trained("reward", work, data=pairs, steps=14, seq_len=512, batch_tokens=512, lr=5e-4) / "model"
    prompts = {"path": str(work / "prompts-train.jsonl"), "eval": str(work / "prompts-held-out.jsonl")}
    policy = {"prompts": 16, "group": 1, "iterations": 4, "completion_tokens": 32, "beta": 0.4}
    rewards = [{"kind": "model", "models": [str(reward)]}]
    ppo = {"missing_end": 1.0, "kl_target": TARGET, "kl_horizon": 100, "value_clip": 1.0}
    run = trained("ppo", work, data=prompts, rewards=rewards, policy=policy, ppo=ppo, lr=2e-4,
                  steps=4 * arguments.rollouts, eval_batches=2, micro_batch=16)  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [row for row in rows if "eval_reward" in row]
    steps = [row for row in rows if "kl/completion" in row]
    first, last = evaluations[0], evaluations[-1]
    distances = [row["kl/completion"] for row in steps[-16::4]]
    result = {
        "model": MODEL,
        "reward_model_accuracy": judged(reward, work / "pairs-held-out.jsonl"),
        "held_out_reward": {"before": first["eval_reward"], "after": last["eval_reward"]},
        "ended_by_itself": {
            name: 1 - row["eval_completions/cut_off"] for name, row in (("before", first), ("after", last))
        },
        "kl_of_an_answer": {"last_rollouts": sum(distances) / len(distances), "target": TARGET},
        "rollouts": arguments.rollouts,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
