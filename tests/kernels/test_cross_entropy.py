"""The chunked loss against the plain one: values and gradients, every option, ragged labels."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenmill.ops import cross_entropy as module
from tokenmill.ops.cross_entropy import IGNORED, chunked_cross_entropy, finish_logits, linear_cross_entropy
from tokenmill.ops.registry import use_backend

T, C, V = 23, 16, 37


def inputs(dtype: torch.dtype, labelled: float = 0.6) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(V, (T,), generator=draw)
    labels[torch.rand(T, generator=draw) > labelled] = IGNORED
    values = {"hidden_TC": (T, C), "weight_VC": (V, C), "bias_V": (V,)}
    made = {n: torch.randn(*s, generator=draw, dtype=torch.float64).to(dtype) for n, s in values.items()}
    return {**{n: t.requires_grad_() for n, t in made.items()}, "labels_T": labels}


def run(backend: str, given: dict[str, Any], **options: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    leaves = [given["hidden_TC"], given["weight_VC"], given["bias_V"]]
    with use_backend(linear_cross_entropy=backend):
        out = linear_cross_entropy(**given, **options)
    (out.loss * 0.37).backward()
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [out.loss.detach(), out.nll_T, out.z_loss], gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("scale", "softcap", "z_loss", "labelled"), list(itertools.product([1.0, 0.3], [None, 2.5], [0.0, 1e-2], [0.6, 1]))
)
def test_chunked_equals_plain(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    scale: float,
    softcap: float | None,
    z_loss: float,
    labelled: float,
) -> None:
    monkeypatch.setattr(module, "SCORED_BYTES", 4 * V * 4)
    monkeypatch.setattr(module, "CACHE_VALUES", 3 * V)
    given = inputs(dtype, labelled)
    options = {"scale": scale, "softcap": softcap, "z_loss": z_loss}
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    plain, chunked = run("reference", given, **options), run("chunked", given, **options)
    for want, got in zip(plain[0] + plain[1], chunked[0] + chunked[1], strict=True):
        assert want is not None
        torch.testing.assert_close(got, want, **tolerance)


def test_the_plain_loss_is_torchs() -> None:
    given = inputs(torch.float64)
    logits = given["hidden_TC"] @ given["weight_VC"].T + given["bias_V"]
    want = torch.nn.functional.cross_entropy(logits, given["labels_T"], ignore_index=IGNORED, reduction="none")
    with use_backend(linear_cross_entropy="reference"):
        got = linear_cross_entropy(**given)
    torch.testing.assert_close(got.nll_T, want)
    torch.testing.assert_close(got.loss, want.sum())


def test_gradients_by_finite_differences() -> None:
    given = inputs(torch.float64)
    labels = given.pop("labels_T")
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, labels, bias_V=b, scale=0.4, softcap=3.0, z_loss=0.1).loss,
        (given["hidden_TC"], given["weight_VC"], given["bias_V"]),
    )


def test_bfloat16_accumulates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks of one row each: summed in bfloat16, the gradient of the weights would be off by percents."""
    monkeypatch.setattr(module, "SCORED_BYTES", V * 4)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(600, C, generator=draw).bfloat16()
    weight = (torch.randn(V, C, generator=draw) * 0.2).bfloat16().requires_grad_()
    labels = torch.randint(V, (600,), generator=draw)
    linear_cross_entropy(hidden, weight, labels).loss.backward()
    exact = weight.detach().double().requires_grad_()
    with use_backend(linear_cross_entropy="reference"):
        linear_cross_entropy(hidden.double(), exact, labels).loss.backward()
    assert weight.grad is not None
    assert exact.grad is not None
    error = (weight.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 4e-3, error


def test_frozen_weights_get_no_gradient_and_no_memory() -> None:
    given = inputs(torch.float32)
    given["weight_VC"].requires_grad_(False)
    given["bias_V"].requires_grad_(False)
    linear_cross_entropy(**given).loss.backward()
    assert given["hidden_TC"].grad is not None
    assert given["weight_VC"].grad is None


def test_no_label_at_all_is_a_loss_of_zero() -> None:
    given = inputs(torch.float32, labelled=-1)
    values, gradients = run("chunked", given)
    assert values[0] == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_what_has_no_label_may_hold_anything() -> None:
    given = inputs(torch.float32)
    with torch.no_grad():
        given["hidden_TC"][given["labels_T"] == IGNORED] = float("inf")
    assert torch.isfinite(run("reference", given)[0][0])
    values, gradients = run("chunked", given)
    assert torch.isfinite(values[0])
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_a_head_of_several_layers_is_chunked_by_recomputation() -> None:
    given = inputs(torch.float64)
    labels, hidden, weight = given["labels_T"], given["hidden_TC"], given["weight_VC"]
    plain = linear_cross_entropy(hidden, weight, labels, scale=0.5, softcap=2.0, z_loss=0.01)
    want = torch.autograd.grad(plain.loss, [hidden, weight])
    rows: list[int] = []

    def head(hidden_RC: Tensor) -> Tensor:
        rows.append(len(hidden_RC))
        return finish_logits(hidden_RC @ weight.T, 0.5, 2.0)

    got = chunked_cross_entropy(head, hidden, labels, rows=5, z_loss=0.01)
    gradients = torch.autograd.grad(got.loss, [hidden, weight])
    torch.testing.assert_close([got.loss, got.nll_T, got.z_loss, *gradients], [*plain, *want])
    assert max(rows) <= 5
    nothing = chunked_cross_entropy(head, hidden, torch.full_like(labels, IGNORED), rows=5)
    assert nothing.loss == 0
    assert len(nothing.nll_T) == T
