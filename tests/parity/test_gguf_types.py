"""Every GGUF tensor type against the gguf package, bit for bit: the table, decoding and encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from tokenmill.formats.gguf import TYPES, dequantize, quantize

# what the gguf package lists but cannot decode itself; these are decoded by ggml's block structs, see below
NO_ORACLE = {"Q8_K", "Q1_0", "F64", "I8", "I16", "I32", "I64"}
QUANTISED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Equal as bits; any NaN equals any NaN."""
    a, b = ours.numpy(), np.ascontiguousarray(theirs)
    assert a.dtype == b.dtype == np.float32
    return a.shape == b.shape and bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


def test_the_table_is_the_gguf_package_s() -> None:
    theirs = {kind.name: (kind.value, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert theirs.pop("Q8_1") == (9, 32, 40)  # ggml's own block is 36 bytes: refused
    assert {kind.name: (kind.id, kind.block, kind.nbytes) for kind in TYPES.values()} == theirs


@pytest.mark.parametrize("name", sorted(set(TYPES) - NO_ORACLE))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_bytes_decode_equally(name: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (67, 12 * TYPES[name].nbytes), dtype=np.uint8)
    theirs = quants.dequantize(raw, GGMLQuantizationType[name])
    ours = dequantize(torch.from_numpy(raw), name)
    assert same_bits(ours, theirs)
    assert np.isfinite(theirs).mean() > 0.5
    rounded = dequantize(torch.from_numpy(raw), name, torch.bfloat16)
    assert torch.equal(rounded.nan_to_num(), ours.bfloat16().nan_to_num())


@pytest.mark.parametrize("name", sorted(set(TYPES) - NO_ORACLE - {"F32", "F16", "BF16"}))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_byte_position_and_value_counts(name: str) -> None:
    """One byte set at a time to every value, the rest plausible: every bit of a block is read as ggml reads it."""
    kind = TYPES[name]
    rng = np.random.default_rng(1)
    positions = np.arange(kind.nbytes) if kind.nbytes < 100 else rng.choice(kind.nbytes, 60, replace=False)
    raw = np.tile(rng.integers(0, 64, kind.nbytes, dtype=np.uint8), (len(positions), 256, 1))
    for row, position in enumerate(positions):
        raw[row, :, position] = np.arange(256)
    raw = raw.reshape(len(positions), -1)
    assert same_bits(dequantize(torch.from_numpy(raw), name), quants.dequantize(raw, GGMLQuantizationType[name]))


def test_decoding_in_pieces_changes_nothing() -> None:
    """More values than one piece, and a count that no piece divides."""
    raw = np.random.default_rng(2).integers(0, 256, (4097, 20 * 65), dtype=np.uint8)
    raw[:, 1::20] &= 0x3F  # no infinite scales, or NaN would hide differences
    raw[:, 3::20] &= 0x3F
    theirs = quants.dequantize(raw, GGMLQuantizationType.Q4_1)
    assert same_bits(dequantize(torch.from_numpy(raw), "Q4_1"), theirs)


def test_types_without_an_oracle_follow_ggml_s_structs() -> None:
    rng = np.random.default_rng(3)
    scale = rng.standard_normal(5).astype(np.float32)
    codes = rng.integers(-128, 128, (5, 256), dtype=np.int8)
    q8_k = np.concatenate([scale[:, None].view(np.uint8), codes.view(np.uint8), np.zeros((5, 32), np.uint8)], axis=1)
    assert same_bits(dequantize(torch.from_numpy(q8_k), "Q8_K"), scale[:, None] * codes.astype(np.float32))

    half = scale.astype(np.float16)
    bits = rng.integers(0, 2, (5, 128), dtype=np.uint8)
    packed = np.packbits(bits, axis=1, bitorder="little")
    q1_0 = np.concatenate([half[:, None].view(np.uint8), packed], axis=1)
    expected = np.where(bits == 1, half[:, None], -half[:, None]).astype(np.float32)
    assert same_bits(dequantize(torch.from_numpy(q1_0), "Q1_0"), expected)

    values = torch.tensor([[-3, 0, 100]])
    for name in ("I8", "I16", "I32", "I64", "F64"):
        stored = values.to(TYPES[name].dtype)
        assert torch.equal(dequantize(quantize(stored, name), name), values.float())


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])  # it has no encoder for the others
@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0, 1e-7])
def test_encoding_is_equal(name: str, scale: float) -> None:
    x = torch.randn(129, 96, generator=torch.Generator().manual_seed(4)) * scale
    x[0], x[1], x[2, :32] = 0.0, 2.0 * scale, -scale
    x[3] = (x[3] / scale).round().mul(scale).add(0.0)  # many ties, and no negative zero
    x[4, 5:9] = -x[4, 3]  # equal magnitudes, both signs
    theirs = quants.quantize(x.numpy(), GGMLQuantizationType[name]).view(np.uint8)
    ours = quantize(x, name)
    assert np.array_equal(ours.numpy(), theirs)
    for narrow in (torch.bfloat16, torch.float16):
        y = x.to(narrow)
        theirs = quants.quantize(y.float().numpy(), GGMLQuantizationType[name]).view(np.uint8)
        assert np.array_equal(quantize(y, name).numpy(), theirs)


@pytest.mark.parametrize("name", QUANTISED)
def test_what_is_encoded_decodes_equally(name: str) -> None:
    raw = quantize(torch.randn(33, 4096, generator=torch.Generator().manual_seed(5)), name)
    assert same_bits(dequantize(raw, name), quants.dequantize(raw.numpy(), GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", QUANTISED)
def test_blocks_of_subnormal_scale_decode_to_the_same_zeros(name: str) -> None:
    """gguf casts infinity to a byte there, so only the decoded values can be compared."""
    raw = quantize(torch.randn(4, 32, generator=torch.Generator().manual_seed(6)) * 1e-40, name)
    assert dequantize(raw, name).abs().max() < 1e-30
