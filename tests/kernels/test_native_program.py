"""Programs of several steps: what joins into one, and what is left out because nobody looks at it, change no result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.test_native import random_blocks, sets
from tokenmill.ops.native import UNARY, native
from tokenmill.ops.packed import Packed

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not here")

INPUTS, WIDTH, OUTPUTS = 96, 160, 48


def weight(kind: str, rows: int, columns: int, seed: int) -> Packed:
    if kind in ("F32", "BF16"):
        values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 10
        return Packed.from_floats(values.to(torch.float32 if kind == "F32" else torch.bfloat16))
    return Packed.from_blocks(kind, columns, random_blocks(kind, rows, columns, seed)[0])


class Steps:
    """A program with its buffers by name, NaN until they are written."""

    def __init__(self, isa: str, rows: int) -> None:
        here = native()
        assert here is not None
        self.pool, self.kernels, self.rows = here.pool, here.module.kernels(isa), rows
        self.program: Any = here.module.Program(rows)
        self.buffers: dict[str, torch.Tensor] = {}

    def at(self, name: str, width: int = 0) -> int:
        if width and name not in self.buffers:
            self.buffers[name] = torch.full((self.rows, width), torch.nan)
        return self.buffers[name].data_ptr()

    def linear(self, x: str, packed: Packed, y: str, bias: torch.Tensor | None = None) -> None:
        at = 0 if bias is None else bias.data_ptr()
        self.program.linear(self.at(x), packed.handle, at, self.at(y, packed.shape[0]))

    def gated(self) -> None:
        self.program.gated(UNARY["silu"], self.at("gate"), self.at("up"), WIDTH, self.at("y", WIDTH))

    def run(self) -> dict[str, torch.Tensor]:
        self.program.run(self.pool, self.kernels, self.rows, False)
        return self.buffers


@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("rows", [1, 12, 33, 70])
@pytest.mark.parametrize("kinds", [("Q4_1", "Q4_1"), ("Q8_0", "Q5_0"), ("BF16", "Q4_0"), ("F32", "F32")])
@pytest.mark.parametrize("looked_at", ["nothing", "parts", "gated", "again"])
def test_a_gate_between_two_products(isa: str, rows: int, kinds: tuple[str, str], looked_at: str) -> None:
    """Matrix tiles compute it with the products, and leave out what nobody reads before it is written again."""
    gate, up = weight(kinds[0], WIDTH, INPUTS, 1), weight(kinds[1], WIDTH, INPUTS, 2)
    down, other = weight(kinds[0], OUTPUTS, WIDTH, 3), weight("F32", OUTPUTS, WIDTH, 4)
    bias = torch.linspace(-1, 1, WIDTH) if looked_at == "again" else None
    steps = Steps(isa, rows)
    x = steps.buffers["x"] = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(rows))
    steps.linear("x", gate, "gate", bias)
    steps.linear("x", up, "up")
    steps.gated()
    if looked_at == "parts":
        steps.program.add(steps.at("gate"), steps.at("up"), 2.0, WIDTH, steps.at("sum", WIDTH))
    steps.linear("y", down, "down")
    if looked_at == "again":
        steps.linear("y", other, "other")  # float32 weights read what is not rounded
    if looked_at == "gated":
        steps.program.scale(steps.at("y"), 2.0, WIDTH, steps.at("twice", WIDTH))
    for name in ("gate", "up", "y"):  # as a later layer does
        steps.program.scale(steps.at("x"), 1.0, INPUTS, steps.at(name))
    got = steps.run()
    g, u = x @ gate.dense().T + (0 if bias is None else bias), x @ up.dense().T
    y = torch.nn.functional.silu(g) * u
    expected = {"down": y @ down.dense().T, "sum": g + 2 * u, "twice": 2 * y, "other": y @ other.dense().T}
    for name, want in expected.items():
        if name in got:
            assert (got[name] - want).norm() < (1e-2 if isa == "amx" and rows >= 12 else 3e-4) * want.norm(), name
    for name in ("gate", "up", "y"):
        assert torch.equal(got[name].flatten()[: rows * INPUTS].view(rows, INPUTS), x)


@pytest.mark.parametrize("isa", sets())
def test_a_result_that_is_never_overwritten_is_kept(isa: str) -> None:
    steps = Steps(isa, 40)
    x = steps.buffers["x"] = torch.randn(40, INPUTS, generator=torch.Generator().manual_seed(0))
    gate, up = weight("Q8_0", WIDTH, INPUTS, 1), weight("Q8_0", WIDTH, INPUTS, 2)
    steps.linear("x", gate, "gate")
    steps.linear("x", up, "up")
    steps.gated()
    got = steps.run()
    g, u = x @ gate.dense().T, x @ up.dense().T
    for name, want in {"gate": g, "up": u, "y": torch.nn.functional.silu(g) * u}.items():
        assert (got[name] - want).norm() < 1e-2 * want.norm(), name


@pytest.mark.parametrize("isa", sets())
def test_short_inputs_beside_long_ones_have_room(isa: str) -> None:
    """A group of panels of 1,024 inputs takes more of a thread's scratch than one of 3,072."""
    steps = Steps(isa, 64)
    x = steps.buffers["x"] = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    up, down = weight("BF16", 3072, 1024, 1), weight("BF16", 1024, 3072, 2)
    steps.linear("x", up, "up")
    steps.program.scale(steps.at("up"), 0.5, 3072, steps.at("half", 3072))
    steps.linear("half", down, "down")
    want = (x @ up.dense().T) @ down.dense().T / 2
    assert (steps.run()["down"] - want).norm() < 1e-2 * want.norm()


