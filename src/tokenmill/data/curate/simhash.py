"""Near duplicates by SimHash: 64 bits a text, texts whose bits differ in few places are copies.

Each word votes for every bit of the fingerprint, as often as it occurs; order does not count. Two texts with at most
``distance`` different bits are found without fail: the 64 bits are cut into ``distance + 2`` blocks, and whatever the
places of the different bits, two blocks at least are equal, so the texts meet in the group of these two. Compared with
MinHash it is lighter (8 bytes a text) and coarser: it finds long texts with few edits, and takes short texts of similar
vocabulary for copies sooner. Sources: Charikar 2002; Manku, Jain and Das Sarma 2007 (64 bits, distance 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from tokenmill.data.curate.components import Components
from tokenmill.data.curate.copies import CopyOptions, DropCopies, numbered
from tokenmill.data.curate.groups import Groups
from tokenmill.data.curate.minhash import batches
from tokenmill.data.curate.shingles import mixed, shingle_hashes
from tokenmill.data.curate.step import Context, Document

_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view("<u8")[:, 0]
"""Of each byte, its bits as eight bytes of 0 or 1; uint64 [256]."""


class SimHashOptions(CopyOptions):
    """Near duplicates by SimHash."""

    distance: Annotated[int, Field(ge=0, le=8)] = 3
    """Bits of 64 that may differ."""
    ngram: Annotated[int, Field(ge=1, le=32)] = 1
    """Words that vote together; more make the order of words count."""


def build(options: SimHashOptions, context: Context) -> SimHash:
    """The step ``simhash``; nothing in it is random."""
    return SimHash(options)


class SimHash(DropCopies):
    """See the module."""

    reason = "near_duplicate"

    def __init__(self, options: SimHashOptions) -> None:
        super().__init__(options)
        self.distance, self.ngram = options.distance, options.ngram

    def keys(self, documents: Sequence[Document]) -> np.ndarray:
        """The fingerprints, uint64 [1, n]; 0 for a text without a word."""
        return fingerprints([document.text for document in documents], self.ngram)[None]

    def join(self, observed: Sequence[Path], components: Components, folder: Path) -> None:
        """Join what differs in few bits."""
        masks = block_masks(self.distance)
        count = len(components.parent)
        for mask in masks:
            with Groups(folder / "groups", count, 3) as groups:
                for start, shard in numbered(observed):
                    used = np.flatnonzero(shard.keys[0])
                    bits = shard.keys[0][used]
                    groups.add(mixed(bits & mask), bits, used + start)
                for records in groups.sorted():
                    for left, right in close_pairs(records, self.distance):
                        components.join(left, right)


def fingerprints(texts: Sequence[str], ngram: int) -> np.ndarray:
    """Of every text, uint64 [D]; 0 for one without a word."""
    found = np.zeros(len(texts), np.uint64)
    for start, batch in batches(texts):
        hashes, counts = shingle_hashes(batch, ngram)
        filled = np.flatnonzero(counts)
        if not len(filled):
            continue
        wins = 2 * _votes(hashes, counts[filled]) > counts[filled][:, None]
        prints = np.packbits(wins, axis=1, bitorder="little").view(np.uint64)[:, 0]
        found[start + filled] = np.where(prints == 0, np.uint64(1), prints)
    return found


def _votes(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many hashes of each text have each bit, int64 [D, 64]. `counts`: hashes of each text, none of them 0.

    A byte's eight bits are spread over the eight bytes of a word, so that one addition counts eight votes; a byte holds
    255 of them, so a text is summed in parts of that many.
    """
    parts = -(-counts // 255)
    first_parts = np.cumsum(parts) - parts
    within = np.arange(int(parts.sum())) - np.repeat(first_parts, parts)
    firsts = np.repeat(np.cumsum(counts) - counts, parts) + 255 * within
    bytes_W8 = hashes.astype("<u8").view(np.uint8).reshape(-1, 8)
    columns = []
    for byte in range(8):
        sums_P = np.add.reduceat(_SPREAD[bytes_W8[:, byte]], firsts)
        columns.append(np.add.reduceat(sums_P.view(np.uint8).reshape(-1, 8).astype(np.int64), first_parts, axis=0))
    return np.concatenate(columns, axis=1)


def block_masks(distance: int) -> list[np.uint64]:
    """The bits that have to be equal for two texts to meet: any two of ``distance + 2`` blocks."""
    borders = np.linspace(0, 64, distance + 3).astype(int).tolist()
    blocks = [((1 << end) - 1) ^ ((1 << start) - 1) for start, end in pairwise(borders)]
    return [np.uint64(one | other) for one, other in combinations(blocks, 2)]


def close_pairs(records: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of texts of the same group that differ in at most `distance` bits.

    Args:
        records: (group, fingerprint, number), uint64 [n, 3], sorted.
    """
    numbers = records[:, 2].astype(np.int64)
    same = (records[1:, :2] == records[:-1, :2]).all(axis=1)
    yield numbers[:-1][same], numbers[1:][same]
    # equal fingerprints are joined now, so that a page met a million times is compared once
    single = records[np.concatenate([[True], ~same])]
    numbers, places = single[:, 2].astype(np.int64), np.arange(len(single))
    step = 1
    while len(places := places[places + step < len(single)]):
        places = places[single[places, 0] == single[places + step, 0]]
        differing = np.bitwise_count(single[places, 1] ^ single[places + step, 1])
        near = places[differing <= distance]
        yield numbers[near], numbers[near + step]
        step += 1
