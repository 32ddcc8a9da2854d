"""Preference objectives and reward modelling against TRL 1.16: loss, gradients and metrics on a fixed batch, float32.

The values come from TRL itself (``python tests/make_trl_golden.py``); it need not be installed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import tiny
from fakes.preference_cases import CASES, ROWS, reference_folder, scorer_folder
from fakes.tiny_llm import tiny_folder
from tokenmill.config.recipe import Recipe
from tokenmill.data.batch import NO_LABEL, ComparedBatch, ComparedSample
from tokenmill.data.compared import CollateCompared
from tokenmill.models import load_model
from tokenmill.models.load import Model
from tokenmill.models.weights import file_tensors
from tokenmill.train.distributed import World
from tokenmill.train.objectives import build_objective
from tokenmill.train.objectives.base import Loss, OfStep
from tokenmill.train.objectives.logprobs import answer_logprobs
from tokenmill.train.objectives.pairs import dpo_losses, log1mexp

GOLDEN = np.load(tiny.GOLDEN / "preferences.npz")
TRL_ONLY = {"entropy", "num_tokens", "mean_token_accuracy", "logits/chosen", "logits/rejected"}
"""Metrics that say nothing of preferences, and cost the scores of the whole vocabulary."""
OURS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("preferences")
    tiny_folder(place / "model")
    reference_folder(place / "reference")
    scorer_folder(place / "scorer")
    return place


def samples(objective: str) -> list[ComparedSample]:
    """The fixed rows as a data set gives them: the last token is no input, or, to be scored, all are."""
    answers = [row["chosen"] if row["good"] else row["rejected"] for row in ROWS]
    found = []
    for i, row in enumerate(ROWS):
        pair = (row["chosen"], row["rejected"]) if objective != "kto" else (answers[i], answers[i - 1])
        ids = [np.array(row["prompt"] + answer) for answer in pair]
        whole = objective == "reward"
        labels = [np.concatenate((np.full(len(row["prompt"]) - 1, NO_LABEL), answer)) for answer in pair]
        parts = [(tokens, np.full(len(tokens), NO_LABEL)) if whole else (tokens[:-1], learned)
                 for tokens, learned in zip(ids, labels, strict=True)]  # fmt: skip
        tokens, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
        good = bool(row["good"]) if objective == "kto" else True
        found.append(ComparedSample(i, tokens, targets, split=len(parts[0][0]), good=good, margin=row["margin"]))
    return found


def batches(objective: str, values: Mapping[str, Any], folder: Path, sizes: list[int]) -> list[ComparedBatch]:
    likelihood: Any = {"orpo": "all"}.get(objective, "answer" if values.get("sft_weight") else "none")
    rows = samples(objective)
    reference = None
    if objective in ("dpo", "kto"):
        with torch.no_grad():
            model = load_model(folder / "reference", dtype="float32").decoder
            reference = answer_logprobs(model, CollateCompared()(rows, 0)).view(-1, 2).numpy()
    collate = CollateCompared(likelihood, reference)
    cuts = np.cumsum([0, *sizes])
    return [collate(rows[a:b], 0) for a, b in pairwise(cuts)]


def step(objective: str, values: Mapping[str, Any], folder: Path, sizes: list[int]) -> tuple[Model, float, dict]:
    """What the loop does with these micro-batches: the model with its gradients, mean loss, mean metrics."""
    part = "reward" if objective == "reward" else "preference"
    recipe = Recipe.model_validate({"objective": objective, part: dict(values)})
    model = load_model(folder / ("scorer" if objective == "reward" else "model"), dtype="float32")
    network: Any = model.network.requires_grad_(True)
    made: Any = build_objective(recipe)
    given = batches(objective, values, folder, sizes)
    if isinstance(made, OfStep):
        made = made.of_step(network, given, World())
    losses: list[Loss] = [made(network, batch) for batch in given]
    count, num_nll = sum(b.num_labels for b in given), sum(b.num_nll for b in given)
    total = sum(loss.sum for loss in losses) / count
    if losses[0].nll is not None:
        total = total + sum(loss.nll for loss in losses if loss.nll is not None) / num_nll
    assert isinstance(total, Tensor)
    total.backward()
    sums: dict[str, list[float]] = {}
    for loss in losses:
        for name, value in loss.metrics.items():
            top, bottom = value if isinstance(value, tuple) else (value, loss.count)
            sums[name] = [a + b for a, b in zip(sums.get(name, [0.0, 0.0]), (top, bottom), strict=True)]
    return model, float(total.detach()), {name: top / bottom for name, (top, bottom) in sums.items()}


def gradients(model: Model) -> dict[str, Tensor]:
    """By the hub's names."""
    for parameter in model.network.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return dict(file_tensors(model.network, model.family.weights))


@pytest.mark.parametrize("sizes", [[5], [2, 1, 2]], ids=["whole", "split"])
@pytest.mark.parametrize("label", CASES)
def test_equals_trl(folder: Path, label: str, sizes: list[int]) -> None:
    """Split into micro-batches too: TRL's own mean over micro-batches would differ, its whole batch does not."""
    objective, values, _ = CASES[label]
    model, loss, metrics = step(objective, values, folder, sizes)
    assert loss == pytest.approx(float(GOLDEN[f"{label}/loss"]), rel=1e-5)
    found, norms = gradients(model), json.loads(str(GOLDEN[f"{label}/norms"]))
    for name, norm in norms.items():
        assert float(found[name].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-5), name
    for key in (key for key in GOLDEN.files if key.startswith(f"{label}/gradient/")):
        torch.testing.assert_close(found[key.split("/")[-1]], torch.from_numpy(GOLDEN[key]), rtol=1e-4, atol=1e-5)
    wanted = json.loads(str(GOLDEN[f"{label}/metrics"]))
    if objective == "reward":
        assert (metrics["rewards/chosen"] + metrics["rewards/rejected"]) / 2 == pytest.approx(wanted["mean_reward"])
        wanted = {OURS[name]: wanted[name] for name in OURS}
    if objective == "simpo" and not values.get("sft_weight"):
        assert wanted.pop("nll_loss") == 0.0  # not computed by either
    for name in wanted.keys() - TRL_ONLY:
        if objective == "kto" and name == "rewards/margins":  # the difference of the two means that we give
            assert metrics["rewards/chosen"] - metrics["rewards/rejected"] == pytest.approx(wanted[name], abs=1e-5)
        else:
            assert metrics[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-5), name


def test_smoothing_is_the_papers(folder: Path) -> None:
    """Conservative DPO (Mitchell 2023), which TRL has dropped: the expected loss where a share of labels is flipped."""
    ratios = torch.tensor([[0.3, -1.2], [-2.0, 0.5]])
    config = Recipe.model_validate({"preference": {"beta": 0.4, "label_smoothing": 0.1}}).preference
    margin = 0.4 * (ratios[:, 0] - ratios[:, 1])
    want = 0.9 * -logsigmoid(margin) + 0.1 * -logsigmoid(-margin)
    torch.testing.assert_close(dpo_losses(ratios, torch.ones(2, 2), config), want)


def test_log1mexp_near_its_ends() -> None:
    """Exact to float32 from nearly certain to nearly impossible, with a gradient that is finite everywhere."""
    x = torch.tensor([-1e-6, -1e-3, -0.5, -0.6931, -0.7, -5.0, -20.0, -100.0], requires_grad=True)
    got = log1mexp(x)
    want = torch.log(-torch.expm1(x.detach().double()))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12)
    got.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(log1mexp(torch.tensor([0.0]))).all()
