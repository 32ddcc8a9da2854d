"""Training's compiled passes against their slow twins in torch, on every instruction set of this machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_native import sets
from torch import Tensor, nn

from tokenmill.ops import native_train
from tokenmill.ops.attention import attention
from tokenmill.ops.cross_entropy import softmax_rows
from tokenmill.ops.linear import linear
from tokenmill.ops.native import Native, native
from tokenmill.ops.norm import rms_norm
from tokenmill.ops.registry import use_backend
from tokenmill.ops.rope import apply_rope
from tokenmill.train.optim.adamw import AdamW
from tokenmill.train.optim.base import Group

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not here")
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


@pytest.fixture(params=sets())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Native:
    """The kernels of one instruction set, used by everything."""
    here = native()
    assert here is not None
    chosen = replace(here, kernels=here.module.kernels(request.param))
    plain = native_train.native_for
    monkeypatch.setattr(native_train, "native_for", lambda *tensors: plain(*tensors) and chosen)
    return chosen


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative distance."""
    assert found.isfinite().all()
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "lens", "window"),
    [
        (6, 2, 64, [65, 1, 128], None),
        (4, 4, 16, [3, 70], None),
        (4, 1, 96, [100], None),
        (2, 2, 32, [200, 7], 50),
        (2, 1, 48, [130], 64),
    ],
)
def test_attention(
    kernels: Native, dtype: torch.dtype, heads: int, kv_heads: int, size: int, lens: list[int], window: int | None
) -> None:
    total = sum(lens)
    given = [draw(total, n, size, seed=n + i, dtype=dtype) for i, n in enumerate((heads, kv_heads, kv_heads))]
    by = draw(total, heads, size, seed=9, dtype=dtype)
    wanted = [t.double().requires_grad_() for t in given]
    mine = [t.clone().requires_grad_() for t in given]
    how = {"q_lens": lens, "kv_lens": lens, "scale": size**-0.5, "window": window}
    with use_backend("reference"):
        expected = attention(*(t.detach().float() for t in wanted), **how)
        attention(*wanted, **how).backward(by.double())
    out = attention(*mine, **how)
    assert off(out.detach(), expected) < TOLERANCE[dtype]
    out.backward(by)
    for a, b in zip(mine, wanted, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert off(a.grad, b.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "relu"])
