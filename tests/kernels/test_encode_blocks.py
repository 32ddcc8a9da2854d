"""Floats into GGUF blocks: the kernels against bytes that ggml made, the torch twin against the kernels."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tests.tiny import GOLDEN

from tokenmill.core.errors import UsageError
from tokenmill.formats.gguf import dequantize, quantize
from tokenmill.formats.gguf.encode import BLOCKS
from tokenmill.ops.blocks import encode_blocks
from tokenmill.ops.native import native

needs_kernels = pytest.mark.skipif(native() is None, reason="no native kernels here")


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """``x`` [5, 512], ``importance`` [512], and for each type ggml_quantize_chunk's bytes: "Q4_K", "Q4_K.weighted"."""
    with np.load(GOLDEN / "gguf_blocks.npz") as found:
        return {name: torch.from_numpy(found[name]) for name in found}


@needs_kernels
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("type", BLOCKS)
def test_kernels_give_the_bytes_of_ggml(type: str, weighted: bool, golden: dict[str, torch.Tensor]) -> None:
    importance = golden["importance"] if weighted else None
    found = encode_blocks(golden["x"], type, importance)
    theirs = golden[f"{type}.weighted" if weighted else type]
    assert torch.equal(dequantize(found, type), dequantize(theirs, type))
    assert (found != theirs).sum() <= 8  # only codes of a group whose scale is zero, which mean nothing


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("type", BLOCKS)
def test_the_twin_is_as_good_and_nearly_the_same(type: str, weighted: bool, golden: dict[str, torch.Tensor]) -> None:
    x, importance = golden["x"], golden["importance"] if weighted else None
    theirs = golden[f"{type}.weighted" if weighted else type]
    ours = quantize(x, type, importance)
    assert (ours == theirs).float().mean() > 0.93
    weights = golden["importance"] if weighted else torch.ones(512)

    def error(blocks: torch.Tensor) -> float:
        return float(((dequantize(blocks, type) - x) ** 2 * weights).sum())

    assert error(ours) == pytest.approx(error(theirs), rel=0.03)
    decoded = gguf.dequantize(ours.numpy(), gguf.GGMLQuantizationType[type])
    assert torch.equal(torch.from_numpy(decoded), dequantize(ours, type))


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_NL", "Q4_0"])
def test_importances_buy_accuracy_where_they_are_large(type: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, 256, generator=generator)
    importance = torch.where(torch.arange(256) % 8 == 0, 100.0, 0.01)

    def error(blocks: torch.Tensor) -> torch.Tensor:
        return ((dequantize(blocks, type) - x) ** 2 * importance).sum()

    assert error(quantize(x, type, importance)) < 0.8 * error(quantize(x, type))


@needs_kernels
@pytest.mark.parametrize("type", BLOCKS)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_odd_numbers_of_blocks_and_odd_contents(type: str, rows: int) -> None:
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows))
    x[0] = 0
    x[-1, :64] = 0.5
    for importance in (None, torch.rand(256)):
        whole = encode_blocks(x, type, importance)
        alone = torch.cat([encode_blocks(row.unsqueeze(0), type, importance) for row in x])
        assert torch.equal(whole, alone)
        assert torch.isfinite(dequantize(whole, type)).all()
        assert rows == 1 or dequantize(whole, type)[0].abs().max() == 0


@pytest.mark.parametrize("encode", [quantize, encode_blocks])
def test_what_cannot_be_written_is_refused(encode) -> None:  # type: ignore[no-untyped-def]
    x = torch.ones(2, 256)
    for spoilt in (torch.nan, torch.inf):
        bad = x.clone()
        bad[1, 7] = spoilt
        with pytest.raises(UsageError, match="NaN or infinity"):
            encode(bad, "Q4_K")
    with pytest.raises(UsageError, match="too large"):
        encode(x * 1e10 * torch.linspace(-1, 1, 256), "Q6_K")
    with pytest.raises(UsageError, match="do not divide into Q4_K's blocks of 256"):
        encode(torch.ones(2, 128), "Q4_K")
    with pytest.raises(UsageError, match="do not fit rows of 256"):
        encode(x, "Q4_K", torch.ones(255))
    with pytest.raises(UsageError, match="finite and not negative"):
        encode(x, "Q4_K", -torch.ones(256))
    with pytest.raises(UsageError, match="can be read but not written"):
        encode(x, "IQ2_XXS")


def test_experts_have_importances_of_their_own() -> None:
    x, importance = torch.randn(3, 4, 256), torch.rand(3, 256) + 0.01
    found = encode_blocks(x, "Q3_K", importance)
    for expert in range(3):
        assert torch.equal(found[expert], encode_blocks(x[expert], "Q3_K", importance[expert]))
    with pytest.raises(UsageError, match="do not fit a tensor"):
        encode_blocks(x[0], "Q3_K", importance)
