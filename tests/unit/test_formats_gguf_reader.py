"""GGUF reading: what is right is read in place, what is wrong is refused with file and place, cheaply."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch

from fakes.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    gguf,
    info,
    key,
    text,
)
from tokenmill.core.errors import FormatError, UsageError
from tokenmill.formats import GGUFFile, Typed, write_gguf

HUGE = (1 << 64) - 1


def open_bytes(tmp_path: Path, data: bytes) -> GGUFFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return GGUFFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_every_metadata_type_is_read(tmp_path: Path, version: int) -> None:
    keys = [
        key("u8", U8, b"\xff"),
        key("i8", I8, b"\xff"),
        key("u16", U16, b"\xff\xff"),
        key("i16", I16, b"\xff\xff"),
        key("u32", U32, b"\xff" * 4),
        key("i32", I32, b"\xff" * 4),
        key("f32", F32, struct.pack("<f", 0.5)),
        key("bool", BOOL, b"\x01"),
        key("string", STRING, text("héé")),
        key("strings", ARRAY, array(STRING, 2, text("") + text("b"))),
        key("ints", ARRAY, array(I32, 2, struct.pack("<2i", 1, -2))),
        key("bools", ARRAY, array(BOOL, 2, b"\x00\x01")),
        key("nested", ARRAY, array(ARRAY, 2, array(U8, 1, b"\x07") + array(U8, 0, b""))),
        key("u64", U64, b"\xff" * 8),
        key("i64", I64, b"\xff" * 8),
        key("f64", F64, struct.pack("<d", 1e300)),
    ]
    file = open_bytes(tmp_path, gguf(keys, version=version))
    assert file.version == version
    assert dict(file.metadata) == {
        "u8": 255,
        "i8": -1,
        "u16": 65535,
        "i16": -1,
        "u32": 2**32 - 1,
        "i32": -1,
        "f32": 0.5,
        "bool": True,
        "string": "héé",
        "strings": ["", "b"],
        "ints": [1, -2],
        "bools": [False, True],
        "nested": [[7], []],
        "u64": HUGE,
        "i64": -1,
        "f64": 1e300,
    }
    assert file.metadata["bool"] is True
    assert file.metadata_types["nested"] == "uint8"
    assert file.metadata_types["strings"] == "string"


def test_plain_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    stored = {
        "f32": (torch.randn(3, 5), "F32"),
        "f16": (torch.randn(3, 5).half(), "F16"),
        "bf16": (torch.randn(3, 5).bfloat16(), "BF16"),
        "i32": (torch.arange(6, dtype=torch.int32).view(1, 2, 3), "I32"),
        "scalar": (torch.tensor(2.5), "F32"),
        "empty": (torch.empty(0, 32), "Q8_0"),
    }
    write_gguf(path, {}, ((name, tensor, type) for name, (tensor, type) in stored.items()))
    file = GGUFFile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (tensor, type) in stored.items():
            loaded = file.load(name)
            assert torch.equal(loaded, tensor), name
            assert file.infos()[name].type == type
            assert file.infos()[name].shape == tuple(tensor.shape)
            if type != "Q8_0":
                # every load gives the same memory: nothing was copied
                assert loaded.data_ptr() == file.load(name).data_ptr() == file.raw(name).data_ptr()
    assert file.load("f32", torch.bfloat16).dtype == torch.bfloat16


def test_writing_to_a_view_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [("w", torch.ones(8), "F32")])
    before = path.read_bytes()
    file = GGUFFile(path)
    file.load("w").add_(1)
    assert path.read_bytes() == before
    assert torch.equal(GGUFFile(path).load("w"), torch.ones(8))


def test_a_view_outlives_its_file_object(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [("w", torch.ones(8), "F32")])
    tensor = GGUFFile(path).load("w")
    path.unlink()
    assert tensor.sum() == 8


def test_opening_does_not_import_the_gguf_package(tmp_path: Path) -> None:
    """It would cost every start of the program more than reading the file does."""
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [("w", torch.ones(32), "Q4_0")])
    code = "import sys; import tokenmill.formats as f; f.GGUFFile(sys.argv[1]).load('w'); print('gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_raw_is_rows_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {}, [("w", torch.randn(2, 3, 64), "Q8_0"), ("b", torch.randn(5), "F32")])
    file = GGUFFile(path)
    assert file.raw("w").shape == (6, 68)
    assert file.raw("b").shape == (1, 20)
    assert file.load("w").shape == (2, 3, 64)
    assert file.load("w", torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="floating"):
        file.load("w", torch.int32)
    with pytest.raises(FormatError, match=r"did you mean 'w'|no such tensor"):
        file.load("ww")


def test_an_alignment_smaller_than_an_element_is_read(tmp_path: Path) -> None:
    keys = [key("general.alignment", U32, struct.pack("<I", 1)), key("pad", STRING, text("x"))]
    data = gguf(keys, [info("w", [2], 0, 1)], b"\x00" + struct.pack("<2f", 1, 2), alignment=1)
    assert open_bytes(tmp_path, data).load("w").tolist() == [1, 2]


BROKEN = {
    "empty": (b"", "empty"),
    "short": (b"GGUF", "needs at least"),
    "magic": (gguf(magic=b"GGUX"), "not a GGUF file"),
    "old format": (gguf(magic=b"tjgg"), "August 2023"),
    "version 1": (gguf(version=1), "versions 2 and 3"),
    "version 4": (gguf(version=4), "versions 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "absurd tensor count": (gguf(num_infos=HUGE), "tensor count"),
    "absurd key count": (gguf(num_keys=HUGE), "metadata count"),
    "one key too many": (gguf([key("k", U32, bytes(4))], num_keys=2), "metadata"),
    "duplicate key": (gguf([key("k", U32, bytes(4))] * 2), "occurs twice"),
    "duplicate tensor": (gguf([], [info("w", [1], 0, 0), info("w", [1], 0, 32)], bytes(64)), "occurs twice"),
    "key is not UTF-8": (gguf([key(b"\xff\xfe", U32, bytes(4))]), "UTF-8"),
    "tensor name is not UTF-8": (gguf([], [info(b"\xc3\x28", [1], 0, 0)], bytes(4)), "UTF-8"),
    "empty key": (gguf([key("", U32, bytes(4))]), "empty name"),
    "empty tensor name": (gguf([], [info("", [1], 0, 0)], bytes(4)), "empty name"),
    "key length": (gguf([struct.pack("<Q", HUGE) + b"k" * 40]), "has 18446744073709551615 bytes"),
    "string length": (gguf([key("k", STRING, struct.pack("<Q", 1 << 40) + b"x")]), "are left"),
    "string array count": (gguf([key("k", ARRAY, array(STRING, 1 << 20, b""))]), "needs at least"),
    "string array is short": (gguf([key("k", ARRAY, array(STRING, 2, text("x" * 30)))], alignment=1), "string 1 of 2"),
    "integer array count": (gguf([key("k", ARRAY, array(I32, 1 << 23, bytes(8)))]), "needs at least"),
    "absurd array count": (gguf([key("k", ARRAY, array(I32, HUGE, bytes(8)))]), "at most"),
    "array of arrays count": (gguf([key("k", ARRAY, array(ARRAY, 1 << 20, bytes(64)))]), "needs at least"),
    "deep arrays": (gguf([key("k", ARRAY, array(ARRAY, 1, b"") * 5000)]), "deeper"),
    "value type": (gguf([key("k", 13, bytes(8))]), "value type 13"),
    "element type": (gguf([key("k", ARRAY, array(99, 1, bytes(8)))]), "element type 99"),
    "boolean": (gguf([key("k", BOOL, b"\x02")]), "neither 0 nor 1"),
    "boolean in array": (gguf([key("k", ARRAY, array(BOOL, 2, b"\x01\x07"))]), "neither 0 nor 1"),
    "alignment is zero": (gguf([key("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment is 24": (gguf([key("general.alignment", U32, struct.pack("<I", 24))]), "power of two"),
    "alignment is text": (gguf([key("general.alignment", STRING, text("32"))]), "uint32"),
    "alignment is a list": (gguf([key("general.alignment", ARRAY, array(U32, 1, bytes(4)))]), "one uint32"),
    "five dimensions": (gguf([], [info("w", [1] * 5, 0, 0)], bytes(4)), "5 dimensions"),
    "absurd dimensions": (gguf([], [info("w", [1], 0, 0, num_dims=1 << 31)], bytes(4)), "dimensions"),
    "shape overflows": (gguf([], [info("w", [1 << 33, 1 << 33], 0, 0)], bytes(4)), "overflows"),
    "overflow behind a zero": (gguf([], [info("w", [0, 1 << 40, 1 << 40], 0, 0)], bytes(4)), "overflows"),
    "wraps to a small size": (gguf([], [info("w", [1 << 62, 4], 0, 0)], bytes(4)), "overflows"),
    "tensor type": (gguf([], [info("w", [1], 42, 0)], bytes(4)), "type 42 is not known"),
    "removed tensor type": (gguf([], [info("w", [32], 31, 0)], bytes(64)), "Q4_0_4_4"),
    "Q8_1": (gguf([], [info("w", [32], 9, 0)], bytes(64)), "Q8_1"),
    "row does not fit the block": (gguf([], [info("w", [33], 2, 0)], bytes(64)), "blocks of 32"),
    "scalar of a block type": (gguf([], [info("w", [], 2, 0)], bytes(64)), "blocks of 32"),
    "offset is not aligned": (gguf([], [info("w", [1], 0, 4)], bytes(64)), "alignment"),
    "offset beyond the end": (gguf([], [info("w", [1], 0, 64)], bytes(64)), "file ends"),
    "offset overflows": (gguf([], [info("w", [1], 0, HUGE - 31)], bytes(64)), "file ends"),
    "tensor larger than the file": (gguf([], [info("w", [17], 0, 0)], bytes(64)), "takes 68 bytes"),
    "data is missing": (gguf([], [info("w", [16], 0, 0)]), "file ends"),
    "overlap": (gguf([], [info("a", [16], 0, 0), info("b", [1], 0, 32)], bytes(64)), "overlaps tensor 'a'"),
    "same place": (gguf([], [info("a", [1], 0, 0), info("b", [1], 0, 0)], bytes(64)), "overlaps"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name_and_place(tmp_path: Path, name: str) -> None:
    data, problem = BROKEN[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=problem) as caught:
            open_bytes(tmp_path, data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.path.endswith("model.gguf")
    assert name == "empty" or "byte" in caught.value.where


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"a": "text", "l": [1, 2, 3]}, [("w", torch.ones(2, 32), "Q4_0"), ("b", torch.ones(8), "F32")])
    whole = path.read_bytes()
    assert len(GGUFFile(path).infos()) == 2
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            GGUFFile(path)


def test_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(FormatError, match="cannot be read"):
            GGUFFile(path)


def test_a_file_larger_than_memory_opens(tmp_path: Path) -> None:
    """Mapping must not reserve memory for a file; only Linux can be told so."""
    path = tmp_path / "m.gguf"
    rows = 1 << 38  # a terabyte of float32, sparse
    with open(path, "wb") as file:
        file.write(gguf([], [info("w", [1, rows], 0, 0)]))
        try:
            file.truncate(file.tell() + 4 * rows)
        except OSError:
            pytest.skip("this file system has no files so large")
    try:
        file = GGUFFile(path)
    except FormatError as error:
        if "memory" not in str(error):
            raise
        pytest.skip("this system reserves memory for mapped files")
    assert file.load("w")[rows - 1] == 0


def write_parts(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"m-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    for index, path in enumerate(paths):
        metadata: dict[str, object] = {"split.no": Typed(index, "uint16"), "split.count": Typed(count, "uint16")}
        if index == 0:
            metadata |= {"general.name": "split", "split.tensors.count": Typed(count, "int32")}
        write_gguf(path, metadata, [(f"t{index}", torch.full((4,), float(index)), "F32")])
    return paths


def test_parts_are_read_as_one(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    for path in paths:
        file = GGUFFile(path)
        assert file.path == paths[0]
        assert file.metadata["general.name"] == "split"
        assert [file.load(f"t{index}")[0].item() for index in range(3)] == [0, 1, 2]


def test_incomplete_or_mixed_parts_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    renamed = tmp_path / "alone.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    with pytest.raises(FormatError, match="name them NAME-00001-of-00003"):
        GGUFFile(renamed)
    last = paths[2].read_bytes()
    paths[2].unlink()
    with pytest.raises(FormatError, match=r"parts missing beside it: m-00003-of-00003"):
        GGUFFile(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(FormatError, match=r"split\.no"):
        GGUFFile(paths[0])
    paths[2].write_bytes(last[:-17])
    with pytest.raises(FormatError, match="00003-of-00003"):
        GGUFFile(paths[0])


def test_parts_that_repeat_or_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    metadata = {"split.no": Typed(2, "uint16"), "split.count": Typed(3, "uint16")}
    write_gguf(paths[2], metadata, [("t1", torch.ones(1), "F32")])
    with pytest.raises(FormatError, match="is also in m-00002-of-00003"):
        GGUFFile(paths[0])
    write_gguf(paths[2], metadata, [])
    with pytest.raises(FormatError, match="promises 3 tensors, but the parts have 2"):
        GGUFFile(paths[0])


def test_impossible_part_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m-00004-of-00003.gguf"
    path.write_bytes(gguf())
    with pytest.raises(FormatError, match="part 4 of 3"):
        GGUFFile(path)
