"""What every file of tensors looks like to the rest of tokenmill, and how it is mapped into memory.

`TensorFile` is the one interface: HF folders, single safetensors files and GGUF files offer it, so a model loader never
asks which of them it holds. Mapped files are private and copy-on-write: a tensor that is a view of the file costs no
memory until somebody writes to it, the write stays in this process, and the file itself is opened read-only. (A
read-only mapping would instead kill the process at the first in-place operation.)
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from tokenmill.core.errors import FormatError, did_you_mean

# Linux refuses a private writable mapping larger than memory and swap unless it is told not to reserve for it; a GGUF
# larger than memory must still open. Python names the flag only from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

# Larger than any real config.json or index (a 100k-tensor index is about 10 MB).
_MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the file stores it. `shape` is row-major, `type` the format's own name ("BF16", "Q4_1")."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


class TensorFile(Protocol):
    """Named tensors on disk. `load` dequantises where needed and is a zero-copy view of the file where `dtype` fits."""

    path: Path

    def infos(self) -> Mapping[str, TensorInfo]: ...

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor: ...


def map_file(path: Path) -> mmap.mmap:
    """Map all of `path`, copy-on-write. FormatError if it is empty, missing or not a regular file."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise FormatError(path, "", "the file is empty")
            if sys.platform == "linux":
                flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                return mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror or error}") from error


def no_such_tensor(path: Path, name: str, known: Iterable[str]) -> NoReturn:
    """Refuse a tensor name that the file does not have."""
    raise FormatError(path, f"tensor {name!r}", f"no such tensor in this file{did_you_mean(name, known)}")


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` for `json`: a key given twice is an error, where the standard library keeps the last."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key!r:.200} occurs twice")
        table[key] = value
    return table


def parse_json_object(text: bytes, path: Path, where: str) -> dict[str, Any]:
    """A JSON object from bytes. FormatError for bad UTF-8, bad or too deeply nested JSON, duplicates, another type."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except UnicodeDecodeError as error:
        raise FormatError(path, f"{where}, byte {error.start}", "not valid UTF-8") from error
    except RecursionError as error:
        raise FormatError(path, where, "JSON is nested too deeply") from error
    except ValueError as error:
        raise FormatError(path, where, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(path, where, f"must be a JSON object, is a {type(value).__name__}")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of at most 64 MiB."""
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_JSON_BYTES + 1)
    except OSError as error:
        raise FormatError(path, "", f"cannot be read: {error.strerror or error}") from error
    if len(text) > _MAX_JSON_BYTES:
        raise FormatError(path, "", f"larger than {_MAX_JSON_BYTES} bytes, which no such file needs")
    return parse_json_object(text, path, "JSON")
