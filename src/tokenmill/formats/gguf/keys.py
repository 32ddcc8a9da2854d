"""GGUF metadata as bytes: Python values and their types.

Types: bool, str; int as uint32, else int32, uint64, int64, whichever first holds it; float as float32; a list as an
array of one type (ints as int32 if they fit, as llama.cpp reads token types). `Typed` overrides. Refused: what has no
GGUF type. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import FormatError, UsageError, did_you_mean
from tokenmill.formats.gguf.parse import ARRAY, SCALARS, STRING

_CODES = {name: (number, code) for number, (name, code, _) in SCALARS.items()} | {"string": (STRING, "")}
_RANGES = {
    name: (-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1) if name.startswith("int") else (0, (1 << 8 * width) - 1)
    for name, _, width in SCALARS.values()
    if "int" in name
}
_MAX_FLOAT32 = 3.4028234663852886e38
_MAX_KEY_BYTES = 65535


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value with its GGUF type: ``Typed(3, "uint16")``; for a list, the type of its elements."""

    value: Any
    type: str


def encode_metadata(path: Path, metadata: Mapping[str, Any]) -> bytes:
    """All keys with their values; FormatError names the key that cannot be written."""
    return b"".join(
        name_bytes(path, key, _MAX_KEY_BYTES) + _metadata_value(path, key, metadata[key]) for key in metadata
    )


def name_bytes(path: Path, text: str, limit: int) -> bytes:
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
