"""Policy gradients from recipe to model on tiny ones: what the engine writes and the trainer computes agree, weights
that changed are taken over, runs are learned from, go on exactly, and refuse what they cannot do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from fakes.tiny_llm import tiny_folder
from fakes.training import Recorder, decoder
from tokenmill.adapt import adapt
from tokenmill.align.experience import Completion, batch_of
from tokenmill.align.policy import train
from tokenmill.align.rollouts import Ask, Writer
from tokenmill.config.compose import compose
from tokenmill.config.parts import AdapterConfig
from tokenmill.config.policy import PolicyConfig
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.data.prompts import Prompts, load_prompts
from tokenmill.engine.engine import Engine
from tokenmill.engine.request import Request
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.ops.batch_invariant import batch_invariant
from tokenmill.ops.native import native
from tokenmill.train.objectives.logprobs import NO_LABEL, batch_logprobs
from tokenmill.train.plan import plan_run
from tokenmill.train.report import report_page
from tokenmill.train.run import RunResult
from tokenmill.train.run import train as plain_train
from tokenmill.train.watch.watchers import watchers

WORKER = Path(__file__).parents[1] / "fakes" / "train_worker.py"
NATIVE = {**tiny.FAMILIES["qwen3"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tiny_folder(folder / "model")
    rows = [{"prompt": f"what is {i}", "answer": str(i)} for i in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(place: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    policy = {"prompts": 4, "group": 4, "completion_tokens": 8, **changes.pop("policy", {})}
    return {
        "recipe": "test",
        "objective": "grpo",
        "model": str(place / "model"),
        "data": {"path": str(place / "prompts.jsonl"), "eval_share": 0.2},
        "rewards": [{"kind": "regex", "pattern": "[a-m]"}],
        "policy": policy,
        "adapter": {"kind": "lora", "rank": 8},
        "seq_len": 64,
        "micro_batch": 6,
        "steps": 4,
        "lr": 1e-2,
        "schedule": "constant",
        "warmup": 0,
        "dtype": "float32",
        "eval_every": 0,
        "save_every": 0,
        "trackers": [],
        "out": str(runs),
        **changes,
    }


def disagreement(model: Decoder, writer: Writer, asked: list[Ask]) -> float:
    """The largest difference of what the engine says of its tokens and what the trainer does (of a log-probability
    beyond 1, as a share of it)."""
    written = writer.write(asked)
    rows = [Completion(0, one.ids, one.logprobs, one.finished) for one in written]
    batch = batch_of(rows, [ask.prompt_ids for ask in asked], per_token=True)
    logps_T = batch_logprobs(model, batch, temperature=writer.config.temperature)
    here = batch.labels_T != NO_LABEL
    apart_T = (logps_T - batch.sampler_T)[here].detach().abs()
    return float((apart_T / batch.sampler_T[here].abs().clamp(min=1.0)).max())


def asks(count: int = 6, vocabulary: int = 97) -> list[Ask]:
    draw = random.Random(0)
    beginning = draw.choices(range(3, vocabulary), k=40)
    return [Ask([*beginning, *draw.choices(range(3, vocabulary), k=1 + i // 2)], seed=i) for i in range(count)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_engine_and_trainer_agree(family: str, tmp_path: Path) -> None:
    tiny.write(tiny.FAMILIES[family], tmp_path)
    model = load_model(tmp_path, dtype="float32").decoder
    config = PolicyConfig(completion_tokens=6, temperature=0.8)
    assert disagreement(model, Writer(model, config, frozenset(), longest=64, batch=4), asks(4)) < 1e-5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_same_kernels_agree_to_the_bit(family: str, tmp_path: Path) -> None:
    """A deterministic engine decodes token by token over its cache, the trainer reads whole documents; where both use
    operations that do not depend on the batch, what they say of a token is the same number."""
    tiny.write(tiny.FAMILIES[family], tmp_path)
    model = load_model(tmp_path, dtype="float32").decoder
    params = SamplingParams(temperature=0.8, max_tokens=6, logprobs=0, drawn_logprobs=True)
    requests = [Request(list(ask.prompt_ids), params, ask.seed, frozenset()) for ask in asks(3)]
    drawn: dict[Request, list[float]] = {request: [] for request in requests}
    for step in Engine(model, num_blocks=16, deterministic=True).run(requests):
        assert step.logprobs is not None
        drawn[step.request].append(step.logprobs.logprob)
    rows = [Completion(0, request.output, drawn[request], False) for request in requests]
    batch = batch_of(rows, [request.prompt for request in requests], per_token=True)
    here = batch.labels_T != NO_LABEL
    with batch_invariant(), torch.no_grad():
        hidden_TC = model.hidden(batch.tokens_T, Packed(batch.lengths))
        logps_NV = (model.logits(hidden_TC[here]) / params.temperature).log_softmax(-1)
    assert torch.equal(logps_NV.gather(1, batch.labels_T[here, None])[:, 0], batch.sampler_T[here])


@pytest.mark.parametrize("kind", ["whole", "lora", "dora", "ia3", "prefix", "prompt", "bottleneck"])
def test_weights_that_changed_are_taken_over(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the native kernels too, whose matrices are in a layout of their own; nothing cached from before is used."""
    if kind == "whole":
        model = decoder(config=NATIVE)
    else:
        tiny.write(NATIVE, tmp_path)
        loaded = load_model(tmp_path, dtype="float32")
        adapt(loaded, AdapterConfig(kind=kind, rank=8), seed=0)  # type: ignore[arg-type]
        model = loaded.decoder
    writer = Writer(model, PolicyConfig(completion_tokens=6), frozenset(), longest=64, batch=6)
    assert disagreement(model, writer, asks()) < 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    assert disagreement(model, writer, asks()) < 1e-5
    if kind in ("whole", "lora") and native() is not None:
        assert writer.engine.native
    monkeypatch.setattr(writer.engine, "refresh", lambda: None)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    assert disagreement(model, writer, asks()) > 1e-3  # the planted fault shows


