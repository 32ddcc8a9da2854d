"""The pieces of a Unigram model in a fixed order and number.

The library learns them in parallel over a hash table, so that scores differ in their last digits from run to run, and
those of characters it found no use for in all of them. Scores are rounded to what a SentencePiece file holds and
ordered; characters outside the alphabet go, the others stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

DIGITS = 4
"""Of a score that are kept behind the point: the differences between runs are near the fifteenth digit."""


def unigram_pieces(
    learned: list[tuple[str, float]], counts: Mapping[str, int], alphabet: Collection[str], room: int
) -> list[tuple[str, float]]:
    """At most `room` pieces, best first.

    Args:
        learned: pieces and their log-probabilities.
        counts: how often each character was seen.
        alphabet: characters that get a piece in any case; pieces with others are left out.
    """
    known, scores = set(alphabet), dict(learned)
    longer = {piece: round(score, DIGITS) for piece, score in learned if len(piece) > 1 and known.issuperset(piece)}
    lowest = min(longer.values(), default=-math.log(sum(counts.values()) + 1))
    # by frequency a character of n in N has log n/N at least; whatever the library made up for unused ones is lower
    singles = {char: round(max(scores.get(char, lowest), lowest), DIGITS) for char in alphabet}
    best = sorted(longer.items(), key=lambda pair: (-pair[1], pair[0]))[: room - len(singles)]
    return sorted([*singles.items(), *best], key=lambda pair: (-pair[1], pair[0]))
