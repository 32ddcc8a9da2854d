"""5,000 damaged files: each is refused with a typed error or opened to something that its bytes really hold.

Damage is seeded: flipped and random bytes, truncation, insertion, and lies in the fields that matter (counts, lengths,
types, offsets, dimensions), each set to the values that overflow, wrap or point past the end.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import torch

from tokenmill.core.errors import FormatError
from tokenmill.formats import GGUFFile, SafetensorsFile, TensorFile, Typed, write_gguf
from tokenmill.formats.gguf import TYPES

EXTREMES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 31, 32, 33, 64, 255, 1 << 16, 1 << 20, 1 << 24, 1 << 31, (1 << 32) - 1)
EXTREMES_64 = (*EXTREMES, 1 << 32, 1 << 40, 1 << 61, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1)

# What opening may allocate beside the file: far above what 2 KB files need, far below what their lies ask for.
MEMORY_LIMIT = 4_000_000


def seed_gguf(path: Path) -> bytes:
    metadata = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "tokens": ["<s>", "a", "é", "long token"],
        "scores": [0.5, -1.0],
        "types": [1, 2, 3],
        "flags": [True, False],
        "nested": [[1, 2], [3]],
        "one": True,
        "big": 1 << 40,
        "part": Typed(7, "uint16"),
        "double": Typed(1.5, "float64"),
    }
    tensors = [
        ("token_embd.weight", torch.randn(3, 64), "Q8_0"),
        ("blk.0.attn_q.weight", torch.randn(2, 64), "Q4_1"),
        ("blk.0.ffn.weight", torch.randn(2, 2, 32), "F16"),
        ("norm.weight", torch.randn(5), "F32"),
    ]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


def seed_safetensors() -> tuple[dict[str, object], bytes]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [34, 42]},
    }
    return header, bytes(range(42))


def flip(rng: random.Random, data: bytearray, within: int) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data[rng.randrange(within)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def cut(rng: random.Random, data: bytearray, within: int) -> None:
    del data[rng.randrange(len(data)) :]


def insert(rng: random.Random, data: bytearray, within: int) -> None:
    at = rng.randrange(within)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32)))


def splice(rng: random.Random, data: bytearray, within: int) -> None:
    """Copy one stretch of the header over another: duplicates, and fields where others should be."""
    size, start, target = rng.randrange(1, 60), rng.randrange(within), rng.randrange(within)
    data[target : target + size] = data[start : start + size]


def lie_64(rng: random.Random, data: bytearray, within: int) -> None:
    """Every count, length, dimension and offset is a small little-endian integer: seven zero bytes after a value."""
    places = [at for at in range(8, within - 8) if data[at] and data[at + 1 : at + 8] == bytes(7)]
    struct.pack_into("<Q", data, rng.choice(places), rng.choice(EXTREMES_64))


def lie_32(rng: random.Random, data: bytearray, within: int) -> None:
    places = [at for at in range(4, within - 4) if data[at] and data[at + 1 : at + 4] == bytes(3)]
    struct.pack_into("<I", data, rng.choice(places), rng.choice(EXTREMES))


def lie_in_json(rng: random.Random, header: dict[str, object], data: bytes) -> bytes:
    """A safetensors header in which one value is replaced by one that somebody might put there."""
    header = json.loads(json.dumps(header))
    entry = header[rng.choice(("a", "b", "c"))]
    assert isinstance(entry, dict)
    numbers = [*EXTREMES_64, -1, -(1 << 63), 1.5, 1e300, "8", None, True, [], {}]
    field = rng.choice(("shape", "data_offsets", "dtype", "drop", "whole"))
    if field == "dtype":
        entry["dtype"] = rng.choice(("F64", "F16", "U8", "F4", "F8_E4M3", "X", "", 1, None, []))
    elif field == "drop":
        del entry[rng.choice(list(entry))]
    elif field == "whole":
        entry[rng.choice(list(entry))] = rng.choice(numbers)
    else:
        values = entry[field]
        values[rng.randrange(len(values) + 1) :] = rng.choices(numbers, k=rng.choice((1, 1, 2, 3)))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def outcome(open_file: Callable[[Path], TensorFile], path: Path) -> str:
    """Either "refused" or "opened"; any other error, or a tensor that the file has no bytes for, fails the test."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        file = open_file(path)
        size = path.stat().st_size
        infos = file.infos()
        assert sum(info.nbytes for info in infos.values()) <= size
        for name, info in infos.items():
            assert file.load(name).shape == info.shape
        return "opened"
    except FormatError as error:
        return "refused" if str(path) in str(error) else "refused without naming the file"
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < MEMORY_LIMIT, f"opening a {path.stat().st_size}-byte file took {peak} bytes"


def run(open_file: Callable[[Path], TensorFile], path: Path, make: Callable[[random.Random], bytes]) -> dict[str, int]:
    outcomes = {"opened": 0, "refused": 0}
    tracemalloc.start()
    try:
        for seed in range(2_500):
            path.unlink(missing_ok=True)
            path.write_bytes(make(random.Random(seed)))
            try:
                outcomes[outcome(open_file, path)] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        tracemalloc.stop()
    return outcomes


def test_damaged_gguf_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    damages = (flip, cut, insert, splice, lie_64, lie_64, lie_32, lie_32)
    whole = seed_gguf(path)
    head = len(whole) - sum(info.nbytes for info in GGUFFile(path).infos().values())

    def make(rng: random.Random) -> bytes:
        data = bytearray(whole)
        for damage in rng.choices(damages, k=rng.choice((1, 1, 1, 2))):
            if len(data) > 64:
                damage(rng, data, min(head, len(data)))
        return bytes(data)

    outcomes = run(GGUFFile, path, make)
    assert outcomes["refused"] > 1_000, outcomes
    assert outcomes["opened"] > 100, outcomes


def test_damaged_safetensors_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header, body = seed_safetensors()
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + body

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return lie_in_json(rng, header, body)
        data = bytearray(whole)
        rng.choice((flip, cut, insert, splice))(rng, data, len(text) + 8)
        return bytes(data)

    outcomes = run(SafetensorsFile, path, make)
    assert outcomes["refused"] > 1_000, outcomes
    assert outcomes["opened"] > 20, outcomes


def test_any_type_with_any_bytes_decodes(tmp_path: Path) -> None:
    """Codes index tables: no byte may select a point outside one."""
    generator = torch.Generator().manual_seed(0)
    for name, kind in TYPES.items():
        raw = torch.randint(0, 256, (64, kind.nbytes), dtype=torch.uint8, generator=generator)
        raw[0], raw[1] = 0, 255
        path = tmp_path / "m.gguf"
        head = struct.pack("<4sIQQQ", b"GGUF", 3, 1, 0, 1) + b"w"
        head += struct.pack("<IQQIQ", 2, kind.block, 64, kind.id, 0)
        path.unlink(missing_ok=True)
        path.write_bytes(head + bytes(-len(head) % 32) + raw.numpy().tobytes())
        file = GGUFFile(path)
        assert file.infos()["w"].type == name
        assert torch.equal(file.raw("w"), raw)
        assert file.load("w").shape == (64, kind.block)
