"""Products with codes: how these lie in memory, and the Triton kernels against the reference.

On a machine with CUDA the kernels run there (``-m gpu`` chooses these tests alone); elsewhere Triton's interpreter runs
them on the CPU. Without Triton (``pip install triton``, a gigabyte) they are skipped.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tokenmill.core.errors import UsageError
from tokenmill.formats.codes import Codes
from tokenmill.nn.quantised import QuantisedLinear
from tokenmill.ops.quantised_linear import Held, quantised_linear
from tokenmill.ops.registry import use_backend
from tokenmill.quant.grid import Grid, round_to_nearest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    (4, 32, True, None),
    (4, 64, False, None),
    (4, -1, True, None),
    (3, 32, False, None),
    (2, 32, True, None),
    (8, 32, True, None),
    (8, -1, True, None),
    (8, -1, True, "int8"),
]


def codes_of(bits: int, group: int, symmetric: bool, rows: int, columns: int, dtype: torch.dtype) -> Codes:
    draw = torch.Generator().manual_seed(rows * columns + bits)
    codes = round_to_nearest(
        torch.randn(rows, columns, generator=draw), Grid(bits, group, symmetric, scale_dtype=dtype)
    )
    return on_device(codes)


def on_device(codes: Codes) -> Codes:
    zeros_OG = None if codes.zeros_OG is None else codes.zeros_OG.to(DEVICE)
    return Codes(codes.codes_OI.to(DEVICE), codes.scales_OG.to(DEVICE), zeros_OG, codes.bits)


@pytest.mark.parametrize(("bits", "columns", "paired"), [(4, 96, True), (3, 96, True), (4, 33, False), (8, 96, False)])
def test_codes_lie_two_to_a_byte_and_come_back(bits: int, columns: int, paired: bool) -> None:
    codes = codes_of(bits, -1, False, 5, columns, torch.float16)
    held = Held.of(codes)
    assert held.paired == paired
    assert held.codes.numel() == codes.codes_OI.numel() // (2 if paired else 1)
    assert held.shape == codes.shape
    assert torch.equal(held.matrix().codes_OI, codes.codes_OI)
    assert torch.equal(held.matrix().dense(), codes.dense())


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels forced, interpreted where there is no CUDA."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton", exc_type=ImportError)
    interpreter = pytest.importorskip("triton.runtime.interpreter", exc_type=ImportError)
    if DEVICE == "cpu" and not isinstance(triton.jit(lambda: None), interpreter.InterpretedFunction):
        pytest.skip("this Triton does not interpret")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group", "symmetric", "inputs"), CASES)
def test_triton_is_the_reference(
    bits: int, group: int, symmetric: bool, inputs: str | None, dtype: torch.dtype, kernels: None
) -> None:
    """Rows and columns that fill no tile, one token and several; a bias. Within the rounding of the result, and of the
    reference's weights where these are rounded too."""
    columns = 192 if group > 0 else 100
    held = Held.of(codes_of(bits, group, symmetric, 40, columns, dtype))
    for tokens in (1, 19):
        draw = torch.Generator().manual_seed(tokens)
        x_TI = torch.randn(tokens, columns, generator=draw).to(DEVICE, dtype)
        bias_O = torch.randn(40, generator=draw).to(DEVICE, dtype)
        with use_backend(quantised_linear="triton"):
            y_TO = quantised_linear(x_TI, held, bias_O, inputs)
        exact_TO = quantised_linear.reference(x_TI.double(), held, bias_O, inputs)
        assert y_TO.dtype == dtype
        allowed = torch.finfo(dtype).eps * (1 if inputs is None else 2)
        assert (y_TO.double() - exact_TO).abs().max() <= allowed * exact_TO.abs().max()


@pytest.mark.gpu
def test_a_layer_uses_them(kernels: None) -> None:
    """In shapes [batch, T, I], inputs that do not lie in one piece included."""
    layer = QuantisedLinear(codes_of(4, 32, True, 24, 64, torch.float16), None).to(DEVICE)
    x = torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16).permute(2, 1, 0)
    with use_backend(quantised_linear="triton"):
        y = layer(x)
    assert y.shape == (2, 3, 24)
    assert torch.allclose(y, layer(x), rtol=0, atol=0.02)


def test_what_the_kernels_do_not_do_they_leave_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held.of(codes_of(4, 32, True, 24, 64, torch.float16))
    x_TI = torch.randn(2, 64, device=DEVICE).half()
    refuses = quantised_linear.backends[0].refuses
    if DEVICE == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with use_backend(quantised_linear="triton"), pytest.raises(UsageError, match="not on CUDA"):
            quantised_linear(x_TI, held)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert refuses(x_TI.float(), held) == "inputs are not in 16 bits"
    assert refuses(x_TI.clone().requires_grad_(), held) == "a gradient is wanted"
    assert refuses(x_TI, held, None, "fp8") == "inputs rounded as fp8"
    assert refuses(x_TI, held, None, "int8") == "rounded inputs go with 8 bits and a scale a row"
    scattered = Held(held.codes, True, held.scales_OG, None, 4, torch.zeros(64, dtype=torch.int32))
    assert "even steps" in str(refuses(x_TI, scattered))
    fp8 = Held.of(round_to_nearest(torch.randn(24, 64), Grid(8, -1, True, "fp8")))
    assert "even steps" in str(refuses(x_TI, fp8))
    odd = Held.of(codes_of(4, 48, True, 24, 96, torch.float16))
    assert refuses(torch.randn(2, 96, device=DEVICE).half(), odd) == "groups of 48 columns"
