"""Gopher's quality rules: length, length of words, symbols, bullets, ellipses, words with letters, stop words.

Source: Rae et al. 2021, arXiv 2112.11446, section A.1.1; decisions as datatrove's ``GopherQualityFilter`` makes them
on the same words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenmill.config.parts import Positive, Share
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.stopwords import STOP_WORDS
from tokenmill.data.curate.words import LETTER, LEXICAL, Words, hashes_of, words_of


class GopherOptions(FilterOptions):
    """Limits; ``null`` turns a rule off."""

    min_words: int | None = 50
    """Words that are more than punctuation."""
    max_words: int | None = 100_000
    """Likewise."""
    min_mean_word: Positive | None = 3.0
    """Mean length of a word, characters."""
    max_mean_word: Positive | None = 10.0
    """Likewise."""
    max_symbols: Positive | None = 0.1
    """Number signs for each word, and ellipses for each word."""
    max_bullets: Share | None = 0.9
    """Share of lines that begin with a bullet or hyphen."""
    max_ellipses: Share | None = 0.3
    """Share of lines that end with an ellipsis."""
    min_letter_words: Share | None = 0.8
    """Share of words with a letter."""
    min_stop_words: int | None = 2
    """Different stop words."""
    stop_words: list[str] | None = None
    """Case matters. Without it, those of the document's ``language`` where they are known, else the English ones."""


def build(options: GopherOptions, context: Context) -> Gopher:
    """The step."""
    return Gopher(options)


class Gopher:
    """Drops what breaks one of the rules; reasons as datatrove names them, without their prefix."""

    def __init__(self, options: GopherOptions) -> None:
        self.options = options
        lists = STOP_WORDS if options.stop_words is None else {"en": tuple(options.stop_words)}
        self.stop_hashes = {language: hashes_of(words) for language, words in lists.items() if words}

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        chosen = judged(documents, self.options.languages)
        verdicts = dict(zip((d.id for d in chosen), self.reasons(chosen), strict=True))
        found = {id: reason for id, reason in verdicts.items() if reason is not None}
        return settle(documents, found, tally, tag=self.options.tag)

    def reasons(self, documents: Sequence[Document]) -> list[str | None]:
        """Why each document is dropped; None where it stays."""
        words = words_of(documents)
        lexical_W = (words.kind_W & LEXICAL) != 0
        total = words.count_D.tolist()
        lexical = words.sum(lexical_W).tolist()
        characters = words.sum(words.length_W * lexical_W).tolist()
        letters = words.sum((words.kind_W & LETTER) != 0).tolist()
        stops = self._stop_words(documents, words).tolist()
        counts = zip(total, lexical, characters, letters, stops, strict=True)
        return [self._reason(document.text, *count) for document, count in zip(documents, counts, strict=True)]

    def _reason(self, text: str, total: int, lexical: int, characters: int, letters: int, stops: int) -> str | None:
        o = self.options
        if o.min_words is not None and lexical < o.min_words:
            return "short_doc"
        if o.max_words is not None and lexical > o.max_words:
            return "long_doc"
        if not total:
            return None
        mean = characters / max(lexical, 1)
        if o.min_mean_word is not None and mean < o.min_mean_word:
            return "below_avg_threshold"
        if o.max_mean_word is not None and mean > o.max_mean_word:
            return "above_avg_threshold"
        if o.max_symbols is not None:
            if text.count("#") / total > o.max_symbols:
                return "too_many_hashes"
            if (text.count("...") + text.count("…")) / total > o.max_symbols:
                return "too_many_ellipsis"
        reason = self._lines(text)
        if reason is not None:
            return reason
        if o.min_letter_words is not None and letters / total < o.min_letter_words:
            return "below_alpha_threshold"
        if o.min_stop_words is not None and stops < o.min_stop_words:
            return "enough_stop_words"
        return None

    def _lines(self, text: str) -> str | None:
        """Lines are looked at one by one only where there are enough signs for a rule to be broken."""
        o = self.options
        lines = text.splitlines()
        if o.max_bullets is not None and text.count("-") + text.count("•") > o.max_bullets * len(lines):
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            if bullets / len(lines) > o.max_bullets:
                return "too_many_bullets"
        if o.max_ellipses is not None and text.count("...") + text.count("…") > o.max_ellipses * len(lines):
            ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
            if ellipses / len(lines) > o.max_ellipses:
                return "too_many_end_ellipsis"
        return None

    def _stop_words(self, documents: Sequence[Document], words: Words) -> NDArray[np.int64]:
        """Different stop words of each document, [D]."""
        fixed = self.options.stop_words is not None
        spoken = ["en" if fixed else str(document.meta.get("language", "en")) for document in documents]
        found_D = np.zeros(len(documents), np.int64)
        for language in {name if name in self.stop_hashes else "en" for name in spoken}:
            here_D = np.array([(name if name in self.stop_hashes else "en") == language for name in spoken], bool)
            hashes = self.stop_hashes.get(language, np.empty(0, np.uint64))
            candidates = np.flatnonzero(np.isin(words.hash_W, hashes))
            document_W = np.searchsorted(words.offset_D1, candidates, side="right") - 1
            which = np.searchsorted(np.sort(hashes), words.hash_W[candidates])
            pairs = np.unique(document_W * len(STOP_WORDS) * 64 + which)
            counts_D = np.bincount(pairs // (len(STOP_WORDS) * 64), minlength=len(documents))
            found_D = np.where(here_D, counts_D, found_D)
        return found_D
