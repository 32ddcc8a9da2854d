"""Perplexity as llama-perplexity computes it, so that figures compare.

The text is cut into windows of ``ctx`` tokens; each is read on its own, and the second half of it is scored, so that
every scored token has at least half a window before it. What is left over at the end is not used. Where the tokenizer
begins texts with a BOS token, it takes the place of each window's first. Source: llama.cpp ``tools/perplexity``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tokenmill.core.errors import UsageError
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder

LOGIT_ROWS = 256  # positions whose scores over the vocabulary are held at once: bounds the memory of a long window


@dataclass(frozen=True)
class PerplexityResult:
    ppl: float
    stderr: float
    """Standard error of ``ppl``, from the spread of the scored tokens."""
    bits_per_byte: float
    """Bits that the model needs for a byte of the scored text: compares models with different vocabularies."""
    tokens: int
    """How many tokens were scored."""


@torch.inference_mode()
def perplexity(
    model: Decoder,
    token_ids: Sequence[int],
    ctx: int = 512,
    *,
    byte_lengths: Sequence[int],
    bos_token_id: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score a text given as ids. ``byte_lengths``: UTF-8 length of each token. ``progress``: windows done, of all."""
    if not 4 <= ctx <= model.config.max_position:
        raise UsageError(f"ctx must be from 4 to the model's {model.config.max_position} tokens, not {ctx}")
    windows = len(token_ids) // ctx
    if windows == 0:
        raise UsageError(f"the text has {len(token_ids)} tokens, fewer than one window of {ctx}; use a smaller ctx")
    losses: list[torch.Tensor] = []
    scored_bytes = 0
    first = ctx // 2
    for window in range(windows):
        ids = list(token_ids[window * ctx : (window + 1) * ctx])
        scored_bytes += sum(byte_lengths[window * ctx + first + 1 : (window + 1) * ctx])
        if bos_token_id is not None:
            ids[0] = bos_token_id
        tokens_T = torch.tensor(ids, device=model.device)
        hidden_TC = model.hidden(tokens_T, Packed([ctx], model.device))
        scored = zip(hidden_TC[first : ctx - 1].split(LOGIT_ROWS), tokens_T[first + 1 :].split(LOGIT_ROWS), strict=True)
        for hidden_SC, next_S in scored:  # S: some of the scored positions
            logits_SV = model.logits(hidden_SC).float()
            losses.append(F.cross_entropy(logits_SV, next_S, reduction="none").double().cpu())
        if progress is not None:
            progress(window + 1, windows)
    nats = torch.cat(losses)
    ppl = math.exp(min(nats.mean().item(), 700.0))
    stderr = ppl * nats.std().item() / math.sqrt(len(nats))
    bits_per_byte = nats.sum().item() / math.log(2) / max(scored_bytes, 1)
    return PerplexityResult(ppl, stderr, bits_per_byte, len(nats))
