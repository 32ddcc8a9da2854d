"""Gopher's repetition rules: lines, paragraphs and runs of words that come again and again.

Source: Rae et al. 2021, arXiv 2112.11446, table A1; decisions as datatrove's ``GopherRepetitionFilter`` makes them on
the same words. Runs of words are counted for the whole batch by sorting their hashes; a document is looked at more
closely only where an upper bound of a rule's value is above its limit, which few are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tokenmill.config.parts import Count, Share
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.words import U64, Words, ngrams, words_of

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


class RepetitionOptions(FilterOptions):
    """Limits, each a share of its document; ``null`` (or an n-gram left out) turns a rule off."""

    max_duplicate_lines: Share | None = 0.3
    """Lines that stood before."""
    max_duplicate_paragraphs: Share | None = 0.3
    """Paragraphs that stood before."""
    max_duplicate_line_characters: Share | None = 0.2
    """Characters in such lines."""
    max_duplicate_paragraph_characters: Share | None = 0.2
    """Characters in such paragraphs."""
    top_ngrams: dict[Count, Share] = Field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    """Words in a run: share of the characters in the run that is the most frequent."""
    duplicate_ngrams: dict[Count, Share] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )
    """Words in a run: share of the characters in runs that stood before, none counted twice."""


def build(options: RepetitionOptions, context: Context) -> Repetition:
    """The step."""
    return Repetition(options)


class Repetition:
    """Drops what repeats itself; reasons as datatrove names them."""

    def __init__(self, options: RepetitionOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        chosen = judged(documents, self.options.languages)
        found = {d.id: reason for d, reason in zip(chosen, self.reasons(chosen), strict=True) if reason is not None}
        return settle(documents, found, tally, tag=self.options.tag)

    def reasons(self, documents: Sequence[Document]) -> list[str | None]:
        """Why each document is dropped; None where it stays."""
        found = [self._lines(document.text) for document in documents]
        words = words_of(documents)
        size_D = np.array([max(len(document.text), 1) for document in documents], np.float64)
        for n, limit in self.options.top_ngrams.items():
            for number in _top(words, n, size_D, limit):
                found[number] = found[number] or f"top_{n}_gram"
        limits = sorted(self.options.duplicate_ngrams.items())
        for number in _repeating(words, limits[0][0]) if limits else []:
            if found[number] is None:
                found[number] = _repeated(_One.of(words, number), limits, float(size_D[number]))
        return found

    def _lines(self, text: str) -> str | None:
        o = self.options
        if not text:
            return "empty"
        paragraphs = _PARAGRAPHS.split(text.strip())
        count, characters = duplicates(paragraphs)
        if o.max_duplicate_paragraphs is not None and count / len(paragraphs) > o.max_duplicate_paragraphs:
            return "dup_para_frac"
        limit = o.max_duplicate_paragraph_characters
        if limit is not None and characters / len(text) > limit:
            return "dup_para_char_frac"
        lines = _LINES.split(text)
        count, characters = duplicates(lines)
        if o.max_duplicate_lines is not None and count / len(lines) > o.max_duplicate_lines:
            return "dup_line_frac"
        limit = o.max_duplicate_line_characters
        if limit is not None and characters / len(text) > limit:
            return "dup_line_char_frac"
        return None


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many of the parts stood before, and their characters."""
    different = set(parts)
    count = len(parts) - len(different)
    if not count:
        return 0, 0
    return count, sum(map(len, parts)) - sum(map(len, different))


def _keys(words: Words, n: int) -> tuple[U64, NDArray[np.int64], int]:
    """Hash of each run with its document's number in the top bits; the runs' places; how many bits the hash has."""
    hashes, places = ngrams(words, n)
    bits = 64 - max(1, (len(words.offset_D1) - 1).bit_length())
    document = words.document_W[places].astype(np.uint64)
    return (document << np.uint64(bits)) | (hashes >> np.uint64(64 - bits)), places, bits


def _top(words: Words, n: int, size_D: NDArray[np.float64], limit: float) -> list[int]:
    """Documents whose most frequent run of `n` words has more than `limit` of the characters."""
    keys, _, bits = _keys(words, n)
    if not len(keys):
        return []
    keys = np.sort(keys)
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    counts = np.diff(np.concatenate((begins, [len(keys)])))
    document = (keys[begins] >> np.uint64(bits)).astype(np.int64)
    most_D = np.zeros(len(size_D), np.int64)
    np.maximum.at(most_D, document, counts)
    longest_D = np.zeros(len(size_D), np.int64)
    filled = np.flatnonzero(words.count_D)
    longest_D[filled] = np.maximum.reduceat(words.length_W, words.offset_D1[filled])
    bound_D = most_D * (n * longest_D + n - 1)
    suspects: list[int] = np.flatnonzero(bound_D > limit * size_D).tolist()
    return [number for number in suspects if _One.of(words, number).top(n) / size_D[number] > limit]


def _repeating(words: Words, n: int) -> list[int]:
    """Documents in which some run of `n` words comes twice."""
    keys, _, bits = _keys(words, n)
    keys = np.sort(keys)
    twice = keys[1:][keys[1:] == keys[:-1]]
    return [int(number) for number in np.unique(twice >> np.uint64(bits))]


@dataclass(frozen=True, slots=True)
class _One:
    """The words of one document."""

    words: Words

    @classmethod
    def of(cls, words: Words, number: int) -> _One:
        here = slice(int(words.offset_D1[number]), int(words.offset_D1[number + 1]))
        offset = np.array((0, here.stop - here.start))
        return cls(Words(offset, words.start_W[here], words.length_W[here], words.kind_W[here], words.hash_W[here]))

    def top(self, n: int) -> int:
        """Characters in the most frequent run of `n` words, spaces between them counted; the earliest of equals."""
        hashes, places = ngrams(self.words, n)
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        winner = first[counts == counts.max()].min()
        length = int(self.words.length_W[places[winner] : places[winner] + n].sum()) + n - 1
        return length * int(counts.max())


def _repeated(one: _One, limits: Sequence[tuple[int, float]], size: float) -> str | None:
    """Which of the limits (words in a run, share) runs that stood before go beyond; the first, None where none.

    What is covered by such runs bounds from above what is counted, and shrinks as runs grow: a run that repeats is made
    of shorter ones that do.
    """
    for place, (n, limit) in enumerate(limits):
        hashes, _ = ngrams(one.words, n)
        covered = _covered(one.words.length_W, hashes, n)
        if covered <= min(least for _, least in limits[place:]) * size:
            return None
        if covered > limit * size and _counted(one.words.length_W, hashes, n) / size > limit:
            return f"duplicated_{n}_n_grams"
    return None


def _covered(length_W: NDArray[np.int64], hashes: U64, n: int) -> int:
    """Characters of words in any run that stood before."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = order[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return 0
    edges = np.bincount(again, minlength=len(length_W) + 1) - np.bincount(again + n, minlength=len(length_W) + 1)
    return int(length_W[np.cumsum(edges[:-1]) > 0].sum())


def _counted(length_W: NDArray[np.int64], hashes: U64, n: int) -> int:
    """Characters in runs that stood before, from left to right, each character once."""
    total = np.concatenate(([0], np.cumsum(length_W))).tolist()
    seen: set[int] = set()
    values, place, characters = hashes.tolist(), 0, 0
    while place < len(values):
        if values[place] in seen:
            characters += total[place + n] - total[place]
            place += n
        else:
            seen.add(values[place])
            place += 1
    return characters
