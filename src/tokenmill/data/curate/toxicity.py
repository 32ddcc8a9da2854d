"""The step ``toxicity``: obscene and hateful text, by a word list and by a classifier of one's own.

The list alone knows no context: a medical text and an insult share words. By default several different entries and a
share of all words are needed; ``min_hits: 1`` with ``max_share: 0`` is C4's rule, which drops every page with one of
the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenmill.config.parts import Count, Share
from tokenmill.core.errors import MissingFileError
from tokenmill.data.curate.classifier import Judge, loaded
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.lexicon import Lexicon, bundled, of_words
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.words import Words, ngrams, words_of


class ToxicityOptions(FilterOptions):
    """How many words of the list are too many, and whose judgement counts beside it."""

    lexicon: bool = True
    """Use the bundled list of the document's ``language`` (of English where the step ``language`` did not run)."""
    words: str | None = None
    """A file with more entries, one a line."""
    min_hits: Count = 3
    """Least occurrences of entries."""
    max_share: Share = 0.01
    """Share of a document's words that entries may be."""
    classifier: Judge | None = None
    """``{model: FILE, label: toxic}``: a classifier that was trained for it."""
    max_probability: Share = 0.5
    """Above this probability of the classifier's label a document is dropped."""


def build(options: ToxicityOptions, context: Context) -> Toxicity:
    """The step. NotFoundError: no such file of words or classifier."""
    return Toxicity(options)


class Toxicity:
    """Drops for the reason ``lexicon`` or ``classifier``; writes ``meta["toxicity"]`` where a classifier judges."""

    def __init__(self, options: ToxicityOptions) -> None:
        self.options = options
        self.own: Lexicon | None = None
        if options.words is not None:
            file = Path(options.words)
            if not file.is_file():
                raise MissingFileError(f"toxicity.words: no file {file}")
            self.own = of_words(line for line in file.read_text("utf-8").splitlines() if line.strip())
        self.judge = None if options.classifier is None else loaded(options.classifier.model, options.classifier.label)

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        o = self.options
        chosen = judged(documents, o.languages)
        words = words_of(chosen, folded=True)
        hits_D = self.hits(chosen, words)
        bad_D = (hits_D >= o.min_hits) & (hits_D > o.max_share * words.count_D)
        verdicts = {document.id: "lexicon" for document, bad in zip(chosen, bad_D, strict=True) if bad}
        if self.judge is not None:
            model, column = self.judge
            for document, value in zip(chosen, model.probabilities(chosen)[:, column].tolist(), strict=True):
                document.meta["toxicity"] = round(value, 4)
                if value > o.max_probability:
                    verdicts.setdefault(document.id, "classifier")
        return settle(documents, verdicts, tally, tag=o.tag)

    def hits(self, documents: Sequence[Document], words: Words) -> NDArray[np.int64]:
        """Occurrences of entries in each document, [D]."""
        spoken = np.array([str(document.meta.get("language", "en")) for document in documents], np.str_)
        found_D = self._count(words, self.own)
        if self.options.lexicon:
            for language in np.unique(spoken).tolist():
                found_D += np.where(spoken == language, self._count(words, bundled(language)), 0)
        return found_D

    @staticmethod
    def _count(words: Words, lexicon: Lexicon | None) -> NDArray[np.int64]:
        counts = np.zeros(len(words.offset_D1) - 1, np.int64)
        for n, wanted in (lexicon or {}).items():
            hashes, places = ngrams(words, n)
            at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            counts += np.bincount(words.document_W[places[wanted[at] == hashes]], minlength=len(counts))
        return counts
