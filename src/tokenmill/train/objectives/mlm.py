"""Masked language modelling (Devlin et al. 2019): an encoder says what stood in the places that were spoiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenmill.nn.context import Bidirectional
from tokenmill.train.objectives.base import Loss
from tokenmill.train.objectives.next_token import head_loss

if TYPE_CHECKING:
    from tokenmill.data.batch import Batch


class MaskedTokens:
    """Negative log-likelihood of the labels where they stand; a batch comes from ``data.corrupt.MaskTokens``."""

    def __init__(self, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss

    def __call__(self, model: Any, batch: Batch) -> Loss:
        hidden_TC = model.hidden(batch.tokens_T, Bidirectional(batch.lengths, batch.tokens_T.device))
        loss = head_loss(model, hidden_TC, batch.labels_T, self.z_loss)
        metrics = {} if self.z_loss == 0.0 else {"z_loss": float(loss.z_loss)}
        return Loss(loss.loss, batch.num_labels, metrics)
