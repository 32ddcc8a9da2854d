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

TOKENS_AT_ONCE = 2048
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
        self._hidden: list[Tensor] = []
        for some in _together(self.windows):
            self._hidden += [hidden_SC.cpu() for hidden_SC in _scored(model, some)]
            if progress is not None:
                progress(len(self._hidden), len(self.windows))

    @torch.inference_mode()
    def compare(self, model: Decoder, progress: Progress | None = None) -> Divergence:
        """A changed model, with the same output matrix, beside the original."""
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        before, done = iter(self._hidden), 0
        for some in _together(self.windows):
            for window_T, after_SC in zip(some, _scored(model, some), strict=True):
                next_S = window_T[len(window_T) // 2 + 1 :].to(model.device)
                three = (next(before).to(model.device), after_SC, next_S)
                rows = zip(*(t.split(LOGIT_ROWS) for t in three), strict=True)
                parts += [_measures(model, *row) for row in rows]
            done += len(some)
            if progress is not None:
                progress(done, len(self.windows))
        kl, same, theirs, ours = (torch.cat(column) for column in zip(*parts, strict=True))
        return Divergence(
            kl=kl.mean().item(),
            kl_stderr=kl.std().item() / math.sqrt(len(kl)),
            agreement=same.mean().item(),
            ppl=math.exp(min(ours.mean().item(), 700.0)),
            original_ppl=math.exp(min(theirs.mean().item(), 700.0)),
            tokens=len(kl),
        )


def _together(windows: Sequence[Tensor]) -> list[list[Tensor]]:
    """Windows that go through a model at once: a quantised one unpacks its weights for every pass."""
    found: list[list[Tensor]] = []
    for window_T in windows:
        if not found or sum(map(len, found[-1])) + len(window_T) > TOKENS_AT_ONCE:
            found.append([])
        found[-1].append(window_T)
    return found


def _scored(model: Decoder, windows: Sequence[Tensor]) -> list[Tensor]:
    """The hidden states of the second half's positions of each window, [S, C]."""
    lengths = [len(window_T) for window_T in windows]
    hidden_TC = model.hidden(torch.cat(list(windows)).to(model.device), Packed(lengths, model.device))
    each = hidden_TC.split(lengths)
    return [one_TC[length // 2 : -1] for one_TC, length in zip(each, lengths, strict=True)]


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
