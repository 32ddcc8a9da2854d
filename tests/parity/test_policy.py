"""Policy objectives and advantages against TRL 1.16: loss, gradients and metrics on a fixed batch, float32.

The values come from TRL itself (``python tests/make_trl_policy_golden.py``); it need not be installed here. What TRL
has not (corrections that mask) is checked against the papers' formulas.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from fakes.policy_cases import CASES, LONGEST, NOISE, REWARDS, ROWS, SAMPLER
from fakes.tiny_llm import tiny_folder
from tokenmill.align.advantages import group_advantages, leave_one_out, overlong, without_difference
from tokenmill.align.experience import Completion, batch_of
from tokenmill.config.policy import PolicyConfig, derived_policy
from tokenmill.config.recipe import Recipe
from tokenmill.data.rollout_batch import RolloutBatch
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.models.weights import file_tensors
from tokenmill.train.distributed import World
from tokenmill.train.evaluate import Means
from tokenmill.train.objectives import build_objective
from tokenmill.train.objectives.policy import Tokens, correction

GOLDEN = np.load(tiny.GOLDEN / "policy.npz")
OURS = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "cispo_clip_ratio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("policy")
    tiny_folder(place)
    return place


def batch(values: Mapping[str, Any], known: np.ndarray, rows: slice, *, per_token: bool) -> RolloutBatch:
    """The fixed completions as the loop is given them."""
    ends = np.cumsum([0, *(len(row["completion"]) for row in ROWS)])

    def part(flat: np.ndarray, i: int) -> list[float]:
        return flat[ends[i] : ends[i + 1]].tolist()

    old = known + NOISE["old"]
    completions = []
    for i in range(len(ROWS))[rows]:
        ids = ROWS[i]["completion"]
        completions.append(
            Completion(
                i,
                ids,
                part(known - SAMPLER, i),
                finished=True,
                advantages=[ROWS[i]["advantage"]] * len(ids),
                old=None if values.get("first") else part(old, i),
                reference=part(known + NOISE["reference"], i) if "beta" in values else None,
            )
        )
    return batch_of(completions, [ROWS[one.prompt]["prompt"] for one in completions], per_token=per_token)


def step(label: str, folder: Path, sizes: list[int]) -> tuple[Model, float, dict[str, float]]:
    """What the loop does with these micro-batches: the model with its gradients, mean loss, mean metrics."""
    objective, values, _ = CASES[label]
    policy: dict[str, Any] = {"completion_tokens": LONGEST, "beta": 0.0, "correction": "off"}
    policy |= {name: value for name, value in values.items() if name != "first"}
    policy |= derived_policy(objective, PolicyConfig.model_validate(policy))
    recipe = Recipe.model_validate({"objective": objective, "policy": policy})
    model = load_model(folder, dtype="float32")
    network: Any = model.network.requires_grad_(True)
    made: Any = build_objective(recipe)
    per_token = made.preset.mean == "tokens"
    cuts = np.cumsum([0, *sizes])
    given = [
        batch(values, GOLDEN[f"{label}/known"], slice(a, b), per_token=per_token) for a, b in itertools.pairwise(cuts)
    ]
    count, found = sum(one.num_labels for one in given), Means()
    for one in given:
        loss = made(network, one)
        (loss.sum / count).backward()
        found.add(loss, 0)
    return model, *found.over(World())


@pytest.mark.parametrize("label", CASES)
def test_equals_trl(label: str, folder: Path) -> None:
    model, loss, metrics = step(label, folder, [len(ROWS)])
    assert loss == pytest.approx(float(GOLDEN[f"{label}/loss"]), abs=1e-5)
    theirs = json.loads(str(GOLDEN[f"{label}/metrics"]))
    for name in OURS:
        if name in theirs:
            assert metrics[name] == pytest.approx(theirs[name], abs=1e-5), name
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
    gradients = dict(file_tensors(model.network, model.family.weights))
    for name, norm in json.loads(str(GOLDEN[f"{label}/norms"])).items():
        if name in gradients:
            assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-5), name
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        torch.testing.assert_close(gradients[name], torch.from_numpy(GOLDEN[f"{label}/gradient/{name}"]),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("label", ["grpo", "dapo", "gspo", "rloo"])
def test_micro_batches_change_nothing(label: str, folder: Path) -> None:
    whole, loss, metrics = step(label, folder, [6])
    parts, split_loss, split_metrics = step(label, folder, [1, 3, 2])
    assert split_loss == pytest.approx(loss, abs=1e-6)
    assert split_metrics == pytest.approx(metrics, abs=1e-5)
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_advantages_equal_trl() -> None:
    rewards_GK = torch.tensor(REWARDS)
    for scale in ("group", "batch", "none"):
        expected = torch.from_numpy(GOLDEN[f"advantages/grpo/{scale}"])
        torch.testing.assert_close(group_advantages(rewards_GK, scale), expected, rtol=1e-5, atol=1e-5)
    for scale in ("batch", "none"):
        expected = torch.from_numpy(GOLDEN[f"advantages/rloo/{scale}"])
        torch.testing.assert_close(leave_one_out(rewards_GK, scale), expected, rtol=1e-5, atol=1e-5)
    assert without_difference(rewards_GK).tolist() == [False, True, False, False]
    alone = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]])
    assert not group_advantages(alone, "group").any()
    assert not leave_one_out(alone, "none").any()
    assert without_difference(alone).tolist() == [True, True]


def test_length_costs_only_where_it_is_overlong() -> None:
    assert [overlong(n, 100, 20) for n in (1, 80, 90, 100)] == [0.0, 0.0, -0.5, -1.0]
    assert overlong(100, 100, 0) == 0.0


def test_corrections_are_the_papers() -> None:
    rows = [Completion(0, [5, 6], [0.0, 0.0], True), Completion(1, [7], [0.0], True)]
    tokens = Tokens(batch_of(rows, [[1], [1]], per_token=True))
    trainer_N, sampler_N = torch.tensor([1.0, -0.5, 0.2]), torch.zeros(3)
    ratios = trainer_N.exp()
    expected = {
        "token_truncate": ratios.clamp(max=2.0),
        "token_mask": torch.tensor([0.0, ratios[1], ratios[2]]),
        "sequence_truncate": torch.tensor([0.5, 0.5, 0.2]).exp().clamp(max=2.0),
        "sequence_mask": torch.tensor([0.5, 0.5, 0.2]).exp(),
    }
    for mode, weights in expected.items():
        torch.testing.assert_close(correction(tokens, trainer_N, sampler_N, mode, 2.0), weights)
    broken = correction(tokens, trainer_N * 1e6, sampler_N, "sequence_mask", 2.0)
    assert broken.isfinite().all()
    assert broken[0] == 0
