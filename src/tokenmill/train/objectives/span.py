"""Span corruption (Raffel et al. 2020): a decoder says which stretches an encoder's text has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenmill.train.objectives.base import Loss
from tokenmill.train.objectives.next_token import head_loss

if TYPE_CHECKING:
    from tokenmill.data.batch import PairBatch


class LostSpans:
    """Negative log-likelihood of the target, given the source; a batch comes from ``data.corrupt.CorruptSpans``."""

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: Any, batch: PairBatch) -> Loss:
        source, target = batch.source, batch.target
        memory_SC = model.encode(source.tokens_T, source.lengths)
        hidden_TC = model.hidden(target.tokens_T, target.lengths, memory_SC, source.lengths)
        loss = head_loss(model, hidden_TC, target.labels_T, self.z_loss)
        metrics = {} if self.z_loss == 0.0 else {"z_loss": float(loss.z_loss)}
        return Loss(loss.loss, batch.num_labels, metrics)
