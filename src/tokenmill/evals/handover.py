"""Whether a model that was written for another program still is that model: both read a short text, and their next
tokens are compared. The last step of an export.

Axes: T tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenmill.core.errors import FormatError
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder
from tokenmill.text.compare import sample_texts
from tokenmill.text.tokenizer import Tokenizer

PROBE = "English"
"""Which of the bundled texts both read."""
MAX_TOKENS = 256


@dataclass(frozen=True)
class Agreement:
    """How alike two models continue a text, over all its tokens."""

    kl: float
    """Nats a token, of the written model's distribution from the original's."""
    agreement: float
    """Share of places where both hold the same token for the likeliest."""
    tokens: int

    def asdict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def probe(tokenizer: Tokenizer) -> list[int]:
    """The ids of the text that both read."""
    return tokenizer.encode("\n".join(sample_texts()[PROBE]), parse_special=False)


@torch.inference_mode()
def next_tokens(model: Decoder, ids: Sequence[int]) -> Tensor:
    """Log-probabilities of what follows each of the first `MAX_TOKENS` ids: float32 [T, V]."""
    ids = list(ids[: min(MAX_TOKENS, model.config.max_position)])
    tokens_T = torch.tensor(ids, device=model.device)
    return model(tokens_T, Packed([len(ids)], model.device)).float().log_softmax(-1).cpu()


def agree(before_TV: Tensor, after_TV: Tensor) -> Agreement:
    """Compare what two models hold likely at the same places."""
    kl_T = F.kl_div(after_TV, before_TV, reduction="none", log_target=True).sum(-1)
    same_T = before_TV.argmax(-1) == after_TV.argmax(-1)
    return Agreement(kl_T.mean().item(), same_T.float().mean().item(), len(before_TV))


def check(found: Agreement, most: float, what: str) -> None:
    """FormatError where a written model is another one: more than `most` nats away, or not a number."""
    if not found.kl <= most:
        raise FormatError(
            what,
            "check",
            f"the written model is {found.kl:.3g} nats a token from the original, at most {most:g} are expected; "
            "nothing was left behind",
        )
