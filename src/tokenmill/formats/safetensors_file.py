"""One safetensors file: its header checked here, its tensors handed out by the safetensors library as mapped views.

The header is checked before the library sees the file, because the errors must name the file and the place, and
because JSON lets a name occur twice and the library keeps the last. Refused: a header length beyond the file or 100 MB,
bad JSON or UTF-8, duplicate names, unknown dtypes, shapes whose bytes are not the given range, ranges that overlap,
leave holes or reach past the end. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tokenmill.core.errors import FormatError, did_you_mean
from tokenmill.formats.tensors import TensorInfo, no_such_tensor, parse_json_object

# bits a value
_DTYPES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_INT = (1 << 63) - 1


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file; tensors are contiguous, on the CPU, and share no memory.

    OSError where the disk is full or the place is not to be written: the library has an error of its own for these.
    """
    path.touch()
    shareable = path.stat().st_mode  # the library makes its files private
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata is not None else None)
        path.chmod(shareable)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


class SafetensorsFile:
    """A .safetensors file as a `TensorFile`. FormatError, naming file and place, if anything about it is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._infos = read_header(self.path)
        try:
            self._file = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise FormatError(self.path, "", str(error)) from error

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in file order."""
        return self._infos

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor as stored, a view of the mapped file, or converted to `dtype`.

        Writing to the view changes this process's copy only.
        """
        if name not in self._infos:
            no_such_tensor(self.path, name, self._infos)
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, AttributeError) as error:
            problem = f"torch cannot hold {self._infos[name].type}: {error}"
            raise FormatError(self.path, f"tensor {name!r}", problem) from error
        return tensor.to(dtype or tensor.dtype)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, in file order, after every check that the header allows."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _MAX_HEADER_BYTES):
                limit = f"the file has {size} bytes and headers are at most {_MAX_HEADER_BYTES}"
                raise FormatError(
                    path, "header length", f"is {length}, but {limit}; truncated or not a safetensors file"
                )
            text = file.read(length)
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror or error}") from error
    header = parse_json_object(text, path, "header")
    _check_metadata(path, header.pop("__metadata__", {}))
    ranges = {name: _entry(path, name, entry) for name, entry in header.items()}
    return _check_ranges(path, ranges, size - 8 - length)


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(path, "header key '__metadata__'", "must map names to strings")


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    """One tensor's description and the byte its data starts at."""

    def fail(problem: str) -> NoReturn:
        raise FormatError(path, f"tensor {name!r}", problem)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fail("must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        fail(f"dtype {dtype!r:.100} is not known{did_you_mean(dtype, _DTYPES) if isinstance(dtype, str) else ''}")
    if not _are_sizes(shape) or len(shape) > 64:
        fail("shape must be a list of at most 64 integers from 0 to 2^63 - 1")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail("data_offsets must be two integers, the first not beyond the second")
    # zero-sized dimensions are left out of the product: they must not hide the overflow of the others
    if math.prod(size for size in shape if size) * _DTYPES[dtype] > _MAX_INT:
        fail(f"shape {shape} overflows")
    bits = math.prod(shape) * _DTYPES[dtype]
    start, end = offsets
    if bits != (end - start) * 8:
        fail(f"{dtype} of shape {shape} takes {bits / 8:g} bytes, but data_offsets give {end - start}")
    return TensorInfo(name, dtype, tuple(shape), end - start), start


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _MAX_INT for size in value)


def _check_ranges(path: Path, ranges: dict[str, tuple[TensorInfo, int]], size: int) -> dict[str, TensorInfo]:
    """Every byte of the data belongs to exactly one tensor, as the format demands."""
    infos: dict[str, TensorInfo] = {}
    end, before = 0, "the header"
    for name, (info, start) in sorted(ranges.items(), key=lambda item: (item[1][1], item[1][0].nbytes)):
        if start != end:
            problem = "overlaps" if start < end else "leaves a hole after"
            raise FormatError(path, f"tensor {name!r}", f"starts at byte {start} of the data and {problem} {before}")
        end, before = start + info.nbytes, f"tensor {name!r}, which ends at {start + info.nbytes}"
        infos[name] = info
    if end != size:
        raise FormatError(path, "data", f"has {size} bytes, but the header describes {end}; truncated or broken")
    return infos
