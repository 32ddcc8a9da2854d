"""Log-probabilities token by token: the chunked way against the plain one, with weights that differ from row to row."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenmill.ops import cross_entropy
from tokenmill.ops.cross_entropy import IGNORED, finish_logits
from tokenmill.ops.registry import use_backend
from tokenmill.ops.token_logprobs import chunked_token_logprobs, linear_token_logprobs

T, C, V = 23, 16, 37


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "SCORED_BYTES", 4 * V * 4)
    monkeypatch.setattr(cross_entropy, "CACHE_VALUES", 3 * V)


def inputs(dtype: torch.dtype, labelled: float = 0.6) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(V, (T,), generator=draw)
    labels[torch.rand(T, generator=draw) > labelled] = IGNORED
    values = {"hidden_TC": (T, C), "weight_VC": (V, C), "bias_V": (V,)}
    made = {n: torch.randn(*s, generator=draw, dtype=torch.float64).to(dtype) for n, s in values.items()}
    return {**{n: t.requires_grad_() for n, t in made.items()}, "labels_T": labels}


def gradients(given: dict[str, Any], logprobs_T: Tensor) -> list[Tensor]:
    """Of a loss that weighs every token in its own way, and knows it only from the log-probabilities."""
    torch.sin(logprobs_T.cumsum(0)).sum().backward()
    leaves = [given[name] for name in ("hidden_TC", "weight_VC", "bias_V")]
    found = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("scale", "softcap", "labelled"), list(itertools.product([1.0, 0.3], [None, 2.5], [0.6, 1.0, 0.0]))
)
def test_chunked_equals_plain(dtype: torch.dtype, scale: float, softcap: float | None, labelled: float) -> None:
    given = inputs(dtype, labelled)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    out: list[list[Tensor]] = []
    for backend in ("reference", "chunked"):
        with use_backend(linear_token_logprobs=backend):
            got = linear_token_logprobs(**given, scale=scale, softcap=softcap)
        assert not got[given["labels_T"] == IGNORED].any()
        out.append([got.detach(), *gradients(given, got)])
    for want, got in zip(*out, strict=True):
        torch.testing.assert_close(got, want, **tolerance)


def test_head_of_several_parts() -> None:
    """A head that is a function: the same numbers, computed twice and held never."""
    given = inputs(torch.float64)
    head = lambda hidden: finish_logits(hidden @ given["weight_VC"].t() + given["bias_V"], 0.5, 2.0)  # noqa: E731
    got = chunked_token_logprobs(head, given["hidden_TC"], given["labels_T"], rows=3)
    found = gradients(given, got)
    with use_backend(linear_token_logprobs="reference"):
        want = linear_token_logprobs(**given, scale=0.5, softcap=2.0)
    torch.testing.assert_close(got, want)
    for one, other in zip(found, gradients(given, want), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_head_needs_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adapter the head is frozen: its scores are made once, in the forward pass."""
    given = inputs(torch.float32)
    given["weight_VC"].requires_grad_(False)
    given["bias_V"].requires_grad_(False)
    logprobs_T = linear_token_logprobs(**given)
    monkeypatch.setattr(cross_entropy, "softmax_rows", None)
    logprobs_T.sum().backward()
    assert given["hidden_TC"].grad is not None
