"""PPO from recipe to model on a tiny one: it learns, goes on exactly, leaves out what has no reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fakes.tiny_llm import tiny_folder
from tokenmill.align.policy import train
from tokenmill.align.ppo import PpoSource
from tokenmill.config.compose import compose
from tokenmill.core.errors import ConfigError
from tokenmill.models import load_model
from tokenmill.train.run import RunResult

VOWELS = {"kind": "regex", "pattern": "e", "name": "vowels"}
"""What a random model writes in four of ten answers."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    tiny_folder(folder / "model")
    rows = [{"prompt": f"the {word} sat"} for word in ("cat", "dog", "log", "mat")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(place: Path, out: str, **values: Any) -> dict[str, Any]:
    policy = {"prompts": 4, "group": 4, "iterations": 4, "completion_tokens": 12, **values.pop("policy", {})}
    return {
        "model": str(place / "model"), "data": {"path": str(place / "prompts.jsonl"), "eval_share": 0.0},
        "rewards": [VOWELS], "policy": policy, "adapter": None, "out": str(place / out), "micro_batch": 32,
        "seq_len": 64, "dtype": "float32", "lr": 1e-2,
        "trackers": [], "sample_tokens": 0, "save_every": 0, "warmup": 0, "save_minutes": 0.0, **values,
    }  # fmt: skip


def run(place: Path, out: str, **values: Any) -> RunResult:
    result = train("ppo", watchers=None, **settings(place, out, **values))
    assert isinstance(result, RunResult)
    return result


def rows(result: RunResult) -> list[Mapping[str, float]]:
    """What was said of each step."""
    found = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "lr" in row]


@pytest.fixture(scope="module")
def learned(place: Path) -> RunResult:
    guards = {"kl": 0.01, "patience": 2}  # nats a token: any run that learns passes it
    return run(place, "learned", steps=12, policy={"group": 8}, ppo={"missing_end": 0.0}, guards=guards)


def test_a_run_learns_and_says_how(learned: RunResult, place: Path) -> None:
    found = rows(learned)
    rollouts = [row["reward"] for row in found[::4]]
    assert sum(rollouts[1:]) / 2 > rollouts[0] + 0.15
    last = found[-1]
    for name in ("rewards/vowels/mean", "kl", "kl/completion", "kl/weight", "value/loss", "value/explained_variance",
                 "entropy", "policy_loss", "completions/length", "clip_ratio/region_mean"):  # fmt: skip
        assert name in last, name
    assert found[0]["kl/completion"] == pytest.approx(0.0, abs=1e-4)  # it is its own reference at first
    assert last["kl/completion"] > 0
    # trainer and engine compute the same numbers on the first pass over a rollout
    assert found[0]["sampling/logp_difference/max"] < 1e-4
    log = (learned.folder / "metrics.jsonl").read_text().splitlines()
    assert any("kl: " in row["message"] for row in map(json.loads, log) if row.get("event") == "alarm")
    assert learned.model is not None
    names = set(load_file(learned.model / "model.safetensors"))
    assert names
    assert not any("critic" in name for name in names)
    load_model(learned.model)


def test_a_stopped_run_goes_on_exactly(place: Path) -> None:
    """In the middle of a rollout, with the critic and the price of distance as they were."""
    policy = {"iterations": 2}
    straight = run(place, "straight", steps=3, policy=policy)
    half = run(place, "half", steps=1, policy=policy)
    again = train(resume=half.folder, overrides=["steps=3"], watchers=[])
    assert straight.model is not None
    assert again.model is not None
    wanted, found = (load_file(one.model / "model.safetensors") for one in (straight, again))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_critic_of_its_own(place: Path) -> None:
    result = run(place, "own", steps=1, dtype="bfloat16", ppo={"critic": "own", "kl": "fixed"}, policy={"beta": 0.0})
    last = rows(result)[-1]
    assert "value/loss" in last
    assert "kl" not in last  # nothing is compared that costs nothing


def test_what_has_no_reward_is_left_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokens have no label, and the advantages of the others are whitened without it."""
    seen: list[Any] = []
    judged = PpoSource.judged

    def spoiled(self: PpoSource, groups: Any, rewards_GK: Any) -> Any:
        groups = [[replace(one, reward=None) if n % 2 else one for n, one in enumerate(group)] for group in groups]
        found = judged(self, groups, rewards_GK)
        seen.extend(found)
        nothing = judged(self, [[replace(one, reward=None) for one in group] for group in groups], rewards_GK)
        assert not any(one.learned for one in nothing)
        return found

    monkeypatch.setattr(PpoSource, "judged", spoiled)
    run(place, "spoiled", steps=1)
    out = [one for one in seen if one.reward is None]
    assert len(out) == 8
    assert all(not one.learned and not any(one.advantages) for one in out)
    kept = torch.tensor([value for one in seen if one.reward is not None for value in one.advantages])
    assert float(kept.mean()) == pytest.approx(0, abs=1e-5)
    assert float(kept.std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("rewards=[{kind: lenght, most: 2}]", r"'lenght' is no kind of reward \(did you mean 'length'\?\)"),
        ("rewards=[{kind: length, most: 2, mots: 1}]", r"length has no key mots \(did you mean 'most'\?\)"),
        ("rewards=[{kind: length}]", "length needs most"),
        ("rewards=[]", "needs something that rewards"),
        ("ppo.critic_model=x", "needs ppo.critic=own"),
        ("policy.scale=group", "objective=grpo or rloo"),
    ],
)
def test_refusals(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        compose("ppo", ["model=m", "data=d", "rewards=number", override])
