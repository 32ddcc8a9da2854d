"""The step ``perplexity``: text that a model finds too odd (gibberish, tables) or too plain (templates) goes.

The model runs where the command line puts it: the step is handed a function ``perplexity(model, texts) -> values``.
Wenzek et al. 2020 (CCNet, arXiv 1911.00359) drop by the thirds of such values; limits depend on the model, so look at
the values with ``tag: true`` first.
"""

from __future__ import annotations

import math

from tokenmill.config.parts import Count, Positive
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.step import Context, Document, Tally


class PerplexityOptions(FilterOptions):
    """Which model, and which values stay."""

    model: str = "smollm2:135m"
    """A model's name, folder or file."""
    max: Positive | None = None
    """Perplexity a token above which a document is dropped."""
    min: Positive | None = None
    """Likewise below; memorised and repeated text has very low values."""
    characters: Count = 2000
    """How much of a document's beginning is scored."""


def build(options: PerplexityOptions, context: Context) -> Perplexity:
    """The step. ConfigError: neither limit nor ``tag``. UsageError: nobody handed in a model."""
    if options.max is None and options.min is None and not options.tag:
        raise ConfigError(
            "perplexity: give max, min or tag: true; without them every document would be scored for nothing"
        )
    if "perplexity" not in context.services:
        raise UsageError(
            "perplexity needs a model: run it with `tokenmill data run`, or hand in services={'perplexity': …}"
        )
    return Perplexity(options, context)


class Perplexity:
    """Writes ``meta["perplexity"]`` and drops by it."""

    def __init__(self, options: PerplexityOptions, context: Context) -> None:
        self.options = options
        self.score = context.services["perplexity"]

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        o = self.options
        chosen = judged(documents, o.languages)
        values = self.score(o.model, [document.text[: o.characters] for document in chosen])
        verdicts = {}
        for document, value in zip(chosen, values, strict=True):
            document.meta["perplexity"] = round(float(value), 3) if math.isfinite(value) else None
            if o.max is not None and not value <= o.max:  # not a number: nothing to score
                verdicts[document.id] = "above_max"
            elif o.min is not None and value < o.min:
                verdicts[document.id] = "below_min"
        return settle(documents, verdicts, tally, tag=o.tag)