def test_completions_of_a_prompt_share_its_blocks() -> None:
    model = decoder(config=NATIVE)
    writer = Writer(model, PolicyConfig(completion_tokens=4), frozenset(), longest=64, batch=4)
    seen: list[int] = []
    add = writer.engine.add
    writer.engine.add = lambda request: (add(request), seen.append(request))[0]  # type: ignore[method-assign]
    writer.write([Ask(asks()[0].prompt_ids, seed) for seed in range(4)])
    assert sorted(request.cached_tokens for request in seen) == [0, 32, 32, 32]  # type: ignore[attr-defined]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.model is not None
    return load_file(result.model / "adapter_model.safetensors")


def test_it_learns(place: Path, tmp_path: Path) -> None:
    seen = Recorder()
    rewards = [{"kind": "regex", "pattern": "[aeiou]"}]
    train(recipe(place, tmp_path, steps=20, rewards=rewards, policy={"group": 8}), watchers=[seen])
    rewards_of = [step.extra["reward"] for step in seen.steps]
    assert sum(rewards_of[-4:]) / 4 > sum(rewards_of[:4]) / 4 + 0.25


def test_it_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    """Stopped in the middle of a rollout, the run ends with the very weights of one that was not stopped."""
    changes: dict[str, Any] = {"policy": {"minibatches": 2, "iterations": 2, "beta": 0.01}, "steps": 12}
    seen = Recorder()
    told = recipe(place, tmp_path / "a", **changes)
    whole = train(told, watchers=[seen, *watchers(compose(told).recipe, screen=False)])
    half = train(recipe(place, tmp_path / "b", **{**changes, "steps": 5}), watchers=[])
    again = train(resume=half.folder, overrides=["steps=12"], watchers=[])
    one, other = weights(whole), weights(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    first, last = (seen.steps[i].extra for i in (0, -1))
    assert abs(first["kl"]) < 1e-6 < last["kl"]
    assert max(step.extra["sampling/logp_difference/max"] for step in seen.steps) < 1e-5
    for name in ("entropy", "clip_ratio/region_mean", "frac_reward_zero_std", "completions/length", "reward_std"):
        assert name in last
    assert [seen.evals[0].step, seen.evals[-1].step] == [0, 12]
    assert "reward" in seen.evals[0].extra
    page = report_page(whole.folder)
    assert "best held-out reward" in page
    assert "Reward of an answer, all together" in page
    assert "Tokens of an answer" in page


def test_killed_it_goes_on_exactly(place: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a rollout: the steps from the checkpoint on and the weights are those of a run that
    nobody touched."""
    how: dict[str, Any] = {"policy": {"minibatches": 2, "iterations": 2}, "steps": 10, "save_every": 3}
    seen, again = Recorder(), Recorder()
    whole = train(recipe(place, tmp_path / "whole", **how), watchers=[seen])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(place, tmp_path / "runs", **how)))
    command, environment = [sys.executable, str(WORKER), str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 7"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    resumed = train(resume=tmp_path / "runs" / "latest", watchers=[again])
    # whole by then, for checkpoints are written while training goes on; none of these is a rollout's end
    assert again.starts[0].step in (3, 6, 9)
    assert seen.losses[again.starts[0].step :] == again.losses
    assert [step.extra["completions/length"] for step in seen.steps[-len(again.steps) :]] == [
        step.extra["completions/length"] for step in again.steps
    ]
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "rloo", "policy": {"beta": 0.1}},
        {"policy": {"loss": "dapo", "dynamic_rounds": 2, "overlong_tokens": 4, "mask_truncated": True}},
        {"adapter": None, "policy": {"loss": "cispo", "rollout_dtype": "bfloat16", "beta": 0.02}, "lr": 1e-4},
    ],
)
def test_other_kinds_run(changes: dict[str, Any], place: Path, tmp_path: Path) -> None:
    seen = Recorder()
    result = train(recipe(place, tmp_path, steps=2, **changes), watchers=[seen])
    assert result.reason == "finished"
    assert len(seen.steps) == 2
    if changes.get("adapter", 0) is None:  # the engine rounds, so weights correct it
        assert "sampling/importance_sampling_ratio/mean" in seen.steps[0].extra


def test_prompts_are_read_split_and_counted(place: Path, tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": f"p {i}", "answer": i} for i in range(30)]
    rows += [rows[5], {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}]}]
    rows += [{"prompt": "long " * 60}, {"question": "?"}]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = compose(recipe(place, tmp_path), [f"data.path={file}", "data.duplicates=drop"]).recipe.data
    splits = load_prompts(config, load_tokenizer(place / "model"), seq_len=80, room=8)
    report = splits.report
    assert isinstance(splits.train, Prompts)
    assert isinstance(splits.eval, Prompts)
    assert report.broken == 1
    assert report.train.truncated + report.eval.truncated == 1
    assert report.train.duplicates + report.leaked == 1
    assert len(splits.train) + len(splits.eval) == 31
    prompts = [*splits.train.prompts, *splits.eval.prompts]
    said = next(prompt for prompt in prompts if "answer" not in prompt.row)
    assert said.messages == [{"role": "user", "content": "hi"}]
    assert said.text.endswith("assistant\n")
    with pytest.raises(ConfigError, match="no prompt to train on"):
        load_prompts(config, load_tokenizer(place / "model"), seq_len=10, room=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": []}, "needs something that rewards"),
        ({"accumulate": 2}, "a step's size is policy.prompts"),
        ({"policy": {"minibatches": 3}}, "cannot be dealt to 3 minibatches"),
        ({"policy": {"overlong_tokens": 9}}, "cannot be more"),
        ({"seq_len": 8}, "leaves no room"),
        ({"sample_prompts": ["hello"]}, "sample_prompts=.* has no effect"),
        ({"adapter": {"kind": "lora", "dropout": 0.1}}, "adapter.dropout"),
        ({"objective": "rloo", "policy": {"loss": "dapo"}}, "policy.loss=dapo has no effect"),
        ({"objective": "sft", "rewards": [], "policy": {"beta": 0.1}}, "policy.beta=0.1 has no effect"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(recipe(place, tmp_path, **changes))


def test_plan_says_what_a_variant_means(place: Path, tmp_path: Path) -> None:
    plan = plan_run(compose(recipe(place, tmp_path, policy={"loss": "dapo"}, steps=None, epochs=2.0)))
    policy = plan.recipe.policy
    assert (policy.clip_low, policy.clip_high, policy.scale, policy.beta) == (0.2, 0.28, "group", 0.0)
    assert policy.correction == "off"
    assert plan.accumulate == 3
    assert plan.steps == 10
    with pytest.raises(UsageError, match=r"align\.policy"):
        plain_train(recipe(place, tmp_path))
