"""Words that most readers find obscene or hateful, as hashes: nobody has to read them here.

``lexicon.json`` holds, by language, the hashes (`words.hashes_of`, folded) of the single words, and of the runs of
up to six, in the List of Dirty, Naughty, Obscene and Otherwise Bad Words (Shutterstock, CC BY 4.0, 28 languages):
the list that C4 was filtered with. Entries that are ordinary words too (``sex``, ``anus``, ``shit`` as part of another
word) are as the list has them; single hits therefore say little.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files

import numpy as np

from tokenmill.data.curate.step import Document
from tokenmill.data.curate.words import U64, ngrams, words_of

LONGEST = 6
"""Words in a run; longer entries are left out."""

Lexicon = Mapping[int, U64]
"""Sorted hashes, by how many words a run has."""


@cache
def bundled(language: str) -> Lexicon | None:
    """The list of a language (ISO 639-1); None where there is none."""
    found = _file().get(language)
    if found is None:
        return None
    return {
        int(n): np.sort(np.array([int(word, 16) for word in words.split()], np.uint64)) for n, words in found.items()
    }


def languages() -> list[str]:
    """Languages that there are lists of."""
    return sorted(_file())


@cache
def _file() -> dict[str, dict[str, str]]:
    text = files("tokenmill.data.curate").joinpath("lexicon.json").read_text()
    found: dict[str, dict[str, str]] = json.loads(text)
    return found


def of_words(entries: Iterable[str]) -> Lexicon:
    """A lexicon of one's own: an entry a word, or a run of up to six."""
    words = words_of([Document("", entry) for entry in entries], folded=True)
    counts = words.count_D
    found: dict[int, U64] = {}
    for n in range(1, LONGEST + 1):
        hashes, places = ngrams(words, n)
        whole = hashes[counts[words.document_W[places]] == n]
        if len(whole):
            found[n] = np.unique(whole)
    return found
