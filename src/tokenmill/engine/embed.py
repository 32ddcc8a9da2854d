"""Vectors from a decoder: the mean of a text's last hidden states, normalised to length one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenmill.core.errors import OutOfContextError, UsageError
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder


@torch.inference_mode()
def embed(model: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """One float32 row a prompt, [len(prompts), hidden_size], on the CPU. An empty or over-long prompt is an error."""
    for number, ids in enumerate(prompts):
        if not ids:
            raise UsageError(f"text {number} has no tokens; there is nothing to embed")
        if len(ids) > model.config.max_position:
            raise OutOfContextError(f"text {number} has {len(ids)} tokens, the model takes {model.config.max_position}")
    rows = []
    for ids in prompts:
        hidden_TC = model.hidden(torch.tensor(ids, device=model.device), Packed([len(ids)], model.device))
        rows.append(torch.nn.functional.normalize(hidden_TC.float().mean(0), dim=0).cpu())
    return torch.stack(rows) if rows else torch.empty(0, model.config.hidden_size)
