"""Log-probabilities of whole answers, with a gradient: what preference objectives compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.nn.shared import hidden_states
from tokenmill.ops.cross_entropy import CHUNK_VALUES
from tokenmill.ops.token_logprobs import chunked_token_logprobs, linear_token_logprobs

if TYPE_CHECKING:
    from tokenmill.data.batch import Batch
    from tokenmill.nn.decoder import Decoder

NO_LABEL = -100


def head_logprobs(model: Decoder, hidden_TC: Tensor, labels_T: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every label, [T] float32 (0 without one), by the model's own head, plain or adapted.

    ``temperature``: of the softmax, as tokens are drawn."""
    config = model.config
    owner: nn.Module = model.embed if model.head is None else model.head
    if type(owner) not in (Embedding, Linear):
        rows = max(1, CHUNK_VALUES // config.vocab_size)
        scores = model.logits if temperature == 1.0 else lambda hidden_RC: model.logits(hidden_RC) / temperature
        return chunked_token_logprobs(scores, hidden_TC, labels_T, rows=rows)
    return linear_token_logprobs(
        hidden_TC,
        cast(Tensor, owner.weight),
        labels_T,
        bias_V=getattr(owner, "bias", None),
        scale=config.logit_scale / temperature,
        softcap=None if config.logit_softcap is None else config.logit_softcap / temperature,
    )


def batch_logprobs(model: Any, batch: Batch, labels_T: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """One forward pass over packed documents; log-probabilities [T] of ``labels_T``, by default the batch's."""
    hidden_TC = hidden_states(model, batch.tokens_T, batch.lengths)
    return head_logprobs(model, hidden_TC, batch.labels_T if labels_T is None else labels_T, temperature)


def document_sums(values_T: Tensor, lengths: list[int]) -> Tensor:
    """The sum over every document, [N]."""
    return torch.stack([part.sum() for part in values_T.split(lengths)])


def answer_logprobs(model: Any, batch: Batch) -> Tensor:
    """Summed log-probability of every document's labels, [N] float32."""
    return document_sums(batch_logprobs(model, batch), batch.lengths)
