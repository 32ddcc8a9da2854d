"""Write GGUF version 3: metadata, tensor infos, aligned data; little-endian, as llama.cpp and the gguf package read it.

What a tensor will be (its shape, its type) is known before its data is asked for, so the head is written first and
memory holds one tensor. A model may be cut into parts, named and marked as llama.cpp names and marks them; all parts
appear under their names together, when the last one is complete.
Refused: what `encode` refuses, names that ggml cannot hold (64 bytes or more), duplicates, more than four dimensions,
metadata that has no GGUF type. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from tokenmill.core.errors import FormatError, UsageError
from tokenmill.core.paths import atomic_write
from tokenmill.formats.gguf.encode import quantize
from tokenmill.formats.gguf.keys import Typed, encode_metadata, name_bytes
from tokenmill.formats.gguf.parse import DEFAULT_ALIGNMENT, MAX_DIMS
from tokenmill.formats.gguf.types import type_named

__all__ = ["Planned", "Typed", "write_gguf", "write_planned"]
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME is 64 with the closing zero
_MAX_PARTS = 99999


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written: row-major shape, GGUF type, and how to get its bytes (uint8, any shape)."""

    name: str
    shape: tuple[int, ...]
    type: str
    data: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        kind = type_named(self.type)
        row = self.shape[-1] if self.shape else 1
        if row % kind.block:
            problem = f"rows of {row} values do not divide into {self.type}'s blocks of {kind.block}; use F16 or BF16"
            raise UsageError(f"{problem} for this tensor")
        return kind.row_bytes(row) * math.prod(self.shape[:-1])


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, torch.Tensor, str]]) -> None:
    """Write a GGUF file from metadata and (name, tensor, type) triples; the types are those of `encode.quantize`.

    FormatError names the key or tensor that cannot be written.
    """
    planned = [Planned(name, tuple(data.shape), type, partial(quantize, data, type)) for name, data, type in tensors]
    write_planned(path, metadata, planned)


def write_planned(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    *,
    part_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a model whose tensors are made one by one; gives the files.

    Args:
        part_bytes: most bytes of tensors in a file; where there are more, the model becomes parts
            ``stem-00001-of-0000N.gguf``. A tensor is never cut, so a part may be larger by that one.
        progress: called with (bytes of tensors written, bytes in all).
    """
    path = Path(path)
    alignment = _alignment(path, metadata)
    sizes = _sizes(path, tensors, alignment)
    parts = _parts(tensors, sizes, part_bytes)
    done, total = 0, sum(sizes.values())
    with ExitStack() as files:
        names = _part_names(path, len(parts))
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            keys = dict(metadata) if number == 0 else {}
            if len(parts) > 1:
                keys |= {"split.no": Typed(number, "uint16"), "split.count": Typed(len(parts), "uint16")}
                keys["split.tensors.count"] = Typed(len(tensors), "int32")
                if number and "general.alignment" in metadata:
                    keys["general.alignment"] = metadata["general.alignment"]
            head = _head(path, keys, part, sizes, alignment)
            file = files.enter_context(atomic_write(name))
            file.write(head)
            for tensor in part:
                _write_tensor(path, file, tensor, sizes[tensor.name])
                done += sizes[tensor.name]
                if progress is not None:
                    progress(done, total)
    return names


def _sizes(path: Path, tensors: Sequence[Planned], alignment: int) -> dict[str, int]:
    """Aligned bytes of each tensor; FormatError for what cannot be a tensor of a file."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        where = f"tensor {tensor.name!r}"
        if tensor.name in sizes:
            raise FormatError(path, where, "is given twice")
        if len(tensor.shape) > MAX_DIMS:
            raise FormatError(path, where, f"has {len(tensor.shape)} dimensions; GGUF holds at most {MAX_DIMS}")
        try:
            sizes[tensor.name] = tensor.nbytes + -tensor.nbytes % alignment
        except UsageError as error:
            raise FormatError(path, where, str(error)) from error
    return sizes


def _parts(tensors: Sequence[Planned], sizes: Mapping[str, int], limit: int | None) -> list[list[Planned]]:
    parts: list[list[Planned]] = [[]]
    used = 0
    for tensor in tensors:
        if limit is not None and parts[-1] and used + sizes[tensor.name] > limit:
            parts.append([])
            used = 0
        parts[-1].append(tensor)
        used += sizes[tensor.name]
    return parts


def _part_names(path: Path, count: int) -> list[Path]:
    if count > _MAX_PARTS:
        raise UsageError(f"{count} parts are more than a file's name can count; give a greater size of a part")
    if count == 1:
        return [path]
    stem = path.name.removesuffix(".gguf")
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def _head(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[Planned], sizes: Mapping[str, int], alignment: int
) -> bytes:
    """Everything before the data, padded to where it begins."""
    infos, offset = [], 0
    for tensor in tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        place = struct.pack("<IQ", type_named(tensor.type).id, offset)
        infos.append(name_bytes(path, tensor.name, _MAX_NAME_BYTES) + dims + place)
        offset += sizes[tensor.name]
    counts = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata))
    head = counts + encode_metadata(path, metadata) + b"".join(infos)
    return head + bytes(-len(head) % alignment)


def _write_tensor(path: Path, file: IO[bytes], tensor: Planned, size: int) -> None:
    try:
        data = tensor.data().reshape(-1).view(torch.uint8)
    except UsageError as error:
        raise FormatError(path, f"tensor {tensor.name!r}", str(error)) from error
    assert data.numel() == tensor.nbytes, f"{tensor.name}: {data.numel()} bytes for a tensor of {tensor.nbytes}"
    file.write(data.contiguous().numpy().data)
    file.write(bytes(size - tensor.nbytes))


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    given = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    value = given.value if isinstance(given, Typed) else given
    if isinstance(given, Typed) and given.type != "uint32":
        raise FormatError(path, "metadata key 'general.alignment'", f"must be a uint32, not {given.type}")
    if not isinstance(value, int) or not 8 <= value <= 1 << 20 or value & (value - 1):
        problem = f"must be a power of two from 8 to {1 << 20}, not {value!r}"
        raise FormatError(path, "metadata key 'general.alignment'", problem)
    return value
