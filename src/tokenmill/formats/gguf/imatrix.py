"""Importance matrices in files, as llama-imatrix writes them: the squares of each matrix's inputs, summed a column.

Two formats, told apart by their first bytes: GGUF with tensors ``NAME.in_sum2`` [experts, columns] and ``NAME.counts``
[experts, 1] (and ``general.type`` imatrix), and the older binary one, little-endian: a count of entries; for each the
length and text of its name, calls, count of values, values; then calls and the name of the text, which may be missing.
Source: llama.cpp tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.core.errors import FormatError, MissingFileError
from tokenmill.core.paths import atomic_write
from tokenmill.formats.gguf.keys import Typed
from tokenmill.formats.gguf.reader import GGUFFile
from tokenmill.formats.gguf.writer import write_gguf

MAX_BYTES = 4 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass
class ImportanceMatrix:
    """Sums of squares of the inputs of matrices, by the matrices' GGUF names."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Float32 [E, columns]; E is 1 but for stacked experts."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Float32 [E]: how many inputs are in the sums."""
    datasets: list[str] = field(default_factory=list)
    chunk_size: int = 512
    """Tokens that were read at a time."""
    path: Path | None = None

    @property
    def chunks(self) -> int:
        """How many chunks were read."""
        return int(max((counts.max().item() for counts in self.counts.values()), default=0)) // self.chunk_size

    def of(self, name: str, experts: int | None = None) -> Tensor | None:
        """Mean squares of a matrix's inputs, [columns] or for stacked experts [experts, columns]; None if not there.

        An expert that was never asked has ones: all its columns count alike.
        """
        if name not in self.sums:
            return None
        sums, counts = self.sums[name], self.counts[name]
        if experts is not None and len(sums) == 1:
            sums = sums.view(experts, -1) if sums.numel() % experts == 0 else sums
        if len(counts) != len(sums):
            counts = counts[:1].expand(len(sums))
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), 1.0)
        return means[0] if experts is None else means

    def save(self, path: Path) -> None:
        """Write it as GGUF, or in the older format where the name ends in ``.dat``."""
        if path.suffix == ".dat":
            self._save_old(path)
            return
        tensors = []
        for name in sorted(self.sums):
            tensors.append((name + _SUMS, self.sums[name], "F32"))
            tensors.append((name + _COUNTS, self.counts[name].view(-1, 1), "F32"))
        metadata = {
            "general.type": "imatrix",
            "imatrix.datasets": Typed(self.datasets, "string"),
            "imatrix.chunk_count": Typed(self.chunks, "uint32"),
            "imatrix.chunk_size": Typed(self.chunk_size, "uint32"),
        }
        write_gguf(path, metadata, tensors)

    def _save_old(self, path: Path) -> None:
        names = sorted(name for name in self.sums if self.counts[name].max() > 0)
        with atomic_write(path) as file:
            file.write(struct.pack("<i", len(names)))
            for name in names:
                calls = -(-int(self.counts[name].max()) // self.chunk_size)
                means = self.of(name, len(self.sums[name]))
                assert means is not None
                values = (means * calls).reshape(-1)
                encoded = name.encode()
                file.write(struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", calls, len(values)))
                file.write(values.float().contiguous().numpy().tobytes())
            dataset = (self.datasets[-1] if self.datasets else "").encode()
            file.write(struct.pack("<ii", self.chunks, len(dataset)) + dataset)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read either format; FormatError, naming the place, for a file that is neither or is broken."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise FormatError(path, "", f"{size} bytes are too many for an importance matrix")
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    matrix = _read_gguf(path) if is_gguf else _read_old(path)
    if not matrix.sums:
        raise FormatError(path, "", "has no entries")
    for name, sums in matrix.sums.items():
        if not torch.isfinite(sums).all() or (sums < 0).any():
            raise FormatError(path, name, "has values that are no sums of squares")
    return matrix


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = GGUFFile(path)
    if file.metadata.get("general.type") != "imatrix":
        raise FormatError(path, "metadata key 'general.type'", "is not 'imatrix': this is no importance matrix")
    size = file.metadata.get("imatrix.chunk_size", 512)
    matrix = ImportanceMatrix(path=path, datasets=list(file.metadata.get("imatrix.datasets", [])))
    matrix.chunk_size = size if isinstance(size, int) and size > 0 else 512
    for name in file.infos():
        if not name.endswith(_SUMS):
            continue
        matrix_name = name.removesuffix(_SUMS)
        if matrix_name + _COUNTS not in file.infos():
            raise FormatError(path, name, f"has no {_COUNTS} beside it")
        sums, counts = file.load(name, torch.float32), file.load(matrix_name + _COUNTS, torch.float32).reshape(-1)
        sums = sums.view(-1, sums.shape[-1])
        if len(counts) not in (1, len(sums)):
            raise FormatError(path, name, f"has {len(sums)} rows, but {len(counts)} counts")
        matrix.sums[matrix_name], matrix.counts[matrix_name] = sums.clone(), counts.clone()
    return matrix


class _Bytes:
    """Reads numbers off the front of a file's bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise FormatError(self.path, f"byte {self.at}", "is cut off, or is no importance matrix")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])


def _read_old(path: Path) -> ImportanceMatrix:
    data = _Bytes(path)
    matrix = ImportanceMatrix(path=path, chunk_size=1)
    for _ in range(data.number()):
        try:
            name = data.take(data.number()).decode()
        except UnicodeDecodeError as error:
            raise FormatError(path, f"byte {data.at}", "is no name, so this is no importance matrix") from error
        calls, values = data.number(), data.number()
        sums = torch.frombuffer(bytearray(data.take(4 * values)), dtype=torch.float32) if values else torch.zeros(0)
        if not values or name in matrix.sums:
            raise FormatError(path, name, "has no values" if not values else "stands twice")
        matrix.sums[name] = sums.clone().view(1, -1)
        matrix.counts[name] = torch.tensor([float(max(calls, 1))])
    if data.at < len(data.data):
        data.number()
        matrix.datasets = [data.take(data.number()).decode("utf-8", "replace")]
    return matrix


def check_fits(matrix: ImportanceMatrix, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """FormatError unless each entry of this model's has as many columns as its matrix, and some entry is of it."""
    where = matrix.path or Path("importance matrix")
    known = [name for name in matrix.sums if name in shapes]
    if not known:
        raise FormatError(
            where, "", f"is of another model: it has {next(iter(matrix.sums))}, the model has no such tensor"
        )
    for name in known:
        shape = shapes[name]
        experts = shape[0] if len(shape) == 3 else 1
        if matrix.sums[name].numel() not in (shape[-1], experts * shape[-1]):
            found = f"has {matrix.sums[name].numel()} columns"
            raise FormatError(where, name, f"{found}, the model's matrix {list(shape)}: it is of another model")