def test_gate(kernels: Native, dtype: torch.dtype, name: str) -> None:
    from tokenmill.ops.activation import gated_activation

    values = [4 * draw(5, 77, seed=i, dtype=dtype) for i in range(3)]
    wanted = [t.double().requires_grad_() for t in values[:2]]
    mine = [t.clone().requires_grad_() for t in values[:2]]
    expected = gated_activation.reference(*wanted, name)
    found = gated_activation(*mine, name)
    assert off(found.detach(), expected.detach()) < TOLERANCE[dtype]
    expected.backward(values[2].double())
    found.backward(values[2])
    for a, b in zip(mine, wanted, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert off(a.grad, b.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(kernels: Native, dtype: torch.dtype) -> None:
    x, weight, by = (draw(*s, seed=i, dtype=dtype) for i, s in enumerate([(3, 50, 600), (600,), (3, 50, 600)]))
    wanted = [t.double().requires_grad_() for t in (x, weight)]
    mine = [t.clone().requires_grad_() for t in (x, weight)]
    lengths = wanted[0].square().mean(-1, keepdim=True) + 1e-5
    expected, found = wanted[0] * lengths.rsqrt() * wanted[1], rms_norm(*mine, 1e-5)
    assert off(found.detach(), expected.detach()) < TOLERANCE[dtype]
    expected.backward(by.double())
    found.backward(by)
    for a, b in zip(mine, wanted, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert off(a.grad, b.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotated", [32, 24, 10])
def test_turn(kernels: Native, dtype: torch.dtype, rotated: int) -> None:
    x, by = (draw(7, 3, 32, seed=i, dtype=dtype) for i in range(2))
    cos, sin = (draw(7, rotated, seed=2 + i, dtype=dtype) for i in range(2))
    wanted, mine = x.double().requires_grad_(), x.clone().requires_grad_()
    expected = apply_rope.reference(wanted, cos.double(), sin.double())
    found = apply_rope(mine, cos, sin)
    assert off(found.detach(), expected.detach()) < TOLERANCE[dtype]
    expected.backward(by.double())
    found.backward(by)
    assert mine.grad is not None
    assert wanted.grad is not None
    assert off(mine.grad, wanted.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "z_loss"), [(1.0, 0.0), (0.3, 1e-2)])
def test_loss_of_rows(kernels: Native, dtype: torch.dtype, scale: float, z_loss: float) -> None:
    scores = 5 * draw(9, 1003, seed=0, dtype=dtype)
    labels = torch.randint(0, 1003, (9,), generator=torch.Generator().manual_seed(1))
    wanted, mine = scores.double(), scores.clone()
    kept = [torch.empty(9, dtype=d) for d in (torch.float64, torch.float64, torch.float32, torch.float32)]
    softmax_rows(wanted, labels, *kept[:2], scale, None, z_loss, True)
    softmax_rows(mine, labels, *kept[2:], scale, None, z_loss, True)
    assert off(kept[2], kept[0]) < 1e-6
    assert off(kept[3], kept[1]) < 1e-6
    assert off(mine, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_adamw(kernels: Native, dtype: torch.dtype, beta2: float, monkeypatch: pytest.MonkeyPatch) -> None:
    start = draw(3, 1001, seed=0, dtype=dtype)
    optimizers = []
    for _ in range(2):
        parameter = nn.Parameter(start.clone())
        groups = {"w": Group(weight_decay=0.1)}
        optimizers.append((parameter, AdamW({"w": parameter}, groups, betas=(0.9, beta2))))
    (mine, fast), (twin, slow) = optimizers
    for step in range(5):
        gradient = draw(3, 1001, seed=10 + step, dtype=dtype)
        fast.step({"w": gradient}, 1e-2, 0.5)
        with monkeypatch.context() as patched:
            patched.setattr(native_train, "native_for", lambda *tensors: None)
            slow.step({"w": gradient}, 1e-2, 0.5)
    assert not torch.equal(mine, start)
    assert off(mine.detach(), twin.detach()) < TOLERANCE[dtype]
    for (name, a), b in zip(fast.tensors().items(), slow.tensors().values(), strict=True):
        if a.dtype != torch.int16:
            assert off(a, b) < TOLERANCE[dtype], name
    exact = [next(iter(o.states.values())).weights.read(slice(0, 3003)) for _, o in optimizers]
    assert off(exact[0].detach(), exact[1].detach()) < 1e-4


def test_not_finite_stays_so(kernels: Native) -> None:
    """A NaN is to be found by whoever looks at the loss, not made away with."""
    scores, labels = torch.zeros(2, 40), torch.zeros(2, dtype=torch.int64)
    scores[1, 3] = float("nan")
    nll, lse = torch.empty(2), torch.empty(2)
    softmax_rows(scores, labels, nll, lse, 1.0, None, 0.0, True)
    assert nll[0].isfinite()
    assert nll[1].isnan()
    assert scores[1].isnan().any()


def test_what_does_not_go_together_is_refused(kernels: Native) -> None:
    """The kernels see addresses: what torch would have refused must not become a read past the end."""
    scores, nll, lse = torch.zeros(2, 40), torch.empty(2), torch.empty(2)
    for labels in (torch.tensor([0, 40]), torch.tensor([-1, 0])):
        with pytest.raises(IndexError):
            softmax_rows(scores, labels, nll, lse, 1.0, None, 0.0, True)
    q, k = torch.zeros(5, 2, 16), torch.zeros(5, 1, 16)
    for wrong in (
        lambda: native_train.attention(kernels, q, k, k, [3, 3], 1.0, None),
        lambda: native_train.attention(kernels, q, torch.zeros(5, 3, 16), k, [5], 1.0, None),
        lambda: native_train.turn(kernels, q, torch.zeros(4, 16), torch.zeros(4, 16), back=False),
        lambda: native_train.gated(kernels, q, k, "silu"),
        lambda: native_train.rms_norm(kernels, q, torch.ones(8), 1e-5),
    ):
        with pytest.raises(ValueError, match="do not go together"):
            wrong()


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Native:
    """The kernels that have products of their own."""
    here = native()
    assert here is not None
    able = [k for k in map(here.module.kernels, sets()) if native_train.has_product(replace(here, kernels=k))]
    if not able:
        pytest.skip("torch multiplies here")
    chosen, plain = replace(here, kernels=able[0]), native_train.native_for
    monkeypatch.setattr(native_train, "native_for", lambda *tensors: plain(*tensors) and chosen)
    return chosen


@pytest.mark.parametrize("across", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (33, 17, 31), (64, 96, 64), (100, 200, 300), (40, 50, 5000), (31, 4200, 600)]
)
def test_product(tiles: Native, shape: tuple[int, int, int], across: tuple[bool, bool]) -> None:
    """Odd sizes, k and columns in parts, sides stored either way: as near as one rounding of the exact result."""
    rows, columns, inner = shape
    left = (
        draw(inner, rows, seed=1, dtype=torch.bfloat16).t()
        if across[0]
        else draw(rows, inner, seed=1, dtype=torch.bfloat16)
    )
    right = (
        draw(columns, inner, seed=2, dtype=torch.bfloat16).t()
        if across[1]
        else draw(inner, columns, seed=2, dtype=torch.bfloat16)
    )
    guarded = torch.full((rows + 1, columns), 7.0, dtype=torch.bfloat16)
    native_train.product(tiles, left, right, out=guarded[:rows])
    exact = left.double() @ right.double()
    assert torch.allclose(guarded[:rows].double(), exact, rtol=2**-8, atol=1e-4 * inner**0.5)
    assert (guarded[rows] == 7.0).all(), "written past the end"


def test_product_refuses_what_does_not_go_together(tiles: Native) -> None:
    left, right = torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(5, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="do not go together"):
        native_train.product(tiles, left, right)
    with pytest.raises(ValueError, match="contiguous bfloat16"):
        native_train.product(tiles, left.float(), right[:4].float())
    with pytest.raises(ValueError, match="contiguous bfloat16"):
        native_train.product(tiles, torch.zeros(3, 8, dtype=torch.bfloat16)[:, ::2], right[:4])


def test_linear_in_tiles(tiles: Native) -> None:
    """The layer and its three derivatives beside torch's."""
    x_TI, weight_OI, bias_O = (
        draw(*s, seed=i, dtype=torch.bfloat16) for i, s in enumerate([(130, 96), (70, 96), (70,)])
    )
    d_TO = draw(130, 70, seed=3, dtype=torch.bfloat16)
    found = []
    for backend in ("tiles", "reference"):
        inputs = [t.clone().requires_grad_() for t in (x_TI, weight_OI, bias_O)]
        with use_backend(linear=backend):
            y_TO = linear(*inputs)
        y_TO.backward(d_TO)
        found.append([y_TO.detach(), *(t.grad for t in inputs)])
    assert all(off(a, b) < TOLERANCE[torch.bfloat16] for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_squares(kernels: Native, dtype: torch.dtype) -> None:
    x = draw(3, 33333, seed=5, dtype=dtype)
    assert native_train.squares(kernels, x) == pytest.approx(float(x.double().square().sum()), rel=1e-5)
    x[1, 7] = float("nan")
    assert math.isnan(native_train.squares(kernels, x))
