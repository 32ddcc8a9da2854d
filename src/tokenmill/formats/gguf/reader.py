"""GGUF files opened for reading: one file, or the parts ``name-00001-of-0000N.gguf`` as one.

The file is mapped, not read: tensors stored as torch stores them (F32, F16, BF16, integers) come back as views of the
mapping, `raw` gives any tensor's bytes in place, and only quantised tensors are decoded into memory of their own. A
split model is complete or refused: every part must exist, agree on the number of parts and repeat no tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from tokenmill.core.errors import FormatError, UsageError
from tokenmill.formats.gguf.decode import dequantize
from tokenmill.formats.gguf.parse import Head, Place, parse_head
from tokenmill.formats.tensors import TensorInfo, map_file, no_such_tensor

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    head: Head
    data: torch.Tensor  # uint8 [file size], a view of the mapped file


class GGUFFile:
    """A GGUF model: `metadata` (plain Python values) and tensors by name.

    `path` may be any part of a split model; the attribute names its first. `metadata_types` has the type of each value
    (for arrays, of the elements) as the writer's `Typed` takes it. FormatError, naming file and place, if anything
    about the file is wrong; all of it but the tensor values is checked here, so `load` does not fail later.
    """

    def __init__(self, path: Path) -> None:
        parts = _open_parts(Path(path))
        first = parts[0]
        self.path = first.path
        self.files = tuple(part.path for part in parts)
        self.version = first.head.version
        self.metadata: Mapping[str, Any] = MappingProxyType(first.head.metadata)
        self.metadata_types: Mapping[str, str] = MappingProxyType(first.head.types)
        self._places: dict[str, tuple[_Part, Place]] = {}
        for part in parts:
            for name, place in part.head.tensors.items():
                if name in self._places:
                    other = self._places[name][0].path.name
                    raise FormatError(part.path, f"tensor {name!r}", f"is also in {other}")
                self._places[name] = part, place
        _check_tensor_count(first, len(self._places))
        self._infos = MappingProxyType(
            {
                name: TensorInfo(name, place.type.name, place.shape, place.nbytes)
                for name, (_, place) in self._places.items()
            }
        )

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in file order."""
        return self._infos

    def raw(self, name: str) -> torch.Tensor:
        """The stored bytes of a tensor, uint8 [rows, bytes a row], as a view of the mapped file."""
        part, place = self._find(name)
        row = place.type.row_bytes(place.shape[-1] if place.shape else 1)
        return part.data[place.start : place.start + place.nbytes].view(math.prod(place.shape[:-1]), row)

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor in its row-major shape: as stored, or float32 if it is quantised, unless `dtype` says otherwise.

        A view of the mapped file where it is stored in that dtype; writing to it changes this process's copy only.
        """
        part, place = self._find(name)
        if place.type.dtype is None:
            if dtype is not None and not dtype.is_floating_point:
                raise UsageError(f"tensor {name!r} is {place.type.name}: it decodes to a floating type, not {dtype}")
            return dequantize(self.raw(name), place.type.name, dtype or torch.float32).view(place.shape)
        data = part.data[place.start : place.start + place.nbytes]
        if place.start % place.type.nbytes:  # an alignment smaller than the element: torch cannot view it in place
            data = data.clone()
        return data.view(place.type.dtype).view(place.shape).to(dtype or place.type.dtype)

    def _find(self, name: str) -> tuple[_Part, Place]:
        found = self._places.get(name)
        return found if found is not None else no_such_tensor(self.path, name, self._places)


def _open(path: Path) -> _Part:
    buffer = map_file(path)
    return _Part(path, parse_head(buffer, path), torch.frombuffer(buffer, dtype=torch.uint8))


def _open_parts(path: Path) -> list[_Part]:
    """Every part of the model that `path` is (a part of), the first first."""
    named = _PART.fullmatch(path.name)
    if named is None:
        part = _open(path)
        count = part.head.metadata.get("split.count", 1)
        if count not in (0, 1):
            pattern = f"NAME-00001-of-{count:05d}.gguf" if isinstance(count, int) else "NAME-00001-of-0000N.gguf"
            raise FormatError(path, "metadata key 'split.count'", f"one of {count} parts; name them {pattern}")
        return [part]
    count = int(named["count"])
    if not 1 <= int(named["number"]) <= count:
        raise FormatError(path, "file name", f"part {int(named['number'])} of {count} cannot be")
    names = [f"{named['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FormatError(path, "split model", f"parts missing beside it: {', '.join(missing[:3])}{more}")
    parts = [_open(path.parent / name) for name in names]
    for index, part in enumerate(parts):
        _check_part(part, index, count)
    return parts


def _check_part(part: _Part, index: int, count: int) -> None:
    if count == 1 and "split.count" not in part.head.metadata:
        return
    for key, expected in (("split.no", index), ("split.count", count)):
        found = part.head.metadata.get(key)
        if found != expected:
            raise FormatError(part.path, f"metadata key {key!r}", f"is {found}, but the file's name says {expected}")


def _check_tensor_count(first: _Part, found: int) -> None:
    promised = first.head.metadata.get("split.tensors.count", found)
    if promised != found:
        problem = f"promises {promised} tensors, but the parts have {found}"
        raise FormatError(first.path, "metadata key 'split.tensors.count'", problem)
