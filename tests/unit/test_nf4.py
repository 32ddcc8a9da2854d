"""NF4 bit for bit as bitsandbytes: against a golden file made by its CPU build, and against itself where installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from tokenmill.core.errors import ConfigError
from tokenmill.formats.bitsandbytes import nf4_codes
from tokenmill.models import load_model
from tokenmill.nn.context import Packed
from tokenmill.nn.linear import Linear
from tokenmill.quant.nf4 import NF4Linear, dequantize, dynamic_map, quantize, quantize_linears

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weight(dtype: torch.dtype) -> torch.Tensor:
    """282 blocks and 16 values: a nested block and a bit of the next, a zero row, an incomplete block."""
    values = np.random.RandomState(5).standard_normal((150, 120)).astype(np.float32) * 0.05
    values[3] = 0
    return torch.from_numpy(values).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_scales_and_values_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    golden = load_file(tiny.GOLDEN / "nf4.safetensors")
    name = str(dtype).removeprefix("torch.")
    packed, plain = quantize(weight(dtype)), quantize(weight(dtype), double=False)
    assert packed.nested is not None
    assert packed.offset is not None
    assert torch.equal(packed.packed, golden[f"{name}.packed"])
    assert torch.equal(packed.scales, golden[f"{name}.codes"])
    assert torch.equal(packed.nested, golden[f"{name}.nested"])
    assert torch.equal(packed.offset.reshape(1), golden[f"{name}.offset"])
    assert torch.equal(plain.scales, golden[f"{name}.scales"])
    assert torch.equal(dequantize(packed)[::7], golden[f"{name}.values"])


def test_live_bitsandbytes_agrees() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    assert torch.equal(dynamic_map(torch.device("cpu")), functional.create_dynamic_map())
    for seed in range(5):
        values = torch.randn(200, 300, generator=torch.Generator().manual_seed(seed)) * 0.05
        packed, state = functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
        ours = quantize(values)
        assert torch.equal(ours.packed, packed.reshape(-1))
        assert torch.equal(ours.scales, state.absmax)
        assert torch.equal(dequantize(ours), functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("shape", [(150, 120), (48, 48), (5, 7), (3, 128)], ids=str)
def test_blocks_that_do_not_end_with_a_row_are_codes_too(shape: tuple[int, int]) -> None:
    packed = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(nf4_codes(packed).dense(), dequantize(packed))


def test_an_all_zero_weight_stays_zero() -> None:
    for double in (True, False):
        assert not dequantize(quantize(torch.zeros(3, 50), double=double)).any()


def test_layer_equals_its_dense_weight_with_gradients() -> None:
    w, bias = weight(torch.float32), torch.randn(150)
    layer = NF4Linear(w, bias)
    x = torch.randn(5, 120, requires_grad=True)
    y = layer(x)
    expected = x @ layer.dense().T + bias
    assert torch.allclose(y, expected, atol=1e-6)
    direction = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, direction)
    assert torch.allclose(ours, direction @ layer.dense(), atol=1e-5)
    assert (layer.dense() - w).abs().max() < 0.2 * w.abs().max()
    held = sum(buffer.nbytes for name, buffer in layer.named_buffers() if name != "bias")
    assert held * 8 / w.numel() < 4.14  # 4.127 bits a weight, and the incomplete blocks


def test_a_model_keeps_head_and_router(tmp_path: Path) -> None:
    model = load_model(tiny.write(tiny.FAMILIES["qwen3_moe"], tmp_path), dtype="float32")
    before = model.decoder(torch.tensor(tiny.PROMPTS[0]), Packed([len(tiny.PROMPTS[0])]))
    count = quantize_linears(model.decoder)
    assert count == 3 * 4 + 3  # attention of three layers, the feed-forward part of the one dense layer
    plain = {name for name, module in model.decoder.named_modules() if isinstance(module, Linear)}
    assert plain == {"head", "layers.0.mlp.router", "layers.2.mlp.router"}
    after = model.decoder(torch.tensor(tiny.PROMPTS[0]), Packed([len(tiny.PROMPTS[0])]))
    assert 0 < (after - before).abs().max() < 0.5 * before.abs().max()
    with pytest.raises(ConfigError, match="no plain linear layers"):
        quantize_linears(model.decoder)
