"""Scores from a reward model: one number a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.nn.decoder import Decoder
from tokenmill.nn.scorer import Scorer

TOKENS_AT_ONCE = 4096


@torch.inference_mode()
def reward(model: Decoder, texts: Sequence[Sequence[int]]) -> list[float]:
    """The score of each text, given as token ids; they are packed, so a score does not depend on its company.

    UsageError where the model is no reward model or a text is empty; OutOfContextError where one is too long.
    """
    if not isinstance(model, Scorer):
        raise UsageError("this model writes text and scores none; train one that does with the recipe reward")
    for number, ids in enumerate(texts):
        if not ids:
            raise UsageError(f"text {number} has no tokens; there is nothing to score")
        if len(ids) > model.config.max_position:
            raise OutOfContextError(f"text {number} has {len(ids)} tokens, the model takes {model.config.max_position}")
        if bad := [i for i in ids if not 0 <= i < model.config.vocab_size]:
            raise UsageError(f"text {number}: token ids {bad[:5]} are outside the vocabulary")
    scores: list[float] = []
    for group in _groups(texts):
        tokens_T = torch.tensor([i for ids in group for i in ids], device=model.device)
        scores += model.scores(tokens_T, [len(ids) for ids in group]).tolist()
    return scores


def _groups(texts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Neighbours that go through the model together."""
    groups: list[list[Sequence[int]]] = []
    size = TOKENS_AT_ONCE + 1
    for ids in texts:
        if size + len(ids) > TOKENS_AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(ids)
        size += len(ids)
    return groups
