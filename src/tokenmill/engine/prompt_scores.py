"""Log-probabilities of a prompt's own tokens, from the hidden states of a pass.

Axes: Q tokens of the pass · C hidden size · V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenmill.engine.request import Request
from tokenmill.engine.sampler import logprobs_of
from tokenmill.nn.decoder import Decoder

ROWS = 64  # scored at a time: 64 rows over a vocabulary of 150,000 words are 38 MB in float32


def score_prompt(model: Decoder, request: Request, start: int, hidden_QC: Tensor) -> None:
    """Add what positions ``start`` on say about the prompt's next tokens to the request, if it asked for that.

    Adds nothing twice: a position that comes again after preemption, or that another answer to the same prompt has
    scored, is passed over.
    """
    first, top = request.unscored, request.params.prompt_logprobs
    if first is None or top is None:
        return
    if not request.prompt_logprobs:
        request.prompt_logprobs.append(None)  # nothing comes before the first token
    end = min(start + len(hidden_QC), len(request.prompt) - 1)
    for row in range(first, end, ROWS):
        logits_QV = model.logits(hidden_QC[row - start : min(row + ROWS, end) - start]).float()
        log_p_QV = torch.log_softmax(logits_QV, dim=-1)
        for offset, log_p_V in enumerate(log_p_QV):
            request.prompt_logprobs.append(logprobs_of(log_p_V, request.prompt[row + offset + 1], top))
