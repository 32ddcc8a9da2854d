"""A decoder that gives a text a number instead of continuing it: what reward models are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.nn.config import DecoderConfig
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.linear import Linear


class Scorer(Decoder):
    """A decoder with a scalar head (``score``) in place of the one over the vocabulary, as Hugging Face's sequence
    classification with one label. It has hidden states and no logits worth a look."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.score = Linear(config.hidden_size, config.num_labels)

    def scores(self, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """The score of each document, float32 [N]: what the head says of its last token. That is found by length; a
        padding token that also ends texts would hide it (TRL #976)."""
        hidden_TC = self.hidden(tokens_T, Packed(lengths, tokens_T.device))
        last_N = torch.tensor(lengths, device=tokens_T.device).cumsum(0) - 1
        hidden_NC = hidden_TC[last_N]
        if isinstance(self.score, Linear):  # trained in float32 over a base in 16 bits; a packed one takes what comes
            hidden_NC = hidden_NC.to(self.score.weight.dtype)
        scores_N1: Tensor = self.score(hidden_NC)
        return scores_N1.float()[:, 0]
