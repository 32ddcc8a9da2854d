"""How far a changed model's next tokens are from the original's: KL divergence, agreement, both perplexities.

Of the original only the last hidden states are kept, since both share the output matrix: quantisation and pruning leave
it alone. Windows and scored positions are those of ``perplexity.py``, so figures compare.

Axes: T tokens of a window · C hidden size · S scored positions · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.core.errors import UsageError
from tokenmill.evals.perplexity import LOGIT_ROWS
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Divergence:
    """All in nats a token, means over the scored positions."""

    kl: float
    """Of the changed model's distribution from the original's: sum of p log(p / q)."""
    kl_stderr: float
    agreement: float
    """Share of positions where both hold the same token for the likeliest."""
    ppl: float
    original_ppl: float
    tokens: int

    def asdict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


class Original:
    """What the original makes of a text, taken before it is changed.

    Args:
        windows: token ids, int64 [n]; of each the second half is scored.
    """

    @torch.inference_mode()
    def __init__(self, model: Decoder, windows: Sequence[Tensor], progress: Progress | None = None) -> None:
        self.windows = [window for window in windows if len(window) >= 4]
        if not self.windows:
            raise UsageError("there is no text to measure on: at least 4 tokens are needed")
        self._hidden = []
        for number, window_T in enumerate(self.windows):
            self._hidden.append(_scored(model, window_T).cpu())
            if progress is not None:
                progress(number + 1, len(self.windows))

    @torch.inference_mode()
    def compare(self, model: Decoder, progress: Progress | None = None) -> Divergence:
        """A changed model, with the same output matrix, beside the original."""
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for number, (window_T, before_SC) in enumerate(zip(self.windows, self._hidden, strict=True)):
            after_SC = _scored(model, window_T)
            next_S = window_T[len(window_T) // 2 + 1 :].to(model.device)
            rows = zip(*(t.split(LOGIT_ROWS) for t in (before_SC.to(model.device), after_SC, next_S)), strict=True)
            parts += [_measures(model, *row) for row in rows]
            if progress is not None:
                progress(number + 1, len(self.windows))
        kl, same, before, after = (torch.cat(column) for column in zip(*parts, strict=True))
        return Divergence(
            kl=kl.mean().item(),
            kl_stderr=kl.std().item() / math.sqrt(len(kl)),
            agreement=same.mean().item(),
            ppl=math.exp(min(after.mean().item(), 700.0)),
            original_ppl=math.exp(min(before.mean().item(), 700.0)),
            tokens=len(kl),
        )


def _scored(model: Decoder, window_T: Tensor) -> Tensor:
    """The hidden states of the second half's positions, [S, C]."""
    hidden_TC = model.hidden(window_T.to(model.device), Packed([len(window_T)], model.device))
    return hidden_TC[len(window_T) // 2 : -1]


def _measures(
    model: Decoder, before_SC: Tensor, after_SC: Tensor, next_S: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL, agreement, and both models' losses at every position, float64 on the CPU."""
    p_SV = model.logits(before_SC).float().log_softmax(-1)
    q_SV = model.logits(after_SC).float().log_softmax(-1)
    kl_S = F.kl_div(q_SV, p_SV, reduction="none", log_target=True).sum(-1)
    same_S = p_SV.argmax(-1) == q_SV.argmax(-1)
    losses = [-log_SV.gather(1, next_S[:, None])[:, 0] for log_SV in (p_SV, q_SV)]
    found = [part.double().cpu() for part in (kl_S, same_S, *losses)]
    return found[0], found[1], found[2], found[3]


def windows_of(ids: Sequence[int], ctx: int, bos_token_id: int | None = None) -> list[Tensor]:
    """Whole windows of a text, as ``perplexity`` cuts them: BOS takes the place of each one's first token."""
    windows = [torch.tensor(ids[start : start + ctx]) for start in range(0, len(ids) - ctx + 1, ctx)]
    if bos_token_id is not None:
        for window_T in windows:
            window_T[0] = bos_token_id
    return windows
