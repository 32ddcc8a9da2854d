"""Write GGUF version 3: metadata, tensor infos, aligned data; little-endian, as llama.cpp and the gguf package read it.

Tensors may come from a generator: each is quantised and spooled to an unnamed file beside the target as it arrives, so
memory holds one tensor; the infos, which come first in the file, are written when all are known, and the data is
copied behind them. The file appears under its name only when it is complete.
Refused: what `encode` refuses, names that ggml cannot hold (64 bytes or more), duplicates, more than four dimensions,
metadata that has no GGUF type. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from tokenmill.core.errors import FormatError, UsageError, did_you_mean
from tokenmill.core.paths import atomic_write
from tokenmill.formats.gguf.encode import quantize
from tokenmill.formats.gguf.parse import ARRAY, DEFAULT_ALIGNMENT, MAX_DIMS, SCALARS, STRING
from tokenmill.formats.gguf.types import type_named

_CODES = {name: (number, code) for number, (name, code, _) in SCALARS.items()} | {"string": (STRING, "")}
_RANGES = {
    name: (-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1) if name.startswith("int") else (0, (1 << 8 * width) - 1)
    for name, _, width in SCALARS.values()
    if "int" in name
}
_MAX_FLOAT32 = 3.4028234663852886e38
_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME is 64 with the closing zero


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value with its GGUF type: ``Typed(3, "uint16")``; for a list, the type of its elements."""

    value: Any
    type: str


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, torch.Tensor, str]]) -> None:
    """Write a GGUF file from metadata and (name, tensor, type) triples; the types are those of `encode.quantize`.

    Metadata types: bool, str; int as uint32, else int32, uint64, int64, whichever first holds it; float as float32; a
    list as an array of one type (ints as int32 if they fit, as llama.cpp reads token types). `Typed` overrides.
    FormatError names the key or tensor that cannot be written.
    """
    path = Path(path)
    keys = b"".join(_string(path, key, _MAX_KEY_BYTES) + _metadata_value(path, key, metadata[key]) for key in metadata)
    alignment = _alignment(path, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        infos = _spool(path, tensors, alignment, spool)
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata)) + keys + b"".join(infos)
        spool.seek(0)
        with atomic_write(path) as file:
            file.write(head + bytes(-len(head) % alignment))
            shutil.copyfileobj(spool, file, 16 * 1024 * 1024)


def _spool(
    path: Path, tensors: Iterable[tuple[str, torch.Tensor, str]], alignment: int, spool: IO[bytes]
) -> list[bytes]:
    """Write each tensor's aligned data; give back the tensor infos."""
    infos: list[bytes] = []
    seen: set[str] = set()
    offset = 0
    for name, tensor, type in tensors:
        where = f"tensor {name!r}"
        if name in seen:
            raise FormatError(path, where, "is given twice")
        seen.add(name)
        if tensor.ndim > MAX_DIMS:
            raise FormatError(path, where, f"has {tensor.ndim} dimensions; GGUF holds at most {MAX_DIMS}")
        try:
            data = quantize(tensor, type)
        except UsageError as error:
            raise FormatError(path, where, str(error)) from error
        dims = struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        number = type_named(type).id
        infos.append(_string(path, name, _MAX_NAME_BYTES) + dims + struct.pack("<IQ", number, offset))
        spool.write(data.view(-1).numpy().data)
        padding = -data.numel() % alignment
        spool.write(bytes(padding))
        offset += data.numel() + padding
    return infos


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    given = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    value = given.value if isinstance(given, Typed) else given
    if isinstance(given, Typed) and given.type != "uint32":
        raise FormatError(path, "metadata key 'general.alignment'", f"must be a uint32, not {given.type}")
    if not isinstance(value, int) or not 8 <= value <= 1 << 20 or value & (value - 1):
        problem = f"must be a power of two from 8 to {1 << 20}, not {value!r}"
        raise FormatError(path, "metadata key 'general.alignment'", problem)
    return value


def _string(path: Path, text: str, limit: int) -> bytes:
    """A name with its length before it."""
    where = f"name {text!r}"
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(path, where, "cannot be written as UTF-8") from error
    if not 1 <= len(data) <= limit:
        raise FormatError(path, where, f"is {len(data)} bytes long; 1 to {limit} are possible")
    return struct.pack("<Q", len(data)) + data


def _metadata_value(path: Path, key: str, given: Any) -> bytes:
    """The type number and bytes of one value."""
    value, type = (given.value, given.type) if isinstance(given, Typed) else (given, None)
    try:
        if isinstance(value, list | tuple):
            return struct.pack("<I", ARRAY) + _array(value, type)
        type = type or _infer(value)
        _check_type(type)
        return struct.pack("<I", _CODES[type][0]) + _leaves([value], type)
    except UsageError as error:
        raise FormatError(path, f"metadata key {key!r}", str(error)) from error


def _array(values: list[Any] | tuple[Any, ...], type: str | None) -> bytes:
    if any(isinstance(value, list | tuple) for value in values):
        if not all(isinstance(value, list | tuple) for value in values):
            raise UsageError("a list must not mix lists with other values")
        return struct.pack("<IQ", ARRAY, len(values)) + b"".join(_array(value, type) for value in values)
    type = type or _infer_elements(values)
    _check_type(type)
    return struct.pack("<IQ", _CODES[type][0], len(values)) + _leaves(values, type)


def _check_type(type: str) -> None:
    if type not in _CODES:
        raise UsageError(f"{type!r} is not a metadata type{did_you_mean(type, _CODES)}; known: {', '.join(_CODES)}")


def _leaves(values: list[Any] | tuple[Any, ...], type: str) -> bytes:
    """Scalars or strings, one after the other, each checked against `type`."""
    for value in values:
        _check_value(value, type)
    if type == "string":
        encoded = [text.encode("utf-8") for text in values]
        return b"".join(struct.pack("<Q", len(data)) + data for data in encoded)
    return struct.pack(f"<{len(values)}{_CODES[type][1]}", *values)


def _check_value(value: Any, type: str) -> None:
    if type == "string":
        fits = isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
    elif type == "bool":
        fits = isinstance(value, bool)
    elif type in _RANGES:
        low, high = _RANGES[type]
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    else:
        # infinities and NaN are values; a finite number must not become one
        fits = isinstance(value, float | int) and not isinstance(value, bool)
        fits = fits and (type == "float64" or not math.isfinite(value) or abs(value) <= _MAX_FLOAT32)
    if not fits:
        raise UsageError(f"{value!r:.200} cannot be written as {type}")


def _infer(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _first_that_fits([value], ("uint32", "int32", "uint64", "int64"))
    if isinstance(value, float):
        return "float32"
    if isinstance(value, str):
        return "string"
    raise UsageError(f"a value of type {type(value).__name__} has no GGUF type; give bool, int, float, str or a list")


def _infer_elements(values: list[Any] | tuple[Any, ...]) -> str:
    if not values:
        raise UsageError('an empty list has no element type; give one: Typed([], "string")')
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        raise UsageError(f"a list must hold one type, not {', '.join(sorted(kind.__name__ for kind in kinds))}")
    if kinds == {int}:
        return _first_that_fits(values, ("int32", "uint32", "int64", "uint64"))
    return _infer(values[0])


def _first_that_fits(values: list[Any] | tuple[Any, ...], types: tuple[str, ...]) -> str:
    low, high = min(values), max(values)
    for type in types:
        if _RANGES[type][0] <= low and high <= _RANGES[type][1]:
            return type
    raise UsageError(f"the integers from {low} to {high} fit no GGUF integer type")
