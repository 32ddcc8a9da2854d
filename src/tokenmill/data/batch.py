"""What a training step is given: documents one after the other in one row of tokens, without padding.

Attention and positions are isolated by ``lengths`` (:class:`tokenmill.nn.context.Packed`), so a packed document sees
exactly what it would see alone. Labels are shifted when a batch is made, where the borders of documents are known: no
label reaches across one. Axes: T tokens of all documents together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

NO_LABEL = -100
"""The label of a token whose successor costs nothing; cross-entropy's own sign for it."""


@dataclass(frozen=True)
class Sample:
    """One document (or a piece of a long one) on its way into a batch. Both arrays are int64 and equally long.

    ``labels[t]`` is what should follow ``tokens[t]``, NO_LABEL where that costs nothing.
    """

    index: int
    """Its place in the data set, the same in every epoch, run and process."""
    tokens: np.ndarray
    labels: np.ndarray
    epoch: int = 0
    """The pass over the data that it is seen in: masks are drawn anew in each."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Batch:
    """One micro-batch of one process."""

    tokens_T: Tensor
    """int64; all documents one after the other."""
    labels_T: Tensor
    """int64; ``labels_T[t]`` is what should follow ``tokens_T[t]`` (what stands there, for masked language models)."""
    lengths: list[int]
    """Tokens of every document; their sum is T."""
    indices: list[int]
    """``Sample.index`` of every document: what reports name and what a roll back passes over."""
    written: bool = field(default=False, kw_only=True)
    """The model that is trained wrote what is labelled: there is nothing to learn from the labels as such."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Pack `samples` in their order."""
        return cls(
            tokens_T=torch.from_numpy(np.concatenate([sample.tokens for sample in samples]).astype(np.int64)),
            labels_T=torch.from_numpy(np.concatenate([sample.labels for sample in samples]).astype(np.int64)),
            lengths=[len(sample) for sample in samples],
            indices=[sample.index for sample in samples],
        )

    @property
    def num_labels(self) -> int:
        """Tokens that count in the loss: what the sum of losses is divided by."""
        return int((self.labels_T != NO_LABEL).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(self, tokens_T=self.tokens_T.to(device), labels_T=self.labels_T.to(device))


@dataclass
class PairBatch:
    """A micro-batch for an encoder and a decoder: document i of ``source`` goes with document i of ``target``."""

    source: Batch
    """What the encoder reads; it has no labels."""
    target: Batch
    """What the decoder is given, and its labels."""

    @property
    def num_labels(self) -> int:
        """Tokens of the target that count in the loss."""
        return self.target.num_labels

    @property
    def indices(self) -> list[int]:
        """``Sample.index`` of every document."""
        return self.target.indices

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch with its tensors on `device`."""
        return PairBatch(self.source.to(device), self.target.to(device))


@dataclass(frozen=True)
class ComparedSample(Sample):
    """Two documents that are looked at together; ``tokens`` and ``labels`` hold one behind the other."""

    split: int = 0
    """Tokens of the first one."""
    good: bool = True
    """The verdict on a judged answer; of a pair the first document is the chosen one."""
    margin: float = 0.0
    """By how much the first one is better, where the data says so."""


@dataclass
class ComparedBatch(Batch):
    """A micro-batch of compared answers: documents 2i and 2i + 1 belong to sample i. Axes: P samples.

    They are the chosen and the rejected answer of a pair; or a judged answer, and behind its prompt the answer to
    another one (for KTO's estimate of the divergence).
    """

    reference_P2: Tensor
    """Log-probability of each document's labels under the reference model, float32; zeros where none is asked."""
    good_P: Tensor
    """bool, see :class:`ComparedSample`."""
    margins_P: Tensor
    """float32."""
    nll_labels_T: Tensor
    """Labels of what is learned by likelihood besides; NO_LABEL everywhere where that is nothing."""

    @property
    def num_labels(self) -> int:
        """Samples: a loss of comparisons is summed over them and divided by their number."""
        return len(self.indices)

    @property
    def num_nll(self) -> int:
        """Tokens that are learned by likelihood, which have a mean of their own."""
        return int((self.nll_labels_T != NO_LABEL).sum())

    def side(self, number: int) -> Batch:
        """The first (0) or the second (1) document of every sample, packed."""
        starts = np.cumsum([0, *self.lengths])
        kept = [torch.arange(starts[i], starts[i + 1]) for i in range(number, len(self.lengths), 2)]
        kept_T = torch.cat(kept).to(self.tokens_T.device)
        return Batch(self.tokens_T[kept_T], self.labels_T[kept_T], self.lengths[number::2], self.indices)

    def to(self, device: torch.device | str) -> ComparedBatch:
        """The same batch with its tensors on `device`."""
        names = ("tokens_T", "labels_T", "reference_P2", "good_P", "margins_P", "nll_labels_T")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})
