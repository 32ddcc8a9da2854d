"""The head of a GGUF file: metadata and where each tensor lies, parsed from a mapped file with nothing trusted.

Versions 2 and 3, little-endian. Every count is compared with the bytes that are left before anything is read or
allocated (so what a hostile file can make us allocate is bounded by a small multiple of its own size), in Python's
unbounded integers. Refused: wrong magic, version 1, big-endian files, duplicate keys or tensors, names that are not
UTF-8, booleans other than 0 and 1, arrays nested deeper than four, more than four dimensions, rows that do not fit the
type's block, tensors that are misaligned, overlap or reach past the end of the file.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tokenmill.core.errors import FormatError
from tokenmill.formats.gguf.types import BY_ID, REFUSED, GGMLType

# number in files -> (name, struct code, bytes); 8 is a string and 9 an array
SCALARS = {
    0: ("uint8", "B", 1),
    1: ("int8", "b", 1),
    2: ("uint16", "H", 2),
    3: ("int16", "h", 2),
    4: ("uint32", "I", 4),
    5: ("int32", "i", 4),
    6: ("float32", "f", 4),
    7: ("bool", "B", 1),
    10: ("uint64", "Q", 8),
    11: ("int64", "q", 8),
    12: ("float64", "d", 8),
}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
_MAX_DEPTH = 4
# Four times the longest vocabulary array known; a list of so many takes 128 MiB.
_MAX_ARRAY = 1 << 24
_MAX_INT = (1 << 63) - 1

_OLD_MAGICS = {b"lmgg": "GGML", b"ggml": "GGML", b"tjgg": "GGJT", b"fmgg": "GGMF", b"algg": "GGLA"}


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor: its type, row-major shape, and the bytes of the file that it takes."""

    type: GGMLType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """Everything before the tensor data. `types` names the (leaf) type of each metadata value: "uint32", "string"."""

    version: int
    metadata: dict[str, Any]
    types: dict[str, str]
    tensors: dict[str, Place]


