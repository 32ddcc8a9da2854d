"""Policy gradients on the default model: what they teach, how fast the policy writes, and steps a minute beside a peer.

    python benchmarks/policy.py learn --work build/policy            # three seeds; what is stopped goes on where it was
    python benchmarks/policy.py learn --work build/policy --seeds 2  # one of them, so that two can run at once
    python benchmarks/policy.py rollouts                             # the policy against the engine on the same weights
    python benchmarks/policy.py steps --peer-python PEER/bin/python  # the same rollouts by TRL's trainer, in turns
    python benchmarks/policy.py agreement                            # what engine and trainer say of the same tokens

``learn``: the model is asked about things in words that no rule limits, and rewarded for answers of two to twelve words
(half) that are one sentence which comes to its end (half). The reward of held-out prompts is measured before the first
step and at the end, with the same seeds. ``rollouts``: a
batch of prompts is continued by the policy (with its adapter, drawing and log-probabilities) and by the plain engine
on the same weights without them, greedily, as ``tokenmill bench throughput`` does; in turns, the median ratio counts.
``steps``: one process of each after the other, twice, with the same prompts, group, lengths, adapter and number
format; the first step of each run is left out. ``agreement``: log-probabilities of what the engine drew in float32, by
it, by the trainer, and by the trainer in float64. The figures go to ``results/policy.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "smollm2:135m"
RESULT = Path(__file__).parent / "results" / "policy.json"
THINGS = """an old lighthouse, a red bicycle, my grey cat, a bowl of soup, the night train, a wooden chair,
a broken clock,
the school garden, a small island, a paper boat, the market square, a green umbrella, a lost key, the winter coat,
a blue door, a stone bridge, the corner shop, a quiet library, a tall ladder, a kite""".replace("\n", " ").split(", ")
QUESTIONS = (
    "Tell me about {}.",
    "Describe {} to me.",
    "What do you think of {}?",
    "Write about {}.",
    "What is {} for?",
)
SEEDS = (1, 2, 3)
PROMPTS, GROUP, TOKENS = 4, 8, 40
REWARDS = (
    {"kind": "length", "unit": "words", "least": 2, "most": 12, "slack": 30, "weight": 0.5},
    {"kind": "regex", "pattern": "[^.!?]+[.!?]", "whole": True, "weight": 0.5},
)


def write_prompts(path: Path) -> Path:
    rows = [{"prompt": question.format(thing)} for thing in THINGS for question in QUESTIONS]
    random.Random(0).shuffle(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # written anew it would be other data to a run that goes on
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(prompts: Path, runs: Path, group: int = GROUP, **values: Any) -> dict[str, Any]:
    policy = {"prompts": PROMPTS, "group": group, "completion_tokens": TOKENS}
    return {"model": MODEL, "data": {"path": str(prompts), "eval_share": 0.2}, "out": str(runs), "policy": policy,
            "rewards": list(REWARDS), "eval_batches": 2, "trackers": [], **values}  # fmt: skip


def learn(work: Path, seeds: Sequence[int]) -> dict[str, Any]:
    from tokenmill.align.policy import train

    prompts, found = write_prompts(work / "prompts.jsonl"), {}
    for seed in seeds:
        runs = work / f"seed-{seed}"
        result = None
        if not (runs / "done").exists():
            if (runs / "latest" / "checkpoints").is_dir():
                result = train(resume=runs / "latest")
            else:
                result = train("grpo", **settings(prompts, runs, seed=seed, steps=16, lr=5e-4, eval_every=0, group=6))
            if result.reason == "stopped":
                raise SystemExit(f"stopped at step {result.step}; run the same command again to go on")
            (runs / "done").touch()
        rows = [json.loads(line) for line in (runs / "latest" / "metrics.jsonl").read_text().splitlines()]
        curve = [(row["step"], row["eval_reward"]) for row in rows if "eval_reward" in row]
        steps = [row for row in rows if "grad_norm" in row]
        found[str(seed)] = {
            "before": curve[0][1],
            "after": curve[-1][1],
            "steps": steps[-1]["step"],
            "seconds": sum(row["seconds"] for row in steps),
            "logp_difference_mean": statistics.mean(row["sampling/logp_difference/mean"] for row in steps),
        }
        print(seed, found[str(seed)], flush=True)
    return found


def rollouts(batch: int = 32, prompt_len: int = 64, rounds: int = 3) -> dict[str, Any]:
    """Tokens a second of whole answers, prompts included in the time."""
    from tokenmill.adapt import adapt
    from tokenmill.align.rollouts import Ask, Writer
    from tokenmill.config.parts import AdapterConfig
    from tokenmill.config.policy import PolicyConfig
    from tokenmill.engine.engine import Engine
    from tokenmill.engine.request import Request
    from tokenmill.engine.sampling_params import SamplingParams
    from tokenmill.models import load_model

    def asks(round_: int) -> list[Ask]:
        draw = random.Random(round_)
        return [Ask(draw.choices(range(1000, 40000), k=prompt_len), i) for i in range(batch)]

    policy = load_model(MODEL, dtype="bfloat16")
    adapt(policy, AdapterConfig(kind="lora"), seed=0)
    writer = Writer(policy.decoder, PolicyConfig(completion_tokens=TOKENS), frozenset(), longest=128, batch=batch)
    plain = load_model(MODEL, dtype="bfloat16").decoder
    engine = Engine(plain, max_length=128, num_blocks=batch * 4, trained=True, prefix_caching=False)
    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    ratios, rates = [], []
    for number in range(rounds + 1):
        began = time.perf_counter()
        written = writer.write(asks(number))
        middle = time.perf_counter()
        for _ in engine.run([Request(list(ask.prompt_ids), greedy) for ask in asks(number)]):
            pass
        ended = time.perf_counter()
        if number:  # the first round records, packs and warms up
            mine = sum(len(one.ids) for one in written) / (middle - began)
            ratios.append(mine / (batch * TOKENS / (ended - middle)))
            rates.append(mine)
            print(f"policy {mine:.1f} tok/s, ratio {ratios[-1]:.2f}", flush=True)
    return {"batch": batch, "prompt_len": prompt_len, "gen_len": TOKENS, "tok_s": statistics.median(rates),
            "ratio": statistics.median(ratios), "ratios": ratios}  # fmt: skip


def steps(peer_python: Path, count: int = 2, rounds: int = 2) -> dict[str, Any]:
    """Seconds a step without the first, of each run of either."""
    from tokenmill.models import load_model, load_tokenizer

    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompts = write_prompts(folder / "prompts.jsonl")
        load_model(MODEL, dtype="bfloat16").save(folder / "model")
        load_tokenizer(MODEL).save(folder / "model")
        asked = {"model": str(folder / "model"), "prompts": str(prompts), "group": GROUP, "batch": PROMPTS * GROUP,
                 "tokens": TOKENS, "steps": 1 + count}  # fmt: skip
        driver = [str(peer_python), str(Path(__file__).parent / "policy_peer.py"), json.dumps(asked)]
        mine = [sys.executable, __file__, "own-steps", "--work", str(folder), "--count", str(1 + count)]
        for _ in range(rounds):
            for command, found in ((mine, ours), (driver, theirs)):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print("ours" if found is ours else "peer", found[-1], flush=True)
    pairs = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    return {"ours": ours, "peer": theirs, "ratio": statistics.median(pairs), "ratios": pairs}


def own_steps(folder: Path, count: int) -> dict[str, float]:
    from tokenmill.align.policy import train
    from tokenmill.train.watch_protocol import StepMetrics, Watcher

    class Clock(Watcher):
        def __init__(self) -> None:
            self.steps: list[StepMetrics] = []

        def on_step(self, metrics: StepMetrics) -> None:
            self.steps.append(metrics)

    clock, made = Clock(), settings(folder / "prompts.jsonl", folder / "runs", steps=count, eval_every=0, warmup=0)
    made |= {"model": str(folder / "model"), "dtype": "bfloat16", "save_minutes": 0.0, "save_every": 0, "lr": 1e-5}
    made["data"] = {"path": str(folder / "prompts.jsonl"), "eval_share": 0.0}
    train("grpo", watchers=[clock], **made)
    kept = clock.steps[1:]
    return {"seconds": statistics.mean(step.seconds for step in kept),
            "tokens": statistics.mean(step.extra["completions/length"] for step in kept)}  # fmt: skip


def agreement() -> dict[str, Any]:
    """Differences of log-probabilities in float32, mean and largest, of sixteen answers."""
    import torch

    from tokenmill.align.experience import Completion, batch_of
    from tokenmill.align.rollouts import Ask, Writer
    from tokenmill.config.policy import PolicyConfig
    from tokenmill.models import load_model, load_tokenizer
    from tokenmill.nn.context import Packed
    from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs

    tokenizer, model = load_tokenizer(MODEL), load_model(MODEL, dtype="float32").decoder
    turns = [[{"role": "user", "content": question.format(THINGS[0])}] for question in QUESTIONS[:4]]
    prompts = [tokenizer.encode(tokenizer.render_chat(turn, add_generation_prompt=True)) for turn in turns]
    asks = [Ask(prompt, 4 * i + k) for i, prompt in enumerate(prompts) for k in range(4)]
    writer = Writer(model, PolicyConfig(completion_tokens=TOKENS), frozenset(), longest=128, batch=len(asks))
    rows = [Completion(0, one.ids, one.logprobs, one.finished) for one in writer.write(asks)]
    batch = batch_of(rows, [ask.prompt_ids for ask in asks], per_token=True)
    here = batch.labels_T != NO_LABEL
    with torch.no_grad():
        said = {"engine": batch.sampler_T[here].double(), "trainer": batch_logprobs(model, batch)[here].double()}
        hidden_TC = model.double().hidden(batch.tokens_T, Packed(batch.lengths))
        exact_NV = model.logits(hidden_TC[here]).log_softmax(-1)
        said["float64"] = exact_NV.gather(1, batch.labels_T[here, None])[:, 0]
    found: dict[str, Any] = {"tokens": len(said["engine"])}
    for one, other in (("engine", "trainer"), ("engine", "float64"), ("trainer", "float64")):
        apart_N = (said[one] - said[other]).abs()
        found[f"{one}_{other}"] = {"mean": float(apart_N.mean()), "max": float(apart_N.max())}
    print(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["learn", "rollouts", "steps", "agreement", "own-steps"])
    parser.add_argument("--work", type=Path, default=Path("build/policy"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="learn: these runs")
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has TRL and PEFT")
    parser.add_argument("--count", type=int, default=4, help="own-steps: how many")
    given = parser.parse_args()
    if given.part == "own-steps":  # what `steps` runs in a process of its own
        print(json.dumps(own_steps(given.work, given.count)))
        return
    if given.part == "steps" and given.peer_python is None:
        raise SystemExit("steps needs --peer-python")
    found = {
        "learn": lambda: learn(given.work, given.seeds),
        "rollouts": rollouts,
        "agreement": agreement,
        "steps": lambda: steps(given.peer_python),
    }
    figures = found[given.part]()
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**known, given.part: figures, "load": os.getloadavg()[0]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
