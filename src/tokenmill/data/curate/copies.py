"""What all deduplication of documents has in common: keys are observed, equal keys make groups of copies, one copy of
each group stays.

Which copy stays is a rule, not an accident: the one with the highest ``score`` if a column is named, then the longest
(or, with ``keep: first``, the one that comes first in the input), then the one whose text has the smaller hash, then
the one whose id has. With ``keep: longest`` it depends on neither the order of files nor how they were cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenmill.config.parts import Part
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.components import Components
from tokenmill.data.curate.groups import Groups
from tokenmill.data.curate.step import Document, Tally

Keep = Literal["longest", "first"]

RANK = np.dtype([("score", "<f8"), ("size", "<i8"), ("text", "<u8"), ("id", "<u8")])
"""What decides between copies."""


class CopyOptions(Part):
    """Which of several copies stays."""

    keep: Keep = "longest"
    """The longest, or the one that comes first in the input."""
    score: str | None = None
    """A column with a number, such as a classifier's: the highest stays, ``keep`` decides between equals."""


@dataclass(frozen=True)
class Observed:
    """What one shard gave: `keys` uint64 [K, n], `ranks` of dtype RANK [n]; 0 is no key."""

    keys: np.ndarray
    ranks: np.ndarray

    def to_bytes(self) -> bytes:
        """For the pipeline to keep."""
        head = np.array(self.keys.shape, np.int64)
        return head.tobytes() + np.ascontiguousarray(self.keys, np.uint64).tobytes() + self.ranks.tobytes()

    @classmethod
    def open(cls, path: Path) -> Observed:
        """Map what `to_bytes` gave."""
        num_keys, count = map(int, np.fromfile(path, np.int64, 2))
        if count == 0:
            return cls(np.zeros((num_keys, 0), np.uint64), np.zeros(0, RANK))
        keys = np.memmap(path, np.uint64, "r", offset=16, shape=(num_keys, count))
        return cls(keys, np.memmap(path, RANK, "r", offset=16 + keys.nbytes, shape=(count,)))


def hash64(text: str) -> int:
    """xxh3 of a text in UTF-8, the same on every machine."""
    return int(_xxhash().xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))


def hashes128(texts: Sequence[str]) -> np.ndarray:
    """xxh3 of 128 bits of each text, uint64 [2, n]: no two different texts are ever expected to have the same."""
    digest = _xxhash().xxh3_128_digest
    joined = b"".join([digest(text.encode("utf-8", "surrogatepass")) for text in texts])
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2).T


def _xxhash() -> Any:
    try:
        import xxhash
    except ImportError as error:
        raise ConfigError('deduplication, mixing and splitting need: pip install "tokenmill[data]"') from error
    return xxhash


def ranks_of(documents: Sequence[Document], score: str | None) -> np.ndarray:
    """What decides between copies, of dtype RANK. ConfigError if a document has no number in column `score`."""
    ranks = np.zeros(len(documents), RANK)
    ranks["size"] = [len(document.text) for document in documents]
    ranks["text"] = [hash64(document.text) for document in documents]
    ranks["id"] = [hash64(document.id) for document in documents]
    if score is not None:
        ranks["score"] = [_number(document, score) for document in documents]
    return ranks


def _number(document: Document, column: str) -> float:
    value = document.meta.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(f"score: {column}: document {document.id} has {value!r} there, not a number to choose by")
    return float(value)


def join_equal(
    observed: Sequence[Path], components: Components, folder: Path, rows: int, *, wide: bool = False
) -> None:
    """Join all documents that have one of their `rows` keys in common. `wide`: one key, its halves in two rows."""
    count = len(components.parent)
    with Groups(folder / "groups", count * rows, 3 if wide else 2) as groups:
        for start, shard in numbered(observed):
            numbers = np.arange(start, start + len(shard.ranks))
            for row in range(rows):
                used = np.flatnonzero(shard.keys[row])
                halves = (shard.keys[row][used], shard.keys[row + 1][used]) if wide else (shard.keys[row][used],)
                groups.add(*halves, numbers[used])
        for left, right in groups.alike():
            components.join(left, right)


def numbered(observed: Sequence[Path]) -> Iterator[tuple[int, Observed]]:
    """Every shard with the number of its first document. One is open at a time: what is mapped counts as memory."""
    start = 0
    for path in observed:
        shard = Observed.open(path)
        yield start, shard
        start += len(shard.ranks)


