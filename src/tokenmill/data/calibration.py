"""Documents that a quantiser looks at a model with: of any data that training takes, rendered as the model is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.config.parts import DataConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.dataset import Dataset
from tokenmill.data.prepare import load_splits
from tokenmill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Calibration:
    """Token ids, int64 [n] a document: what is looked at, and what is held out to measure on."""

    documents: list[Tensor]
    held_out: list[Tensor]

    @property
    def tokens(self) -> int:
        """Of the documents that are looked at."""
        return sum(len(document) for document in self.documents)


def calibration(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    samples: int = 128,
    seq_len: int = 512,
    progress: Callable[[str, int], None] | None = None,
) -> Calibration:
    """At most ``samples`` documents of at most ``seq_len`` tokens, spread evenly over the data, without padding.

    Conversations are written by the chat template; plain text is cut into pieces. ConfigError where there is nothing,
    or token shards were made with another tokenizer.
    """
    splits = load_splits(config, tokenizer, seq_len=seq_len, causal=False, progress=progress)
    assert isinstance(splits.train, Dataset)
    documents = _spread(splits.train, samples)
    if not documents:
        raise ConfigError(f"the calibration data {config.path} is empty")
    held_out = _spread(splits.eval, samples) if isinstance(splits.eval, Dataset) else []
    return Calibration(documents, held_out)


def _spread(dataset: Dataset, most: int) -> list[Tensor]:
    count = min(most, len(dataset))
    return [torch.from_numpy(dataset[i * len(dataset) // count].tokens) for i in range(count)]
