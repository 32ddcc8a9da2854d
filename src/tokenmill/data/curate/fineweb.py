"""FineWeb's own rules: lines that end a sentence, short lines, repeated lines, lists.

Source: Penedo et al. 2024, arXiv 2406.17557; decisions as datatrove's ``FineWebQualityFilter`` makes them on the same
words.
"""

from __future__ import annotations

from tokenmill.config.parts import Count, Positive, Share
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.punctuation import TERMINAL
from tokenmill.data.curate.repetition import duplicates
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.words import words_of


class FinewebOptions(FilterOptions):
    """Limits; ``null`` turns a rule off."""

    min_punctuated_lines: Share | None = 0.12
    """Share of the lines that end with a character that ends sentences."""
    max_short_lines: Share | None = 0.67
    """Share of the lines of at most ``short_line`` characters."""
    short_line: Count = 30
    """Characters."""
    max_duplicate_characters: Share | None = 0.01
    """Share of the characters in lines that stood before."""
    max_newlines: Positive | None = 0.3
    """Line breaks for each word."""


def build(options: FinewebOptions, context: Context) -> Fineweb:
    """The step."""
    return Fineweb(options)


class Fineweb:
    """Drops what breaks one of the rules; reasons as datatrove names them."""

    def __init__(self, options: FinewebOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        chosen = judged(documents, self.options.languages)
        counts = words_of(chosen).count_D.tolist()
        verdicts = {}
        for document, count in zip(chosen, counts, strict=True):
            reason = self.reason(document.text, count)
            if reason is not None:
                verdicts[document.id] = reason
        return settle(documents, verdicts, tally, tag=self.options.tag)

    def reason(self, text: str, words: int) -> str | None:
        """Why a text of so many words is dropped; None where it stays."""
        o = self.options
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "empty"
        if o.min_punctuated_lines is not None:
            punctuated = sum([line[-1] in TERMINAL for line in lines])
            if punctuated / len(lines) < o.min_punctuated_lines:
                return "line_punct_ratio"
        if o.max_short_lines is not None:
            short = sum([len(line) <= o.short_line for line in lines])
            if short / len(lines) > o.max_short_lines:
                return "short_line_ratio"
        newlines = text.count("\n")
        if o.max_duplicate_characters is not None:
            _, characters = duplicates(lines)
            if characters / (len(text) - newlines) > o.max_duplicate_characters:
                return "char_dup_ratio"
        if o.max_newlines is not None and newlines / max(words, 1) > o.max_newlines:
            return "list_ratio"
        return None
