"""Distillation: the student's distributions of the next token, and its hidden states, are drawn to a teacher's.

The loss of a token is ``weight`` times the divergence (times temperature squared) plus the rest of 1 times the
cross-entropy of the data, plus ``hidden_weight`` times the distance of hidden states: the squared difference as a
share of the teacher's square, a mean over the student's layers (DistilBERT and TinyBERT draw states together; the
share makes a weight mean the same in every layer, whose norms grow with the depth). What is evaluated is the data's
likelihood alone, so that held-out figures compare with those of a model that had no teacher. What the student wrote
itself (``distill.lmbda``) is learned by the divergence alone, and measured apart.

Sources: Hinton 2015 (1503.02531), Jiao 2020 (TinyBERT, 1909.10351), Agarwal 2024 (GKD, 2306.13649).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tokenmill.config.parts import DistillConfig
from tokenmill.data.taught import TaughtBatch
from tokenmill.nn.context import Packed
from tokenmill.nn.embedding import Embedding
from tokenmill.nn.linear import Linear
from tokenmill.ops.cross_entropy import CHUNK_VALUES
from tokenmill.ops.distillation import (
    Distilled,
    Divergence,
    Taught,
    chunked_distillation,
    linear_distillation,
)
from tokenmill.ops.distillation import Teacher as Rows
from tokenmill.train.objectives.base import Loss, Metric
from tokenmill.train.objectives.next_token import NextToken
from tokenmill.train.teacher import Teacher, states_of

if TYPE_CHECKING:
    from tokenmill.data.batch import Batch
    from tokenmill.nn.decoder import Decoder


def head_distillation(model: Decoder, hidden_TC: Tensor, labels_T: Tensor, teacher: Rows, how: Divergence) -> Distilled:
    """The distance of what the model's head makes of hidden states, plain or adapted, to what a teacher says."""
    config = model.config
    owner: nn.Module = model.embed if model.head is None else model.head
    if type(owner) not in (Embedding, Linear):
        rows = max(1, CHUNK_VALUES // config.vocab_size)
        return chunked_distillation(model.logits, hidden_TC, labels_T, teacher, how, rows=rows)
    return linear_distillation(
        hidden_TC,
        cast(Tensor, owner.weight),
        labels_T,
        teacher,
        how,
        bias_V=getattr(owner, "bias", None),
        scale=config.logit_scale,
        softcap=config.logit_softcap,
    )


class Distill:
    """``teacher``: who is asked in every step; None where the batches carry its lists. ``tokens``: how many there are;
    rows of the student's table behind them are padding."""

    def __init__(self, config: DistillConfig, teacher: Teacher | None, tokens: int) -> None:
        self.config, self.teacher, self.tokens = config, teacher, tokens
        self.how = Divergence(config.divergence, config.temperature, config.weight, config.beta)
        self.of_written = replace(self.how, weight=1.0)  # whose labels the student drew itself: no news for it

    def __call__(self, model: Any, batch: Batch) -> Loss:
        mine, theirs = self._layers(model)
        with states_of(model, mine) as states:
            hidden_TC = model.hidden(batch.tokens_T, Packed(batch.lengths, batch.tokens_T.device))
        taught_states: list[Tensor] = []
        if isinstance(batch, TaughtBatch):
            rows = _listed(batch, min(self.tokens, model.config.vocab_size))
        else:
            assert self.teacher is not None
            lesson = self.teacher.lesson(batch, theirs)
            rows, taught_states = lesson, lesson.states
        how, name = (self.of_written, "written_") if batch.written else (self.how, "")
        found = head_distillation(model, hidden_TC, batch.labels_T, rows, how)
        loss, count = found.loss, float(batch.num_labels)
        metrics: dict[str, Metric] = {
            f"{name}nll": (float(found.nll_T.sum()), count),
            f"{name}divergence": (float(found.divergence_T.sum()), count),
        }
        if states:
            distance = _distance(model, states, taught_states, batch.labels_T)
            loss = loss + self.config.hidden_weight * distance
            metrics["hidden"] = float(distance.detach())
        return Loss(loss, batch.num_labels, metrics)

    def evaluated(self) -> NextToken:
        """The objective of evaluations."""
        return NextToken()

    def _layers(self, model: Any) -> tuple[list[int], list[int]]:
        """The layers whose states are compared: all of the student's, and those at the same depth of the teacher."""
        if not self.config.hidden_weight or self.teacher is None:
            return [], []
        return matched_layers(len(model.layers), self.teacher.network.config.num_layers)


def matched_layers(mine: int, theirs: int) -> tuple[list[int], list[int]]:
    """Every layer of a student, and the teacher's that ends at the same share of the depth; last goes with last."""
    return list(range(mine)), [max(1, round((i + 1) * theirs / mine)) - 1 for i in range(mine)]


def add_projections(model: Any, teacher: Teacher, *, seed: int) -> None:
    """Give a student whose width is another than its teacher's a matrix for each layer, to be trained along.

    They are the module ``taught`` of the network, which checkpoints hold and model files do not.
    """
    width, theirs = model.config.hidden_size, teacher.network.config.hidden_size
    if width == theirs:
        return
    draw = torch.Generator().manual_seed(seed)
    projections = nn.ModuleList(Linear(width, theirs) for _ in model.layers)
    for projection in projections:
        values_CC = torch.randn(theirs, width, generator=draw) * width**-0.5
        projection.weight = nn.Parameter(values_CC.to(model.device, model.dtype))
    model.taught = projections


def _listed(batch: TaughtBatch, width: int) -> Rows:
    return lambda rows: Taught(batch.logprobs_TK[rows], batch.ids_TK[rows], width)


def _distance(model: Any, states: list[Tensor], theirs: list[Tensor], labels_T: Tensor) -> Tensor:
    """Squared differences of hidden states as shares of the teacher's squares: the mean over layers, the sum over
    labelled tokens."""
    counted_T = labels_T != -100
    projections = getattr(model, "taught", None) or [nn.Identity()] * len(states)
    shares = []
    for state_TC, their_TC, projection in zip(states, theirs, projections, strict=True):
        aim_NC = their_TC[counted_T].float()
        missing_N = (projection(state_TC[counted_T]).float() - aim_NC).square().sum(-1)
        shares.append((missing_N / aim_NC.square().sum(-1).clamp(min=1e-12)).sum())
    return torch.stack(shares).mean()
