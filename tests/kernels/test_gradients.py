"""Operations with a backward pass of their own: the same values as without one, and autograd's gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenmill.nn.config import MLPConfig
from tokenmill.nn.mlp import MLP
from tokenmill.ops.activation import ACTIVATIONS, gated_activation
from tokenmill.ops.attention import attention
from tokenmill.ops.norm import rms_norm
from tokenmill.ops.recompute import recompute_cheap, remember
from tokenmill.ops.registry import use_backend
from tokenmill.ops.rope import apply_rope


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def both(run: Callable[..., Tensor], *leaves: Tensor, backend: dict[str, str], reference: dict[str, str]) -> None:
    """Values and gradients of ``run`` with both choices of backend agree."""
    results = []
    for choice in (backend, reference):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        with use_backend(**choice):
            out = run(*inputs)
        gradients = torch.autograd.grad(out, inputs, random(*out.shape, seed=99, dtype=out.dtype))
        results.append((out, *gradients))
    for got, want in zip(*results, strict=True):
        # bfloat16: the reference keeps more digits of what is between, so the largest values set the scale
        atol = 1e-5 if got.dtype != torch.bfloat16 else 0.02 * want.detach().abs().max().item()
        torch.testing.assert_close(got, want, rtol=1e-4 if got.dtype != torch.bfloat16 else 2e-2, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 5, 150, 400])
def test_attention(dtype: torch.dtype, heads: tuple[int, int], window: int | None) -> None:
    lens = [7, 1, 300, 40]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, q_lens=lens, kv_lens=lens, scale=0.3, window=window)

    made = [random(sum(lens), h, 16, seed=i, dtype=dtype) for i, h in enumerate((heads[0], heads[1], heads[1]))]
    both(run, *made, backend={"attention": "documents"}, reference={"attention": "reference"})


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_gated_activation(name: str) -> None:
    def run(gate: Tensor, up: Tensor) -> Tensor:
        return gated_activation(gate, up, name)

    both(
        run,
        random(5, 6, seed=1),
        random(5, 6, seed=2),
        backend={"gated_activation": "recompute"},
        reference={"gated_activation": "reference"},
    )


@pytest.mark.parametrize("rotary", [8, 6])
def test_rope(rotary: int) -> None:
    cos, sin = random(5, rotary, seed=1), random(5, rotary, seed=2)  # both halves differ: the general case
    both(
        lambda x: apply_rope(x, cos, sin),
        random(5, 3, 8, seed=3),
        backend={"apply_rope": "turn-back"},
        reference={"apply_rope": "reference"},
    )


@pytest.mark.parametrize("shape", [(5, 16), (700, 2, 400)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    both(
        lambda x, weight: rms_norm(x, weight, 1e-5),
        random(*shape, seed=1, dtype=dtype),
        random(shape[-1], seed=2, dtype=dtype),
        backend={"rms_norm": "recompute"},
        reference={"rms_norm": "reference"},
    )


def test_values_are_those_of_inference() -> None:
    """Trained and served log-probabilities agree only if a gradient changes no bit of the forward pass."""
    x, weight = random(9, 32, seed=1, dtype=torch.bfloat16), random(32, seed=2, dtype=torch.bfloat16)
    heads = random(9, 2, 16, seed=3, dtype=torch.bfloat16)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda t: rms_norm(t, weight, 1e-5),
        lambda t: gated_activation(t, x, "silu"),
        lambda t: apply_rope(t.view(9, 2, 16), heads[:, 0], heads[:, 1]),
        lambda t: attention(t.view(9, 2, 16), heads, heads, q_lens=[4, 5], kv_lens=[4, 5], scale=0.2),
    ]
    for call in calls:
        assert torch.equal(call(x), call(x.clone().requires_grad_()).detach())


def network(x: Tensor, weights: list[Tensor]) -> Tensor:
    norm, gate, up, down = weights
    h = rms_norm(x, norm, 1e-5)
    return x + gated_activation(h @ gate, h @ up, "silu") @ down


def leaves() -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(64, 8), (8,), (8, 24), (8, 24), (24, 8)]
    return [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def test_recomputing_changes_no_gradient() -> None:
    plain = leaves()
    network(plain[0], plain[1:]).square().sum().backward()
    cheap = leaves()
    with recompute_cheap():
        out = network(cheap[0], cheap[1:])
    out.square().sum().backward()
    for a, b in zip(plain, cheap, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_a_recipe_does_not_outlive_its_tensor() -> None:
    """Memory that was freed and given to another tensor must not bring back the recipe of the first."""
    weight = random(4, 4, seed=1).requires_grad_()
    wrong: list[Any] = []
    reused = False

    def recipe(value: Tensor) -> Tensor:
        wrong.append(value)
        return value * 0

    with recompute_cheap():
        outs = []
        for i in range(50):
            first = remember(random(4, 4, seed=i), recipe, torch.zeros(()))
            address = first.data_ptr()
            del first
            second = random(4, 4, seed=1000 + i)
            outs.append((second @ weight).sum())
            reused = reused or second.data_ptr() == address
    assert reused, "the allocator no longer gives back what was freed last: this test shows nothing"
    torch.stack(outs).sum().backward()
    assert not wrong
    want = sum(random(4, 4, seed=1000 + i).sum(0)[:, None].expand(4, 4) for i in range(50))
    torch.testing.assert_close(weight.grad, want)


def test_the_recipe_is_used() -> None:
    weight = random(4, 4, seed=1).requires_grad_()
    asked: list[Tensor] = []

    def recipe(value: Tensor) -> Tensor:
        asked.append(value)
        return value + 1

    base = random(3, 4, seed=2)
    with recompute_cheap():
        result = remember(recipe(base), recipe, base)
        out = (result @ weight).sum() + (result @ weight).square().sum()
    assert len(asked) == 1
    del result
    out.backward()
    assert len(asked) == 2, "once for both readers"


def test_a_recipe_may_need_another() -> None:
    """A gate is a product with a norm's result: neither is kept, and both are computed once."""
    weight = random(4, 4, seed=1).requires_grad_()
    asked: list[str] = []

    def inner(value: Tensor) -> Tensor:
        asked.append("inner")
        return value + 1

    def outer(value: Tensor) -> Tensor:
        asked.append("outer")
        return value * 2

    base = random(3, 4, seed=2)
    with recompute_cheap():
        first = remember(inner(base), inner, base)
        second = remember(outer(first), outer, first)
        out = (first @ weight).sum() + (second @ weight).square().sum()
    kept = weakref.ref(first), weakref.ref(second)
    del first, second
    assert [reference() for reference in kept] == [None, None], "what has a recipe is not held"
    asked.clear()
    out.backward()
    assert sorted(asked) == ["inner", "outer"]
    plain = random(4, 4, seed=1).requires_grad_()
    (((base + 1) @ plain).sum() + ((base + 1) * 2 @ plain).square().sum()).backward()
    assert weight.grad is not None
    assert plain.grad is not None
    assert torch.equal(weight.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_computed_again_change_no_gradient(dtype: torch.dtype) -> None:
    mlp = MLP(32, MLPConfig(size=96, activation="silu", gated=True, bias=False)).to(dtype)
    for i, parameter in enumerate(mlp.parameters()):
        parameter.data.copy_(random(*parameter.shape, seed=i))
    x = random(9, 32, seed=7, dtype=dtype)
    found = []
    for context in (nullcontext(), recompute_cheap()):
        with context:
            out = mlp(rms_norm(x, torch.ones(32, dtype=dtype), 1e-5))
        found.append(torch.autograd.grad(out.float().square().sum(), list(mlp.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
