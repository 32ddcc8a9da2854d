"""Data sets and batches of compared answers: a sample is two documents, which never part.

`Pairs` has the chosen and the rejected answer of a row. `JudgedAnswers` has an answer and, behind the same prompt, the
answer of the row before it: KTO measures on such mismatched answers how far the policy has moved (Ethayarajh et al.
2024, section 4.1). Which row that is follows from the data alone, so batches may be split in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import NO_LABEL, ComparedBatch, ComparedSample, Sample
from tokenmill.data.dataset import Dataset, passes

Likelihood = Literal["none", "answer", "all"]
"""What of a chosen document is also learned by likelihood: nothing, the answer, the prompt too."""


class Compared(Dataset):
    """What both kinds have in common: sample i consists of documents ``first[i]`` and ``second[i]`` of ``single``.

    Args:
        single: the documents, each at most once.
        first, second: their numbers there.
        weights, seed: of each source, how often an epoch passes over its samples, as for `Dataset`.
    """

    def __init__(
        self, single: Dataset, first: np.ndarray, second: np.ndarray, weights: Sequence[float], seed: int
    ) -> None:
        self.files, self.seq_len, self.causal, self.single = single.files, single.seq_len, single.causal, single
        self.truncated, self.tokens_lost = single.truncated, single.tokens_lost
        times = passes(weights, self.files.documents["source"][single.documents[first]], seed)
        self.first, self.second = np.repeat(first, times), np.repeat(second, times)
        self.documents = single.documents[self.first]
        self._measure()

    def _measure(self) -> None:
        """Fill in what a loader and the checks ask."""
        raise NotImplementedError

    def _halves(self, index: int) -> tuple[Sample, Sample]:
        """The two documents of a sample."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> ComparedSample:
        a, b = self._halves(index)
        record = self.files.documents[self.documents[index]]
        return ComparedSample(
            index,
            np.concatenate((a.tokens, b.tokens)),
            np.concatenate((a.labels, b.labels)),
            split=len(a),
            good=bool(record["good"]),
            margin=float(record["margin"]),
        )

    def without(self, samples: np.ndarray) -> Compared:
        """The same without these samples (given as a mask)."""
        other: Compared = object.__new__(type(self))
        other.__dict__ |= self.__dict__
        for name in ("starts", "lengths", "documents", "labels", "first", "second"):
            setattr(other, name, getattr(self, name)[~samples])
        return other


class Pairs(Compared):
    """The chosen and the rejected answer of every row of which both are left after truncation."""

    def __init__(self, single: Dataset, *, weights: Sequence[float] = (), seed: int = 0) -> None:
        documents = single.documents
        follows = np.flatnonzero(np.diff(documents) == 1)
        good, rows = single.files.documents["good"][documents], single.files.documents["row"][documents]
        kept = good[follows] & ~good[follows + 1] & (rows[follows] == rows[follows + 1])
        super().__init__(single, follows[kept], follows[kept] + 1, weights, seed)

    def _measure(self) -> None:
        single = self.single
        self.starts = single.starts[self.first]
        self.lengths = single.lengths[self.first] + single.lengths[self.second]
        # a pair needs something to learn on both sides
        self.labels = np.minimum(single.labels[self.first], single.labels[self.second])

    def _halves(self, index: int) -> tuple[Sample, Sample]:
        return self.single[int(self.first[index])], self.single[int(self.second[index])]


class JudgedAnswers(Compared):
    """Every judged answer, with the prompt of its own and the answer of the nearest earlier row as its second half."""

    def __init__(self, single: Dataset, *, weights: Sequence[float] = (), seed: int = 0) -> None:
        first = np.arange(len(single))
        rows = single.files.documents["row"][single.documents]
        if len(rows) and (rows == rows[0]).all():
            raise ConfigError("KTO compares an answer with those to other prompts; this data has a single row")
        second = np.roll(first, 1)
        for _ in range(2):  # both sides of a pair are answers to one prompt
            same = rows[first] == rows[second]
            second = np.where(same, np.roll(second, 1), second)
        super().__init__(single, first, second, weights, seed)

    def _measure(self) -> None:
        single = self.single
        self.starts = single.starts[self.first]
        self.labels = single.labels[self.first]
        self._prompts = np.array([_prompt_length(single[i].labels) for i in range(len(single))], np.int64)
        mixed = self._prompts[self.first] + single.lengths[self.second] - self._prompts[self.second]
        self.lengths = single.lengths[self.first] + np.minimum(mixed, self.seq_len)

    def _halves(self, index: int) -> tuple[Sample, Sample]:
        mine, other = self.single[int(self.first[index])], self.single[int(self.second[index])]
        here, there = int(self._prompts[self.first[index]]), int(self._prompts[self.second[index]])
        tokens = np.concatenate((mine.tokens[:here], other.tokens[there:]))[: self.seq_len]
        labels = np.concatenate((mine.labels[:here], other.labels[there:]))[: self.seq_len]
        if here:  # the prompt's last token is followed by the other answer's first
            labels[here - 1] = other.labels[there - 1] if there else NO_LABEL
        return mine, Sample(mine.index, tokens, labels)


def _prompt_length(labels: np.ndarray) -> int:
    """Tokens before the answer: the last of them predicts its first token."""
    learned = labels != NO_LABEL
    return int(learned.argmax()) + 1 if learned.any() else len(labels)


class CollateCompared:
    """Makes batches of compared samples.

    Args:
        likelihood: what is also learned by likelihood, of chosen (or well judged) documents.
        reference_N2: log-probabilities under the reference model by sample index, [N, 2]; None without a reference.
    """

    def __init__(self, likelihood: Likelihood = "none", reference_N2: np.ndarray | None = None) -> None:
        self.likelihood, self.reference_N2 = likelihood, reference_N2

    def __call__(self, samples: Sequence[Sample], seed: int) -> ComparedBatch:
        """Pack `samples`; nothing is drawn, so `seed` is not looked at."""
        compared = [sample for sample in samples if isinstance(sample, ComparedSample)]
        assert len(compared) == len(samples)
        indices = [sample.index for sample in compared]
        reference = np.zeros((len(indices), 2)) if self.reference_N2 is None else self.reference_N2[indices]
        return ComparedBatch(
            tokens_T=torch.from_numpy(np.concatenate([sample.tokens for sample in compared]).astype(np.int64)),
            labels_T=torch.from_numpy(np.concatenate([sample.labels for sample in compared]).astype(np.int64)),
            lengths=[n for sample in compared for n in (sample.split, len(sample) - sample.split)],
            indices=indices,
            reference_P2=torch.from_numpy(reference.astype(np.float32)),
            good_P=torch.tensor([sample.good for sample in compared]),
            margins_P=torch.tensor([sample.margin for sample in compared], dtype=torch.float32),
            nll_labels_T=torch.from_numpy(np.concatenate([self._learned(sample) for sample in compared])),
        )

    def _learned(self, sample: ComparedSample) -> np.ndarray:
        labels = np.full(len(sample), NO_LABEL, np.int64)
        if self.likelihood == "none" or not sample.good:
            return labels
        end = sample.split
        labels[:end] = sample.labels[:end]
        if self.likelihood == "all":
            labels[: end - 1] = sample.tokens[1:end]
        return labels
