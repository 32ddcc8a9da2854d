"""GGUF writing: what is written is read back the same, and what GGUF cannot hold is refused before a file appears."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import FormatError, UsageError
from tokenmill.formats import GGUFFile, Typed, write_gguf
from tokenmill.formats.gguf import TYPES, WRITABLE, dequantize, quantize

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
FLOATS = st.floats(width=32, allow_nan=False)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LISTS = st.one_of(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=5),
    st.lists(FLOATS, min_size=1, max_size=5),
    st.lists(STRINGS, min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
VALUES = st.one_of(INTEGERS, FLOATS, STRINGS, st.booleans(), LISTS, st.lists(LISTS, min_size=1, max_size=3))
NAMES = STRINGS.filter(lambda name: 0 < len(name.encode()) < 64)
KEYS = NAMES.filter(lambda name: not name.startswith(("general.", "split.")))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(KEYS, VALUES, max_size=6),
    names=st.lists(NAMES, max_size=4, unique=True),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=4, max_size=4),
    types=st.lists(st.sampled_from([name for name in WRITABLE if TYPES[name].block <= 32]), min_size=4, max_size=4),
)
def test_what_is_written_is_read(
    tmp_path: Path, metadata: dict[str, Any], names: list[str], shapes: list[list[int]], types: list[str]
) -> None:
    path = tmp_path / "m.gguf"
    tensors = [(name, torch.randn(*shape, 32), type) for name, shape, type in zip(names, shapes, types, strict=False)]
    write_gguf(path, metadata, iter(tensors))
    file = GGUFFile(path)
    assert dict(file.metadata) == metadata
    assert list(file.infos()) == names
    for name, tensor, type in tensors:
        assert file.infos()[name].shape == tuple(tensor.shape)
        assert torch.equal(file.load(name, torch.float32), dequantize(quantize(tensor, type), type))
    # a second file from what was read is the same file
    again = tmp_path / "again.gguf"
    typed = {key: Typed(value, file.metadata_types[key]) for key, value in file.metadata.items()}
    if "array" not in file.metadata_types.values():
        write_gguf(again, typed, tensors)
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (True, "bool"),
        (0, "uint32"),
        ((1 << 32) - 1, "uint32"),
        (-1, "int32"),
        (1 << 32, "uint64"),
        (-(1 << 31) - 1, "int64"),
        (1.5, "float32"),
        ("x", "string"),
        ([1, 2], "int32"),
        ([1, 1 << 31], "uint32"),
        ([-1, 1 << 31], "int64"),
        ([1, (1 << 64) - 1], "uint64"),
        ([True], "bool"),
        (Typed(1, "float64"), "float64"),
        (Typed([], "string"), "string"),
        (Typed([[1], [2]], "int8"), "int8"),
    ],
)
def test_types_of_metadata(tmp_path: Path, value: Any, type: str) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"k": value}, [])
    file = GGUFFile(path)
    assert file.metadata_types["k"] == type
    assert file.metadata["k"] == (value.value if isinstance(value, Typed) else value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "NoneType"),
        ({}, "dict"),
        ([], "no element type"),
        ([1, 2.5], "one type"),
        ([1, True], "one type"),
        ([[1], 2], "must not mix"),
        (1 << 64, "no GGUF integer type"),
        ([-1, 1 << 63], "no GGUF integer type"),
        (1e39, "cannot be written as float32"),
        ("\ud800", "cannot be written as string"),
        (Typed(256, "uint8"), "cannot be written as uint8"),
        (Typed(True, "uint8"), "cannot be written as uint8"),
        (Typed(1, "bool"), "cannot be written as bool"),
        (Typed(1, "string"), "cannot be written as string"),
        (Typed(1, "unit8"), "did you mean 'uint8'"),
        (Typed([1], "array"), "not a metadata type"),
    ],
)
def test_metadata_that_has_no_type_is_refused(tmp_path: Path, value: Any, problem: str) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(FormatError, match=problem) as caught:
        write_gguf(path, {"the.key": value}, [])
    assert "the.key" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ([("w", torch.ones(33), "Q4_0")], "blocks of 32; use F16"),
        ([("w", torch.ones(2, 31), "Q8_0")], "blocks of 32"),
        ([("w", torch.tensor(1.0), "Q8_0")], "blocks of 32"),
        ([("w", torch.ones(256), "IQ3_S")], "can be read but not written"),
        ([("w", torch.ones(256), "Q4_X")], "did you mean"),
        ([("w", torch.ones(32), "Q8_1")], "Q8_1"),
        ([("w", torch.full((32,), math.nan), "Q4_0")], "NaN"),
        ([("w", torch.full((32,), math.inf), "Q8_0")], "infinity"),
        ([("w", torch.full((32,), 1e9), "Q4_1")], "too large"),
        ([("w", torch.full((4,), 1e5), "F16")], "65504"),
        ([("w", torch.ones(4), "I32")], "from torch.int32 only"),
        ([("w", torch.ones(1, 1, 1, 1, 1), "F32")], "5 dimensions"),
        ([("w", torch.ones(1), "F32")] * 2, "given twice"),
        ([("", torch.ones(1), "F32")], "0 bytes long"),
        ([("w" * 64, torch.ones(1), "F32")], "64 bytes long"),
        ([("w\udfff", torch.ones(1), "F32")], "UTF-8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: list[Any], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert list(tmp_path.iterdir()) == []


def test_infinite_values_stay_in_plain_types() -> None:
    values = torch.tensor([math.inf, -math.inf, 1.0])
    assert torch.equal(dequantize(quantize(values, "F16"), "F16"), values)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_honoured(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.alignment": alignment}, [("a", torch.ones(3), "F32"), ("b", torch.ones(3), "F32")])
    file = GGUFFile(path)
    assert (file.load("b").data_ptr() - file.load("a").data_ptr()) == max(alignment, 16)
    assert torch.equal(file.load("b"), torch.ones(3))


@pytest.mark.parametrize("alignment", [0, 4, 24, "32", Typed(32, "uint64"), 1 << 40])
def test_impossible_alignment_is_refused(tmp_path: Path, alignment: Any) -> None:
    with pytest.raises(FormatError, match=r"general\.alignment"):
        write_gguf(tmp_path / "m.gguf", {"general.alignment": alignment}, [])


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"v": 1}, [("w", torch.ones(2), "F32")])

    def tensors() -> Any:
        yield "w", torch.zeros(2), "F32"
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        write_gguf(path, {"v": 2}, tensors())
    assert GGUFFile(path).metadata["v"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_in_any_memory_layout(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    base = torch.randn(64, 32)
    parameter = torch.nn.Parameter(base)
    write_gguf(path, {}, [("t", base.t(), "F32"), ("q", base.t()[:, ::2], "Q8_0"), ("p", parameter, "F16")])
    file = GGUFFile(path)
    assert torch.equal(file.load("t"), base.t())
    assert torch.equal(file.load("q"), dequantize(quantize(base.t()[:, ::2].contiguous(), "Q8_0"), "Q8_0"))
    assert torch.equal(file.load("p"), base.half())


def test_dequantize_refuses_what_are_not_blocks() -> None:
    with pytest.raises(UsageError, match="not whole Q4_0 blocks of 18"):
        dequantize(torch.zeros(2, 17, dtype=torch.uint8), "Q4_0")
    with pytest.raises(UsageError, match="uint8"):
        dequantize(torch.zeros(2, 18), "Q4_0")
    with pytest.raises(UsageError, match="Q8_1"):
        dequantize(torch.zeros(2, 36, dtype=torch.uint8), "Q8_1")
