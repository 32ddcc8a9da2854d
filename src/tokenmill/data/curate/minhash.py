"""Near duplicates by MinHash with banding: texts whose runs of words overlap for the most part.

A text's signature has ``bands * rows`` numbers, each equal in two texts with a probability of s, their Jaccard
similarity (shared runs of ``ngram`` words over all runs). Two texts whose signatures agree in a whole band are copies:
with the default 14 bands of 8 rows that happens with 1 - (1 - s^8)^14: 0.21 at s = 0.6, 0.56 at 0.7, 0.92 at 0.8 and
0.9996 at 0.9. Copies of copies are copies too (union-find). Sources: Broder 1997; the 14 x 8 of 5-grams that FineWeb
and datatrove use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.components import Components
from tokenmill.data.curate.copies import CopyOptions, DropCopies, join_equal
from tokenmill.data.curate.shingles import mixed, shingle_hashes
from tokenmill.data.curate.step import Context, Document

BATCH = 1 << 21
"""Characters whose runs of words are hashed at a time."""


class MinHashOptions(CopyOptions):
    """Near duplicates by MinHash."""

    ngram: Annotated[int, Field(ge=1, le=32)] = 5
    """Words of a run."""
    bands: Annotated[int, Field(ge=1, le=256)] = 14
    """More find more, also of what is less alike."""
    rows: Annotated[int, Field(ge=1, le=64)] = 8
    """Numbers of a band; more find less of what is less alike."""


def build(options: MinHashOptions, context: Context) -> MinHash:
    """The step ``minhash``."""
    return MinHash(options, context.seed)


class MinHash(DropCopies):
    """See the module."""

    reason = "near_duplicate"

    def __init__(self, options: MinHashOptions, seed: int) -> None:
        super().__init__(options)
        self.ngram, self.bands, self.rows, self.seed = options.ngram, options.bands, options.rows, seed

    def keys(self, documents: Sequence[Document]) -> np.ndarray:
        """A key for each band, uint64 [bands, n]; texts without a word have none."""
        return band_keys([document.text for document in documents], self.ngram, self.bands, self.rows, self.seed)

    def join(self, observed: Sequence[Path], components: Components, folder: Path) -> None:
        """Join what has a band in common."""
        join_equal(observed, components, folder, self.bands)


def band_keys(texts: Sequence[str], ngram: int, bands: int, rows: int, seed: int) -> np.ndarray:
    """Of every text and band a hash of its signature there, uint64 [bands, D]; 0 for a text without a word."""
    keys = np.zeros((bands, len(texts)), np.uint64)
    for start, batch in batches(texts):
        signature_DH, counts = signatures(batch, ngram, bands * rows, seed)
        signature_DBR = signature_DH.reshape(len(batch), bands, rows).astype(np.uint64)
        key_DB = np.arange(1, bands + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for row in range(rows):
            key_DB = mixed(key_DB + signature_DBR[:, :, row])
        key_DB[counts == 0] = 0
        keys[:, start : start + len(batch)] = key_DB.T
    return keys


def signatures(texts: Sequence[str], ngram: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures, uint32 [D, size], and how many runs of words each text has, int64 [D]."""
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError('the step minhash needs: pip install "tokenmill[data]"') from error
    hashes, counts = shingle_hashes(texts, ngram)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts, size, seed)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(texts), size), counts


def batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Runs of texts of about BATCH characters, each with the number of its first."""
    start = size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size >= BATCH:
            yield start, texts[start : number + 1]
            start, size = number + 1, 0
    if start < len(texts):
        yield start, texts[start:]
