"""Documents cut to the length of a row: what may be looked up by number, in any order, by any process.

Nothing is held in memory but two numbers a sample; tokens are read from the mapped files when a batch is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokenmill.data.batch import NO_LABEL, Sample
from tokenmill.data.tokens import TokenFiles

Truncate = Literal["end", "start", "split", "drop", "error"]


class Dataset:
    """Samples of at most ``seq_len`` tokens.

    Args:
        files: the tokens.
        documents: numbers of the documents in use, in order.
        seq_len: most tokens of a sample.
        truncate: what happens to longer documents.
        weights: of each source, how often an epoch passes over its samples; a fraction is a fixed choice by `seed`.
        causal: a sample's labels are the tokens that follow, so a document of n tokens gives n-1; otherwise all n
            tokens and no labels (masking and span corruption make their own).
    """

    def __init__(
        self,
        files: TokenFiles,
        documents: np.ndarray,
        *,
        seq_len: int,
        truncate: Truncate,
        weights: Sequence[float] = (),
        seed: int = 0,
        causal: bool = True,
    ) -> None:
        self.files, self.seq_len, self.causal = files, seq_len, causal
        pieces = _cut(files, documents, seq_len, truncate, causal)
        self.truncated = pieces.truncated
        self.tokens_lost = pieces.tokens_lost
        labels = pieces.labels if causal else np.maximum(pieces.labels, 1)
        # a piece of a split document without labels teaches nothing; a whole document without any is the caller's case
        times = ((labels > 0) | (truncate != "split")).astype(np.int64)
        times *= passes(weights, files.documents["source"][pieces.documents], seed)
        self.starts, self.lengths, self.documents = (
            np.repeat(part, times) for part in (pieces.starts, pieces.lengths, pieces.documents)
        )
        self.labels = np.repeat(labels, times)
        """Tokens of every sample that count in the loss."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Sample:
        start, length = int(self.starts[index]), int(self.lengths[index])
        tokens = self.files.tokens[start : start + length].astype(np.int64)
        if not self.causal:
            return Sample(index, tokens, np.full(length, NO_LABEL, np.int64))
        labels = self.files.tokens[start + 1 : start + length + 1].astype(np.int64)
        labels[~self.files.learned[start + 1 : start + length + 1]] = NO_LABEL
        return Sample(index, tokens, labels)

    def where(self, index: int) -> str:
        """``file:line`` of the row that a sample comes from."""
        return self.files.where(int(self.documents[index]))

    def without(self, samples: np.ndarray) -> Dataset:
        """The same without these samples (given as a mask)."""
        other = object.__new__(Dataset)
        other.__dict__ |= self.__dict__
        for name in ("starts", "lengths", "documents", "labels"):
            setattr(other, name, getattr(self, name)[~samples])
        return other

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples together: an epoch."""
        return int(self.lengths.sum())

    @property
    def num_labels(self) -> int:
        """Of them those that count in the loss."""
        return int(self.labels.sum())

    @property
    def fingerprint(self) -> str:
        """Names these samples in this order: a loader's state fits only them."""
        digest = hashlib.blake2b(str(self.files.meta.get("key", "")).encode(), digest_size=8)
        for part in (self.starts, self.lengths):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def passes(weights: Sequence[float], sources: np.ndarray, seed: int) -> np.ndarray:
    """How often an epoch passes over each sample, by the weight of its source; int64."""
    if all(weight == 1.0 for weight in weights):
        return np.ones(len(sources), np.int64)
    chance = np.random.Generator(np.random.Philox(seed)).random(len(sources))
    return (np.asarray(weights)[sources] + chance).astype(np.int64)


@dataclass
class _Pieces:
    starts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    labels: np.ndarray
    truncated: np.ndarray
    """Documents that were longer than a row."""
    tokens_lost: int


def _cut(files: TokenFiles, documents: np.ndarray, seq_len: int, truncate: Truncate, causal: bool) -> _Pieces:
    records = files.documents[documents]
    starts = records["start"].astype(np.int64)
    lengths = np.maximum(records["length"].astype(np.int64) - causal, 0)
    some = lengths > 0
    documents, starts, lengths = documents[some], starts[some], lengths[some]
    long = lengths > seq_len
    truncated, lost = documents[long], 0
    if truncate == "split":
        counts = -(-lengths // seq_len)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        ends = np.repeat(starts + lengths, counts)
        documents, starts = np.repeat(documents, counts), np.repeat(starts, counts) + number * seq_len
        lengths = np.minimum(ends - starts, seq_len)
    elif truncate == "drop":
        lost = int(lengths[long].sum())
        documents, starts, lengths = documents[~long], starts[~long], lengths[~long]
    else:
        over = np.maximum(lengths - seq_len, 0)
        lost = int(over.sum())
        starts = starts + over if truncate == "start" else starts
        lengths = lengths - over
    return _Pieces(starts, lengths, documents, _labels(files, documents, starts, lengths, causal), truncated, lost)


def _labels(
    files: TokenFiles, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray, causal: bool
) -> np.ndarray:
    """Learned tokens of every piece. A document's number is known; only cut ones of mixed masks are counted."""
    records = files.documents[documents]
    first = files.learned[records["start"]] if len(records) else np.zeros(0, bool)
    whole = lengths == records["length"] - causal
    full = records["learned"] == records["length"]
    labels = np.where(full, lengths, records["learned"] - (first & causal))
    for i in np.flatnonzero(~whole & ~full):
        begin = starts[i] + causal
        labels[i] = int(files.learned[begin : begin + lengths[i]].sum())
    return np.asarray(labels, np.int64)