def starts_of(observed: Sequence[Path]) -> np.ndarray:
    """The number of each shard's first document, and behind the last shard that of all documents; int64."""
    counts = [int(np.fromfile(path, np.int64, 2)[1]) for path in observed]
    return np.cumsum([0, *counts], dtype=np.int64)


def best_copies(observed: Sequence[Path], roots: np.ndarray, keep: Keep, folder: Path) -> np.ndarray:
    """Which documents stay, bool [N], in a file in `folder`: one of each group of equal roots."""
    count = len(roots)
    if not count:
        return np.zeros(0, np.bool_)
    stays = np.memmap(folder / "stays.bin", np.bool_, "w+", shape=(count,))
    best = np.memmap(folder / "best.tmp", np.int64, "w+", shape=(count,))  # of each root, so far
    ranks = np.memmap(folder / "ranks.tmp", RANK, "w+", shape=(count,))
    several = np.memmap(folder / "several.tmp", np.bool_, "w+", shape=(count,))  # roots of more than one document
    for start, shard in numbered(observed):
        numbers = np.arange(start, start + len(shard.ranks))
        mine = np.asarray(roots[start : start + len(numbers)])
        several[mine[mine != numbers]] = True
    for start, shard in numbered(observed):
        numbers = np.arange(start, start + len(shard.ranks))
        mine = np.asarray(roots[start : start + len(numbers)])
        grouped = several[mine]
        stays[numbers[~grouped]] = True
        numbers, mine, mine_ranks = numbers[grouped], mine[grouped], shard.ranks[grouped]
        met = np.unique(mine[mine < start])  # a root is its group's first document: it has been seen, so has a best
        numbers = np.concatenate([best[met], numbers])
        mine = np.concatenate([met, mine])
        mine_ranks = np.concatenate([ranks[met], mine_ranks])
        order = _ordered(mine, mine_ranks, numbers, keep)
        first = order[np.flatnonzero(np.diff(mine[order], prepend=-1))]
        best[mine[first]], ranks[mine[first]] = numbers[first], mine_ranks[first]
    for start in range(0, count, 1 << 20):
        heads = start + np.flatnonzero(several[start : start + (1 << 20)])
        stays[best[heads]] = True
    for name in ("best.tmp", "ranks.tmp", "several.tmp"):
        (folder / name).unlink()
    return stays


def _ordered(roots: np.ndarray, ranks: np.ndarray, numbers: np.ndarray, keep: Keep) -> np.ndarray:
    """Places sorted by root, in each group the best first."""
    if keep == "first":
        return np.lexsort((numbers, -ranks["score"], roots))
    return np.lexsort((numbers, ranks["id"], ranks["text"], -ranks["size"], -ranks["score"], roots))


class DropCopies(ABC):
    """A global step that keeps one of all copies. `reason` is what the others are counted as."""

    reason = ""

    def __init__(self, options: CopyOptions) -> None:
        self.keep, self.score = options.keep, options.score

    @abstractmethod
    def keys(self, documents: Sequence[Document]) -> np.ndarray:
        """Of every document, uint64 [K, n]; 0 is no key."""

    @abstractmethod
    def join(self, observed: Sequence[Path], components: Components, folder: Path) -> None:
        """Join the copies; `observed` are files of `Observed`."""

    def observe(self, documents: list[Document]) -> bytes:
        """Keys and ranks of a shard."""
        return Observed(self.keys(documents), ranks_of(documents, self.score)).to_bytes()

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """``stays.bin``: a byte a document; ``starts.npy``: where each shard begins in it."""
        starts = starts_of(observed)
        components = Components(int(starts[-1]), folder / "parents.tmp")
        self.join(observed, components, folder)
        best_copies(observed, components.flatten(), self.keep, folder)
        (folder / "parents.tmp").unlink(missing_ok=True)
        np.save(folder / "starts.npy", starts)

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Drop what does not stay."""
        start, end = np.load(folder / "starts.npy", allow_pickle=False)[shard : shard + 2].tolist()
        assert end - start == len(documents), "the documents are not those that were observed"
        if not documents:
            return []
        stays = np.fromfile(folder / "stays.bin", np.bool_, end - start, offset=start)
        kept = []
        for document, stay in zip(documents, stays.tolist(), strict=True):
            if stay:
                kept.append(document)
            else:
                tally.drop(document, self.reason)
        tally.keep(len(kept))
        return kept
