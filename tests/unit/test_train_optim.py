"""Optimisers against torch's, weights and moments against what they promise, 8-bit codes against bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenmill.config.recipe import Recipe
from tokenmill.core.errors import ConfigError, FormatError, StoreError
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.train.optim import OPTIMIZERS, Adafactor, AdamW, Group, Muon, Optimizer, build_optimizer, groups_of
from tokenmill.train.optim import moments as moments_module
from tokenmill.train.optim.moments import EightBitMoment, codebook, encode, in_memory, paged
from tokenmill.train.optim.muon import orthogonal
from tokenmill.train.optim.weights import weights_of

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    shapes: dict[str, tuple[int, ...]] = {"matrix": (96, 64), "odd": (7, 11), "vector": (33,)}
    return {name: nn.Parameter(random(*shape, seed=i).to(dtype)) for i, (name, shape) in enumerate(shapes.items())}


def gradients(step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    made = parameters().items()
    return {name: random(*p.shape, seed=100 * step + i).to(dtype) * 0.1 for i, (name, p) in enumerate(made)}


TORCH: dict[str, tuple[Callable[..., Optimizer], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "adamw": (
        lambda p, g: AdamW(p, g, betas=(0.9, 0.99)),
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
    ),
    "adafactor": (
        Adafactor,
        lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_as_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmill.train.optim.base.PIECE", 256)
    ours, theirs = parameters(), parameters()
    groups = {key: Group(weight_decay=0.1) for key in ours}
    optimizer, oracle = TORCH[name][0](ours, groups), TORCH[name][1](list(theirs.values()))
    for step in range(8):
        for key, gradient in gradients(step).items():
            theirs[key].grad = gradient * 0.5
        optimizer.step(gradients(step), 1e-2, scale=0.5)
        oracle.step()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=2e-6, atol=1e-7)


def test_muon_as_torch() -> None:
    """torch's Muon with ``match_rms_adamw`` is the same rule; bfloat16 inside leaves two digits."""
    ours, theirs = {"w": nn.Parameter(random(24, 40))}, nn.Parameter(random(24, 40))
    optimizer = Muon(ours, {"w": Group(weight_decay=0.1, matrix=True)})
    oracle = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = random(24, 40, seed=step)
        theirs.grad = gradient.clone()
        optimizer.step({"w": gradient}, 1e-2)
        oracle.step()
    torch.testing.assert_close(ours["w"], theirs, rtol=0, atol=2e-3)
    assert not torch.allclose(ours["w"], random(24, 40), atol=2e-2), "nothing was learned"


def test_orthogonal_is_the_polar_factor_roughly_and_stacks() -> None:
    stack = random(3, 20, 50)
    singular = torch.linalg.svdvals(orthogonal(stack).float())
    assert 0.5 < singular.min() < singular.max() < 1.4
    torch.testing.assert_close(orthogonal(stack)[1], orthogonal(stack[1]), rtol=0, atol=2e-2)


def test_a_split_weight_is_exact_float32() -> None:
    """Every bit pattern there is room for, ties and both signs included, comes back."""
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(1))
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, -0x407F8000], dtype=torch.int64)
    values = torch.cat((bits, ties)).to(torch.int32).view(torch.float32)
    values = values[values.isfinite() & (values.abs() < 1e38)]
    parameter = nn.Parameter(torch.zeros(len(values), dtype=torch.bfloat16))
    weights = weights_of(parameter)
    weights.write(slice(0, len(values)), values.clone())
    assert torch.equal(weights.read(slice(0, len(values))).view(torch.int32), values.view(torch.int32))
    nearest = values.bfloat16()
    ulp = (torch.nextafter(nearest.abs(), torch.tensor(float("inf"), dtype=torch.bfloat16)) - nearest.abs()).float()
    assert bool(((parameter.detach().float() - values).abs() <= ulp * 0.5).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_of_16_bit_weights_are_not_lost(dtype: torch.dtype) -> None:
    """1,000 steps of 1e-5 on a weight of one: each is a hundredth of the last place of bfloat16."""
    parameter = nn.Parameter(torch.ones(600, dtype=dtype))
    optimizer = AdamW({"w": parameter}, {})
    for _ in range(1000):
        optimizer.step({"w": torch.ones(600, dtype=dtype)}, 1e-5)
    exact = optimizer.states["w"].weights.read(slice(0, 600))
    torch.testing.assert_close(exact, torch.full((600,), 0.99), rtol=0, atol=2e-4)
    torch.testing.assert_close(parameter.detach(), exact.to(dtype), rtol=0, atol=0.004)


def test_bfloat16_follows_float32() -> None:
    exact, rounded = parameters(), parameters(torch.bfloat16)
    start = {key: p.detach().float().clone() for key, p in rounded.items()}
    with torch.no_grad():
        for key, p in exact.items():
            p.copy_(start[key])
    one, two = AdamW(exact, {}), AdamW(rounded, {})
    for step in range(30):
        one.step(gradients(step), 1e-3)
        two.step(gradients(step), 1e-3)
    for key, p in exact.items():
        moved = p.detach() - start[key]
        other = two.states[key].weights.read(slice(0, p.numel())).view_as(p) - start[key]
        assert (moved - other).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed=signed)
    torch.testing.assert_close(codebook(signed), theirs, rtol=1e-6, atol=0)
    values = random(64, 256) if signed else random(64, 256).abs()
    largest = values.abs().amax(-1, keepdim=True)
    codes = encode(values / largest, signed)
    nearest = (values / largest)[..., None].sub(theirs).abs().argmin(-1)
    off = (codes.long() - nearest).abs()
    assert off.max() <= 1, "float16 may only decide between neighbours"
    assert (off > 0).float().mean() < 0.01


