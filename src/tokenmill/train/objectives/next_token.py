"""Next-token prediction: pretraining and supervised fine-tuning are the same loss, their masks come with the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from tokenmill.core.allocator import give_back_free_memory
from tokenmill.nn.context import Packed
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.ops.cross_entropy import CHUNK_VALUES, CrossEntropy, chunked_cross_entropy, linear_cross_entropy
from tokenmill.train.objectives.base import Loss

if TYPE_CHECKING:
    from tokenmill.data.batch import Batch
    from tokenmill.nn.decoder import Decoder


LARGE = 1024
"""Tokens from which on a micro-batch's memory is worth a few milliseconds."""


def head_loss(model: Decoder, hidden_TC: Tensor, labels_T: Tensor, z_loss: float = 0.0) -> CrossEntropy:
    """Cross-entropy of what the model's head makes of hidden states, without holding all its scores.

    A head that is one matrix takes the fused way; one that an adapter or a quantised layer has replaced is run itself.
    """
    config = model.config
    owner: nn.Module = model.embed if model.head is None else model.head
    if type(owner) not in (Embedding, Linear):
        rows = max(1, CHUNK_VALUES // config.vocab_size)
        return chunked_cross_entropy(model.logits, hidden_TC, labels_T, rows=rows, z_loss=z_loss)
    return linear_cross_entropy(
        hidden_TC,
        cast(Tensor, owner.weight),
        labels_T,
        bias_V=getattr(owner, "bias", None),
        scale=config.logit_scale,
        softcap=config.logit_softcap,
        z_loss=z_loss,
    )


class NextToken:
    """Negative log-likelihood of the label after every token, plus ``z_loss`` times log Z squared (PaLM)."""

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: Any, batch: Batch) -> Loss:
        context = Packed(batch.lengths, batch.tokens_T.device)
        hidden_TC = model.hidden(batch.tokens_T, context)
        if len(hidden_TC) >= LARGE and hidden_TC.requires_grad and hidden_TC.device.type == "cpu":
            give_back_free_memory()  # the loss needs the largest tensors, while all activations are there
        loss = head_loss(model, hidden_TC, batch.labels_T, self.z_loss)
        metrics = {} if self.z_loss == 0.0 else {"z_loss": float(loss.z_loss)}
        return Loss(loss.loss, batch.num_labels, metrics)
