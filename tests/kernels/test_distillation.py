"""The chunked distillation loss against the plain one and against formulas written another way."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.ops import cross_entropy
from tokenmill.ops.cross_entropy import IGNORED, finish_logits, linear_cross_entropy
from tokenmill.ops.distillation import (
    Divergence,
    Taught,
    Teacher,
    chunked_distillation,
    divergence,
    linear_distillation,
)
from tokenmill.ops.registry import use_backend

T, C, V, W, K = 23, 16, 37, 33, 5
KINDS = ["forward_kl", "reverse_kl", "jsd"]


def inputs(dtype: torch.dtype = torch.float64, labelled: float = 0.6) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(W, (T,), generator=draw)
    labels[torch.rand(T, generator=draw) > labelled] = IGNORED
    values = {"hidden_TC": (T, C), "weight_VC": (V, C), "bias_V": (V,)}
    made = {n: torch.randn(*s, generator=draw, dtype=torch.float64).to(dtype) for n, s in values.items()}
    return {**{n: t.requires_grad_() for n, t in made.items()}, "labels_T": labels}


def teacher_of(temperature: float, top: bool, width: int = V) -> tuple[Tensor, Teacher]:
    """A teacher's scores [T, W], and what it says of rows: all of them or its list."""
    scores_TW = 2 * torch.randn(T, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if not top:
        return scores_TW, lambda rows: Taught(scores_TW[rows])
    values_TK, ids_TK = torch.log_softmax(scores_TW / temperature, -1).topk(K)
    return scores_TW, lambda rows: Taught(values_TK[rows], ids_TK[rows], width)


def textbook(logq: Tensor, logp: Tensor, kind: str, beta: float) -> Tensor:
    """Divergences of rows with torch's own kl_div, whose first argument is the second distribution."""

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return F.kl_div(other, one, reduction="none", log_target=True).sum(-1)

    if kind == "forward_kl":
        return kl(logp, logq)
    if kind == "reverse_kl":
        return kl(logq, logp)
    mixed = (beta * logp.exp() + (1 - beta) * logq.exp()).log()
    return beta * kl(logp, mixed) + (1 - beta) * kl(logq, mixed)


@pytest.mark.parametrize(("kind", "top"), list(itertools.product(KINDS, [False, True])))
def test_divergences_are_those_of_the_textbook(kind: str, top: bool) -> None:
    scores_TV = torch.randn(T, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    theirs_TW, teacher = teacher_of(1.7, top, V)
    logq, logp = torch.log_softmax(scores_TV / 1.7, -1), torch.log_softmax(theirs_TW / 1.7, -1)
    if top:  # the list, and all other tokens as one
        ids = teacher(torch.arange(T)).ids
        assert ids is not None
        logq, logp = (torch.cat((f.gather(-1, ids), (1 - f.gather(-1, ids).exp().sum(-1, True)).log()), -1)
                      for f in (logq, logp))  # fmt: skip
    how = Divergence(kind, temperature=1.7, beta=0.3)  # type: ignore[arg-type]
    torch.testing.assert_close(divergence(scores_TV, teacher(torch.arange(T)), how), textbook(logq, logp, kind, 0.3))


TRL = {
    ("forward_kl", 0.5): (4.57596463, 1.36256588),
    ("jsd", 0.3): (0.59769284, 0.24354905),
    ("jsd", 0.9): (0.24850729, 0.09880157),
    ("reverse_kl", 0.5): (2.96805754, 1.11236097),
}
"""TRL 1.16's ``GKDTrainer.generalized_jsd_loss`` (beta 0, 0.3, 0.9, 1), summed, at temperature 1 and 2."""


@pytest.mark.parametrize("kind_beta", TRL, ids=str)
def test_divergences_are_those_of_gkd(kind_beta: Any) -> None:
    places = torch.arange(21, dtype=torch.float64).view(3, 7)
    student_RV, teacher_RV = torch.sin(places * 1.3) * 3, torch.cos(places * 0.7) * 2
    learned = [0, 2]  # the middle one has no label
    for temperature, wanted in zip((1.0, 2.0), TRL[kind_beta], strict=True):
        how = Divergence(kind_beta[0], temperature, 1.0, kind_beta[1])
        found = divergence(student_RV[learned], Taught(teacher_RV[learned]), how).sum()
        assert float(found) == pytest.approx(wanted, rel=1e-5)


def run(backend: str, given: dict[str, Any], teacher: Teacher, how: Divergence, **more: Any) -> list[Tensor]:
    leaves = [given["hidden_TC"], given["weight_VC"], given["bias_V"]]
    with use_backend(linear_distillation=backend):
        out = linear_distillation(**given, teacher=teacher, how=how, **more)
    (out.loss * 0.37).backward()
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [out.loss.detach(), out.nll_T, out.divergence_T, *gradients]


@pytest.mark.parametrize(
    ("kind", "teacher", "temperature", "more"),
    [
        *itertools.product(KINDS, [(False, V), (False, W), (True, W)], [1.0, 2.0], [{}]),
        ("jsd", (True, W), 1.5, {"scale": 0.3, "softcap": 2.5}),
        ("forward_kl", (False, W), 1.5, {"scale": 0.3, "softcap": 2.5}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunked_equals_plain(
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    teacher: tuple[bool, int],
    temperature: float,
    more: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", 4 * V)
    monkeypatch.setattr(cross_entropy, "CACHE_VALUES", 3 * V)
    given, how = inputs(dtype), Divergence(kind, temperature, weight=0.7, beta=0.3)
    taught = teacher_of(temperature, *teacher)[1]
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    plain, chunked = run("reference", given, taught, how, **more), run("chunked", given, taught, how, **more)
    for want, got in zip(plain, chunked, strict=True):
        torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: Any) -> None:
    given = inputs()
    with torch.no_grad():
        scores_TV = given["hidden_TC"] @ given["weight_VC"].t() + given["bias_V"]
    loss, _, divergence_T, *gradients = run(
        "chunked", given, lambda rows: Taught(scores_TV[rows]), Divergence(kind, temperature=2.0)
    )
    for value in (loss, divergence_T, *gradients):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


def test_weight_zero_is_cross_entropy() -> None:
    given = inputs()
    found = run("chunked", given, teacher_of(1.0, False)[1], Divergence(weight=0.0))
    plain = linear_cross_entropy(**given)
    torch.testing.assert_close(found[0], plain.loss.detach())
    torch.testing.assert_close(found[1], plain.nll_T)


def test_a_head_of_several_parts_takes_the_same_way() -> None:
    given, how, teacher = inputs(), Divergence("jsd", 1.5, 0.6), teacher_of(1.5, True, W)[1]
    want = run("reference", given, teacher, how)

    def logits_of(hidden: Tensor) -> Tensor:
        return finish_logits(hidden @ given["weight_VC"].t() + given["bias_V"])

    out = chunked_distillation(logits_of, given["hidden_TC"], given["labels_T"], teacher, how, rows=4)
    (out.loss * 0.37).backward()
    for got, expected in zip([out.loss.detach(), out.nll_T, out.divergence_T, given["hidden_TC"].grad], want[:4],
                             strict=True):  # fmt: skip
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_no_labels_no_loss(backend: str) -> None:
    given = inputs(labelled=0.0)
    for value in run(backend, given, teacher_of(1.0, True)[1], Divergence()):
        assert not value.any()


@pytest.mark.parametrize("kind", KINDS)
def test_certain_teachers_and_far_students_stay_finite(kind: Any) -> None:
    """A teacher whose list has all the mass, and a student that holds its tokens for impossible."""
    given = inputs(torch.float32, 1.0)
    given["weight_VC"].data *= 30
    sure_TK = torch.log_softmax(torch.tensor([40.0, 0.0, -40.0]), -1).expand(T, 3)
    ids_TK = torch.tensor([1, 2, 3]).expand(T, 3)
    for value in run("chunked", given, lambda rows: Taught(sure_TK[rows], ids_TK[rows]), Divergence(kind, weight=0.5)):
        assert value.isfinite().all()
