"""The list of curation steps: name, options class, builder.

Modules are imported when a recipe names the step. A builder is ``build(options, context) -> Step | GlobalStep``; the
options class is a `config.parts.Part`, so that unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tokenmill.config.parts import Part
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.data.curate.step import Context, GlobalStep, Step

_HERE = "tokenmill.data.curate."


@dataclass(frozen=True)
class Entry:
    """One step: where its options class and its builder are (``module:Name``; a module without a dot is of this
    package), and what it does in one line."""

    options: str
    build: str
    about: str

    def options_class(self) -> type[Part]:
        """The class of its options."""
        found: type[Part] = _imported(self.options)
        return found

    def builder(self) -> Callable[[Any, Context], Step | GlobalStep]:
        """The function that makes the step."""
        found: Callable[[Any, Context], Step | GlobalStep] = _imported(self.build)
        return found


STEPS: dict[str, Entry] = {
    "html": Entry("html:HtmlOptions", "html:build", "the main text of web pages"),
    "clean": Entry("clean:CleanOptions", "clean:build", "encodings, invisible characters, white space, boilerplate"),
    "language": Entry("language:LanguageOptions", "language:build", "which language: tag and filter"),
    "gopher": Entry("gopher:GopherOptions", "gopher:build", "Gopher's quality rules"),
    "c4": Entry("c4:C4Options", "c4:build", "C4's rules: lines that end sentences, no code, no boilerplate"),
    "fineweb": Entry("fineweb:FinewebOptions", "fineweb:build", "FineWeb's rules: line ends, short lines, lists"),
    "repetition": Entry("repetition:RepetitionOptions", "repetition:build", "Gopher's repetition rules"),
    "perplexity": Entry("perplexity:PerplexityOptions", "perplexity:build", "what a model finds too odd or too plain"),
    "classifier": Entry(
        "classifier:ClassifierOptions", "classifier:build", "what a classifier of one's own finds good"
    ),
    "toxicity": Entry("toxicity:ToxicityOptions", "toxicity:build", "obscene and hateful text, by list and classifier"),
    "pii": Entry(
        "tokenmill.data.curate.pii.step:PiiOptions", "tokenmill.data.curate.pii.step:build", "personal data and secrets"
    ),
    "decontaminate": Entry(
        "decontaminate:DecontaminateOptions", "decontaminate:build", "what models are evaluated on goes"
    ),
    "exact": Entry("exact:ExactOptions", "exact:build", "equal documents, paragraphs or lines: one stays"),
    "minhash": Entry("minhash:MinHashOptions", "minhash:build", "near duplicates by MinHash: the best copy stays"),
    "simhash": Entry("simhash:SimHashOptions", "simhash:build", "near duplicates by SimHash: the best copy stays"),
    "mix": Entry("mix:MixOptions", "mix:build", "sources in chosen proportions, up to a budget of tokens"),
    "synthesize": Entry("synthesize:SynthesizeOptions", "synthesize:build", "new documents from a served model"),
    "convert": Entry("convert:ConvertOptions", "convert:build", "rows of one format as rows of another"),
    "split": Entry("split:SplitOptions", "split:build", "train, validation, test without near copies across"),
    "balance": Entry("balance:BalanceOptions", "balance:build", "shares of languages or of any column"),
    "tokenize": Entry("tokenize:TokenizeOptions", "tokenize:build", "token shards beside the output, for training"),
}
"""Every step, in the order in which a recipe usually has them."""


def entry(name: str) -> Entry:
    """The step of that name; ConfigError names the nearest one."""
    if name not in STEPS:
        raise ConfigError(f"no step {name!r}{did_you_mean(name, STEPS)}; there are: {', '.join(STEPS)}")
    return STEPS[name]


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module if "." in module else _HERE + module), name)
