"""Train, validation and test, with no near duplicate on both sides.

Documents that MinHash takes for copies of each other (see `minhash`) go to one side together. The side follows from the
seed and the smallest text hash of the group, so it depends on neither order nor position: documents added later move
little (only groups that they join). Every document gets a column ``split``; the pipeline writes files for each side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from tokenmill.config.parts import Part
from tokenmill.data.curate.components import Components
from tokenmill.data.curate.copies import Observed, join_equal, numbered, ranks_of, starts_of
from tokenmill.data.curate.minhash import band_keys
from tokenmill.data.curate.shingles import mixed
from tokenmill.data.curate.step import Context, Document, Tally

_STREAM = 0x73706C6974
"""Sets these numbers apart from others that are drawn from the same seed."""
_Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class SplitOptions(Part):
    """Train, validation and test."""

    validation: _Share = 0.01
    """Share of documents, about: a group of near copies goes as a whole."""
    test: _Share = 0.01
    """Likewise. The rest is ``train``."""
    ngram: Annotated[int, Field(ge=1, le=32)] = 5
    """As in ``minhash``: which documents are too much alike to be on two sides."""
    bands: Annotated[int, Field(ge=1, le=256)] = 20
    """More than ``minhash`` has, since a leak costs more than a document too many on one side: with 5 rows a pair at a
    similarity of 0.6 is seen with a probability of 0.8, at 0.8 of 0.9996."""
    rows: Annotated[int, Field(ge=1, le=64)] = 5

    @model_validator(mode="after")
    def _leaves_something(self) -> SplitOptions:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation={self.validation} and test={self.test} leave nothing to train on")
        return self


def build(options: SplitOptions, context: Context) -> Split:
    """The step ``split``."""
    return Split(options, context.seed)


class Split:
    """See the module."""

    def __init__(self, options: SplitOptions, seed: int) -> None:
        self.options, self.seed = options, seed

    def observe(self, documents: list[Document]) -> bytes:
        """Band keys and text hashes."""
        texts = [document.text for document in documents]
        keys = band_keys(texts, self.options.ngram, self.options.bands, self.options.rows, self.seed)
        return Observed(keys, ranks_of(documents, None)).to_bytes()

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """``sides.bin``: a byte a document, its place in `SIDES`; ``starts.npy``: where each shard begins in it."""
        starts = starts_of(observed)
        count = int(starts[-1])
        np.save(folder / "starts.npy", starts)
        if not count:
            return
        components = Components(count, folder / "parents.tmp")
        join_equal(observed, components, folder, self.options.bands)
        roots = components.flatten()
        smallest = np.memmap(folder / "smallest.tmp", np.uint64, "w+", shape=(count,))
        for start, shard in numbered(observed):
            mine = slice(start, start + len(shard.ranks))
            # a root is its group's first document: set here before any other of its group is looked at
            smallest[mine] = shard.ranks["text"]
            np.minimum.at(smallest, roots[mine], shard.ranks["text"])
        sides = np.memmap(folder / "sides.bin", np.uint8, "w+", shape=(count,))
        for start, shard in numbered(observed):
            mine = slice(start, start + len(shard.ranks))
            sides[mine] = self._sides(smallest[roots[mine]])
        for name in ("parents.tmp", "smallest.tmp"):
            (folder / name).unlink()

    def _sides(self, hashes: np.ndarray) -> np.ndarray:
        """A place in SIDES for each group, uint8, drawn by its hash."""
        stream = mixed(np.array([self.seed ^ _STREAM], np.uint64))
        drawn = (mixed(hashes ^ stream) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
        borders = np.cumsum([self.options.test, self.options.validation])
        return (len(borders) - np.searchsorted(borders, drawn, side="right")).astype(np.uint8)

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Write the side into the column ``split``."""
        start, end = np.load(folder / "starts.npy", allow_pickle=False)[shard : shard + 2].tolist()
        assert end - start == len(documents), "the documents are not those that were observed"
        if not documents:
            return []
        sides = np.fromfile(folder / "sides.bin", np.uint8, end - start, offset=start)
        for document, side in zip(documents, sides, strict=True):
            document.meta["split"] = SIDES[side]
        tally.keep(len(documents))
        return documents


SIDES = ("train", "validation", "test")
