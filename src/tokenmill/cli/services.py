"""What curation steps ask for that needs a model. Module-level functions, since worker processes are sent their names;
each process loads a model once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.llm import LLM


@cache
def _model(name: str) -> LLM:
    from tokenmill.llm import LLM

    return LLM(name)


def perplexity(model: str, texts: Sequence[str]) -> list[float]:
    """Perplexity a token of each text; not a number where there is nothing to predict. A text beyond the model's
    context is cut in half until it fits."""
    from tokenmill.core.errors import OutOfContextError

    found = []
    for text in texts:
        value = math.nan
        while text:
            try:
                (score,) = _model(model).score([text])
            except OutOfContextError:
                text = text[: len(text) // 2]
                continue
            predicted = sum(one is not None for one in score.logprobs)
            value = math.exp(-score.total / predicted) if predicted else math.nan
            break
        found.append(value)
    return found