class Cursor:
    """Reads little-endian values from a mapped file and refuses to read past its end."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer, self.path, self.pos, self.size = buffer, path, 0, len(buffer)
        self.where = "header"

    def fail(self, problem: str) -> NoReturn:
        raise FormatError(self.path, f"{self.where}, byte {self.pos}", problem)

    def need(self, count: int, each: int, what: str) -> None:
        """Refuse unless `count` things of at least `each` bytes can still follow."""
        if count * each > self.size - self.pos:
            left = self.size - self.pos
            self.fail(
                f"{what} needs at least {count * each} bytes, but {left} are left; the file is truncated or broken"
            )

    def values(self, code: str, width: int, count: int) -> tuple[Any, ...]:
        self.need(count, width, f"{count} value(s) of {width} byte(s)")
        found = struct.unpack_from(f"<{count}{code}", self.buffer, self.pos)
        self.pos += count * width
        return found

    def u32(self) -> int:
        return self.values("I", 4, 1)[0]

    def u64(self) -> int:
        return self.values("Q", 8, 1)[0]

    def strings(self, count: int) -> list[str]:
        """`count` strings. The hot loop of opening a file (100,000 vocabulary entries and merges), hence unrolled."""
        self.need(count, 8, f"{count} string(s)")
        unpack, buffer, size, pos = struct.Struct("<Q").unpack_from, self.buffer, self.size, self.pos
        found: list[str] = []
        try:
            for _ in range(count):
                stop = pos + 8 + unpack(buffer, pos)[0]
                if stop > size:
                    self.pos = pos
                    self.fail(
                        f"string {len(found)} of {count} has {stop - pos - 8} bytes, but {size - pos - 8} are left"
                    )
                found.append(buffer[pos + 8 : stop].decode("utf-8"))
                pos = stop
        except (struct.error, UnicodeDecodeError) as error:
            self.pos = pos
            problem = (
                "is not valid UTF-8" if isinstance(error, UnicodeDecodeError) else "is cut off by the end of the file"
            )
            self.fail(f"string {len(found)} of {count} {problem}")
        self.pos = pos
        return found

    def name(self, what: str) -> str:
        found = self.strings(1)[0]
        if not found:
            self.fail(f"{what} has an empty name")
        return found


def parse_head(buffer: mmap.mmap, path: Path) -> Head:
    """Parse and check everything before the tensor data."""
    cursor = Cursor(buffer, path)
    version = _version(cursor)
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    # the least a tensor (length, one-byte name, dimensions, type, offset) and a key (length, name, type, value) take
    cursor.need(num_tensors, 8 + 1 + 4 + 4 + 8, f"a tensor count of {num_tensors}")
    cursor.need(num_keys, 8 + 1 + 4 + 1, f"a metadata count of {num_keys}")
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    for index in range(num_keys):
        cursor.where = f"metadata entry {index}"
        key = cursor.name("the entry")
        cursor.where = f"metadata key {key!r}"
        if key in metadata:
            cursor.fail("the key occurs twice")
        metadata[key], types[key] = _value(cursor, cursor.u32(), 0)
    alignment = _alignment(cursor, metadata, types)
    found: dict[str, tuple[GGMLType, tuple[int, ...], int]] = {}
    for index in range(num_tensors):
        cursor.where = f"tensor info {index}"
        name = cursor.name("the tensor")
        cursor.where = f"tensor {name!r}"
        if name in found:
            cursor.fail("the tensor occurs twice")
        found[name] = _tensor_info(cursor, alignment)
    return Head(version, metadata, types, _place(cursor, found, alignment))


def _version(cursor: Cursor) -> int:
    cursor.need(1, 24, "a GGUF header")
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        if magic in _OLD_MAGICS:
            cursor.fail(f"a {_OLD_MAGICS[magic]} file from before August 2023; convert the original weights to GGUF")
        cursor.fail(f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    cursor.pos = 4
    version = cursor.u32()
    if version & 0xFFFF == 0:
        cursor.fail("a big-endian GGUF file; convert it with gguf-convert-endian from the gguf package")
    if version not in (2, 3):
        cursor.fail(f"GGUF version {version}; versions 2 and 3 are read")
    return version


def _value(cursor: Cursor, kind: int, depth: int) -> tuple[Any, str]:
    """One metadata value and the name of its (for arrays, its leaves') type."""
    if kind == STRING:
        return cursor.strings(1)[0], "string"
    if kind == ARRAY:
        return _array(cursor, depth + 1)
    if kind not in SCALARS:
        cursor.fail(f"value type {kind} does not exist; 0 to 12 do")
    name, code, width = SCALARS[kind]
    value = cursor.values(code, width, 1)[0]
    return (_booleans(cursor, (value,))[0] if name == "bool" else value), name


def _array(cursor: Cursor, depth: int) -> tuple[list[Any], str]:
    if depth > _MAX_DEPTH:
        cursor.fail(f"arrays are nested deeper than {_MAX_DEPTH}")
    kind, count = cursor.u32(), cursor.u64()
    if count > _MAX_ARRAY:
        cursor.fail(f"an array of {count} elements; at most {_MAX_ARRAY} are read")
    if kind == STRING:
        return cursor.strings(count), "string"
    if kind == ARRAY:
        cursor.need(count, 12, f"an array of {count} arrays")
        inner = [_array(cursor, depth + 1) for _ in range(count)]
        # "array" when the leaves differ or there are none: such a value cannot be written back unchanged
        leaves = {leaf for _, leaf in inner}
        return [value for value, _ in inner], leaves.pop() if len(leaves) == 1 else "array"
    if kind not in SCALARS:
        cursor.fail(f"array element type {kind} does not exist; 0 to 12 do")
    name, code, width = SCALARS[kind]
    values = cursor.values(code, width, count)
    return (_booleans(cursor, values) if name == "bool" else list(values)), name


def _booleans(cursor: Cursor, values: tuple[int, ...]) -> list[bool]:
    if any(value > 1 for value in values):
        cursor.fail("a boolean is neither 0 nor 1")
    return [value == 1 for value in values]


def _alignment(cursor: Cursor, metadata: dict[str, Any], types: dict[str, str]) -> int:
    cursor.where = "metadata key 'general.alignment'"
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", "uint32") != "uint32" or not isinstance(alignment, int):
        cursor.fail(f"must be one uint32, is {types['general.alignment']}")
    if alignment == 0 or alignment & (alignment - 1):
        cursor.fail(f"must be a power of two, is {alignment}")
    return alignment


def _tensor_info(cursor: Cursor, alignment: int) -> tuple[GGMLType, tuple[int, ...], int]:
    """Type, row-major shape and offset into the data of one tensor. The file lists dimensions fastest first."""
    num_dims = cursor.u32()
    if num_dims > MAX_DIMS:
        cursor.fail(f"{num_dims} dimensions; at most {MAX_DIMS} are possible")
    shape = tuple(reversed(cursor.values("Q", 8, num_dims)))
    number, offset = cursor.u32(), cursor.u64()
    if number in REFUSED:
        cursor.fail(f"tensor type {REFUSED[number][0]} {REFUSED[number][1]}")
    if number not in BY_ID:
        cursor.fail(f"tensor type {number} is not known")
    kind = BY_ID[number]
    # zero-sized dimensions are left out of the product: they must not hide the overflow of the others
    if math.prod(size for size in shape if size) > _MAX_INT:
        cursor.fail(f"shape {list(shape)} overflows")
    row = shape[-1] if shape else 1
    if row % kind.block:
        cursor.fail(f"rows of {row} values do not divide into {kind.name}'s blocks of {kind.block}")
    if offset % alignment:
        cursor.fail(f"offset {offset} is not a multiple of the alignment {alignment}")
    return kind, shape, offset


def _place(cursor: Cursor, found: dict[str, tuple[GGMLType, tuple[int, ...], int]], alignment: int) -> dict[str, Place]:
    """Where each tensor lies in the file: inside it, and not over another."""
    data = -(-cursor.pos // alignment) * alignment
    places: dict[str, Place] = {}
    for name, (kind, shape, offset) in found.items():
        nbytes = kind.row_bytes(math.prod(shape))
        start = data + offset
        if start + nbytes > cursor.size:
            cursor.where = f"tensor {name!r}"
            cursor.pos = start
            cursor.fail(f"takes {nbytes} bytes, but the file ends at byte {cursor.size}; it is truncated or broken")
        places[name] = Place(kind, shape, start, nbytes)
    end, before = 0, ""
    for name, place in sorted(places.items(), key=lambda item: item[1].start):
        if place.nbytes and place.start < end:
            cursor.where, cursor.pos = f"tensor {name!r}", place.start
            cursor.fail(f"overlaps tensor {before!r}, which ends at byte {end}")
        if place.nbytes:
            end, before = place.start + place.nbytes, name
    return places