@pytest.mark.parametrize("isa", sets())
def test_a_gate_over_a_gates_result(isa: str) -> None:
    """It would read the memory that it writes to."""
    steps = Steps(isa, 70)
    y = steps.buffers["x"] = torch.randn(70, WIDTH, generator=torch.Generator().manual_seed(0))
    weights = [weight("Q8_0", WIDTH, WIDTH, seed) for seed in range(6)]
    for layer, source in enumerate(("x", "y", "y2")):
        gate, up = weights[2 * layer : 2 * layer + 2]
        names = [f"{name}{layer}" for name in ("gate", "up")]
        steps.linear(source, gate, names[0])
        steps.linear(source, up, names[1])
        result = steps.at("y" if layer % 2 == 0 else "y2", WIDTH)
        steps.program.gated(UNARY["silu"], *map(steps.at, names), WIDTH, result)
        y = torch.nn.functional.silu(y @ gate.dense().T) * (y @ up.dense().T)
    assert (steps.run()["y"] - y).norm() < 2e-2 * y.norm()


@pytest.mark.parametrize("isa", sets())
def test_a_gate_at_the_ends_of_its_range(isa: str) -> None:
    values = torch.tensor([-torch.inf, -1e38, -100.0, -80.5, -0.0, 0.0, 88.0, 1e38, torch.inf, torch.nan])
    steps = Steps(isa, 1)
    steps.buffers["x"] = values.repeat(16)[None].clone()
    steps.program.unary(UNARY["silu"], steps.at("x"), WIDTH, steps.at("y", WIDTH))
    want = torch.nn.functional.silu(values.double()).float().repeat(16)
    torch.testing.assert_close(steps.run()["y"][0], want, equal_nan=True, rtol=1e-5, atol=1e-30)


def test_steps_of_single_rows_are_one_step() -> None:
    """The threads meet once for all of them."""
    steps = Steps(sets()[0], 5)
    steps.buffers["x"] = x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(64)
    steps.program.add(steps.at("x"), steps.at("x"), 1.0, 64, steps.at("a", 64))
    steps.program.rms_norm(steps.at("a"), ones.data_ptr(), 1e-6, 1, 64, steps.at("b", 64))
    steps.program.scale(steps.at("b"), 3.0, 64, steps.at("a"))
    assert len(steps.program) == 1
    twice = 2 * x
    torch.testing.assert_close(steps.run()["a"], 3 * twice * (twice.square().mean(-1, keepdim=True) + 1e-6).rsqrt())


def test_a_pass_that_does_not_fit_is_refused() -> None:
    """Kernels read where they are told to, so the module looks first."""
    here = native()
    assert here is not None
    table = weight("Q8_0", 10, 32, 1)
    y = torch.zeros(4, 32)
    program = here.module.Program(4)
    program.embed(table.handle, False, y.data_ptr())

    def run(tokens: list[int], spans: list[tuple[int, int]], blocks: list[list[int]]) -> None:
        program.run_pass(here.pool, here.kernels, tokens, spans, blocks, 32, False)

    run([0, 9], [(30, 2)], [[0]])
    assert torch.equal(y[:2], table.dense()[[0, 9]])
    for tokens, spans, blocks, said in [
        ([10], [(0, 1)], [[0]], "vocabulary"),
        ([-1], [(0, 1)], [[0]], "vocabulary"),
        ([0] * 5, [(0, 5)], [[0]], "rows"),
        ([0, 0], [(31, 2)], [[0]], "past its blocks"),
        ([0], [(-1, 1)], [[0]], "before its sequence"),
        ([], [(0, 0)], [[0]], "is empty"),
    ]:
        with pytest.raises(IndexError, match=said):
            run(tokens, spans, blocks)
    for spans in ([(0, 1), (0, 1)], [(0, 1)]):
        with pytest.raises(ValueError, match=r"a block table|cover"):
            run([0, 0], spans, [[0]])
