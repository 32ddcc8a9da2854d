"""The step ``balance``: how much of each language (or source, or any column's value) stays.

Shares follow n^alpha as in multilingual training (Conneau et al. 2020, arXiv 1911.02116): 1 leaves them as they are, 0
makes them equal; nothing is repeated, so large values are thinned out and the smallest stays whole. Which documents
stay follows from the recipe's seed and the document alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenmill.config.parts import Count, Part, Share
from tokenmill.data.curate.step import Context, Document, Tally

_SHARES = "shares.json"


class BalanceOptions(Part):
    """What is balanced and how much."""

    by: str = "language"
    """Column whose values are balanced; documents without it count as one value."""
    alpha: Share = 0.3
    """1 keeps the shares, 0 makes all equal."""
    max_characters: Count | None = None
    """Most that any value may have, in characters."""


def build(options: BalanceOptions, context: Context) -> Balance:
    """The step."""
    return Balance(options, context.seed)


class Balance:
    """Counts characters of each value, decides on the share of each, and lets documents through by a hash."""

    def __init__(self, options: BalanceOptions, seed: int) -> None:
        self.options, self.seed = options, seed

    def observe(self, documents: list[Document]) -> bytes:
        """Characters of each value, as JSON."""
        counts: Counter[str] = Counter()
        for document in documents:
            counts[self._value(document)] += len(document.text)
        return json.dumps(counts, sort_keys=True).encode()

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """Share of each value's characters that stays."""
        counts: Counter[str] = Counter()
        for file in observed:
            counts.update(json.loads(file.read_bytes() or b"{}"))
        (folder / _SHARES).write_text(json.dumps(self.shares(counts), sort_keys=True))

    def shares(self, counts: Counter[str]) -> dict[str, float]:
        """Share of each value that stays, from how many characters it has."""
        present = {value: count for value, count in counts.items() if count > 0}
        if not present:
            return {}
        # the largest common factor for which no value has to be repeated
        factor = min(count ** (1 - self.options.alpha) for count in present.values())
        wanted = {value: factor * count**self.options.alpha for value, count in present.items()}
        most = self.options.max_characters or math.inf
        return {value: min(wanted[value], most) / count for value, count in present.items()}

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Let each document through with its value's share as probability."""
        shares: dict[str, float] = json.loads((folder / _SHARES).read_text())
        going = []
        for document in documents:
            value = self._value(document)
            if _draw(self.seed, document.id) < shares.get(value, 1.0):
                going.append(document)
            else:
                tally.drop(document, f"too_much_{value}"[:40])
        tally.keep(len(going))
        return going

    def _value(self, document: Document) -> str:
        return str(document.meta.get(self.options.by, ""))


def _draw(seed: int, id: str) -> float:
    """A number in [0, 1) that follows from the two."""
    digest = hashlib.blake2b(f"{seed}:{id}".encode("utf-8", "surrogatepass"), digest_size=8, person=b"balance").digest()
    return int.from_bytes(digest, "big") / 2**64
