"""Byte-pair encoding, learned the slow and obvious way: what the fast trainer has to agree with.

Sennrich et al. 2016 (arXiv 1508.07909), over words with counts: count all neighbouring pairs, merge the most frequent
one everywhere, again. Counts are Python's integers, which never overflow (the library's are 32 bits wide, see
``build.MOST_BYTES``). **Ties**: of pairs that are equally frequent the one with the smaller left id is merged, then the
one with the smaller right id. Ids: the alphabet by code point, then merges in the order in which they are learned.

Two pairs may spell the same token (``ab``+``c`` and ``a``+``bc``): both are merges, the token has one id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

Pair = tuple[int, int]


def learn_bpe(
    words: Mapping[str, int], merges: int, *, alphabet: Iterable[str] = (), min_frequency: int = 2
) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens by id and the merges, best first.

    Args:
        words: a word, spelled in characters of the alphabet (byte-level: see `text.pieces.ALPHABET`) → how often.
        merges: new tokens to be learned at most.
        alphabet: characters that are tokens even if no word has them.
        min_frequency: pairs that are seen less often are not merged.
    """
    tokens = sorted({*alphabet, *(char for word in words for char in word)}, key=ord)
    ids = {token: number for number, token in enumerate(tokens)}
    most = len(tokens) + merges
    spelled = [([ids[char] for char in word], count) for word, count in words.items()]
    learned: list[Pair] = []
    while len(tokens) < most:
        pairs = count_pairs(spelled)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < min_frequency:
            break
        token = tokens[best[0]] + tokens[best[1]]
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        learned.append(best)
        spelled = [(merged(word, best, ids[token]), count) for word, count in spelled]
    return tokens, [(tokens[left], tokens[right]) for left, right in dict.fromkeys(learned)]


def count_pairs(words: Iterable[tuple[list[int], int]]) -> Counter[Pair]:
    """How often each two ids stand side by side; ``aaa`` has the pair ``aa`` twice."""
    pairs: Counter[Pair] = Counter()
    for word, count in words:
        for left, right in pairwise(word):
            pairs[left, right] += count
    return pairs


def merged(word: list[int], pair: Pair, new: int) -> list[int]:
    """The word with every occurrence of `pair` replaced, from the left."""
    out: list[int] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out
