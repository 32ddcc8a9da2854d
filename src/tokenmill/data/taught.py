"""Batches that carry what a teacher said of them: for every token its likeliest successors.

The lists lie in one file of records, mapped, in the order of samples and tokens; a batch reads its own. Axes: T tokens
of a batch · A tokens of the data set · K tokens of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tokenmill.data.batch import Batch, Sample

RECORD = np.dtype([("id", "<i4"), ("logprob", "<f4")])
"""A token and its log-probability."""


@dataclass
class TaughtBatch(Batch):
    """A micro-batch with the teacher's lists."""

    ids_TK: Tensor
    """int64; every id at most once in a row."""
    logprobs_TK: Tensor
    """float32, at the temperature of the run."""

    def to(self, device: torch.device | str) -> TaughtBatch:
        """The same batch with its tensors on `device`."""
        names = ("tokens_T", "labels_T", "ids_TK", "logprobs_TK")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class CollateTaught:
    """Packs samples with their lists.

    Args:
        lists_AK: records of all tokens, sample after sample.
        lengths: tokens of every sample.
    """

    def __init__(self, lists_AK: np.ndarray, lengths: np.ndarray) -> None:
        self.lists_AK, self.ends = lists_AK, np.cumsum(lengths)

    def __call__(self, samples: Sequence[Sample], seed: int) -> TaughtBatch:
        """Nothing is drawn, so `seed` is not looked at."""
        batch = Batch.of(samples)
        ends = [int(self.ends[sample.index]) for sample in samples]
        spans = [self.lists_AK[end - len(sample) : end] for sample, end in zip(samples, ends, strict=True)]
        lists_TK = np.concatenate(spans)
        ids_TK = torch.from_numpy(lists_TK["id"].astype(np.int64))
        logprobs_TK = torch.from_numpy(lists_TK["logprob"].astype(np.float32))
        return TaughtBatch(batch.tokens_T, batch.labels_T, batch.lengths, batch.indices, ids_TK, logprobs_TK)