@pytest.mark.parametrize("size", [4096, 5000, 70_001])
def test_8_bit_moments_hold_what_they_are_given(size: int) -> None:
    kept = EightBitMoment(size, True, in_memory(CPU))
    assert not kept.read(slice(0, size), CPU).any()
    values = random(size) * torch.logspace(-6, 0, size)
    for begin in range(0, size, 1024):
        piece = slice(begin, min(begin + 1024, size))
        kept.write(piece, values[piece])
    read = kept.read(slice(0, size), CPU)
    blocks = torch.cat((values.abs(), values.new_zeros(-size % 256))).view(-1, 256).amax(-1).repeat_interleave(256)
    assert bool(((read - values).abs() <= 0.0075 * blocks[:size]).all()), "half the widest step of the map"
    assert sum(t.nbytes for t in kept.tensors().values()) < 1.02 * size + 8


def test_8_bit_adamw_goes_where_adamw_goes() -> None:
    ours, exact = ({"w": nn.Parameter(random(128, 64))} for _ in range(2))
    eight, full = AdamW(ours, {}, moments="8bit"), AdamW(exact, {}, moments="float32")
    for step in range(40):
        gradient = {"w": random(128, 64, seed=step) * 0.1 + 0.05}
        eight.step(gradient, 1e-3)
        full.step(gradient, 1e-3)
    moved, other = exact["w"] - random(128, 64), ours["w"] - random(128, 64)
    assert (moved - other).norm() < 0.05 * moved.norm()


def test_paged_state_is_the_same_and_leaves_no_file(tmp_path: Path) -> None:
    one, two = parameters(), parameters()
    optimizers = [AdamW(one, {}), AdamW(two, {}, allocate=lambda device: paged(device, tmp_path))]
    assert not list(tmp_path.iterdir())
    for step in range(3):
        for optimizer in optimizers:
            optimizer.step(gradients(step), 1e-2)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_paged_state_that_does_not_fit_the_disk_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moments_module.os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="no room"):
        AdamW(parameters(), {}, allocate=lambda device: paged(device, tmp_path))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_state_goes_through_a_checkpoint(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Six steps are three steps, state out and in, and three steps: the same bits."""

    def fresh() -> tuple[nn.Module, Optimizer]:
        model = nn.Module()
        for key, value in parameters(dtype).items():
            setattr(model, key, value)
        return model, build_optimizer(model, Recipe(optimizer=name), tmp_path)  # type: ignore[arg-type]

    model, optimizer = fresh()
    for step in range(3):
        optimizer.step(gradients(step, dtype), 1e-2)
    saved = {key: tensor.clone() for key, tensor in optimizer.tensors().items()}
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    again, second = fresh()
    with torch.no_grad():
        for key, p in again.named_parameters():
            p.copy_(weights[key])
    second.load(saved, optimizer.steps)
    for step in range(3, 6):
        optimizer.step(gradients(step, dtype), 1e-2)
        second.step(gradients(step, dtype), 1e-2)
    for (_, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FormatError, match="another optimiser"):
        second.load({"x": torch.zeros(1)}, 1)


def test_groups() -> None:
    model = nn.Module()
    model.embed, model.norm = Embedding(9, 4), Linear(4, 1).requires_grad_(True)
    model.hidden, model.head = Linear(4, 4, bias=True), Linear(4, 9)
    groups = groups_of(model, weight_decay=0.1, lr_scales={"hidden.weight": 4.0})
    assert [name for name, g in groups.items() if not g.weight_decay] == ["embed.weight", "hidden.bias"]
    assert not groups["head.weight"].matrix
    assert groups["hidden.weight"].matrix
    recipe = Recipe()
    optimizer = build_optimizer(model, recipe, Path(), {"hidden.weight": 4.0})
    assert [name for name, s in optimizer.states.items() if s.group.lr_scale != 1.0] == ["hidden.weight"]
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(model.requires_grad_(False), recipe, Path())
