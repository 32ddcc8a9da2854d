"""How much of its training data a model writes down again: prefixes of documents, continued greedily, beside what
really followed (Carlini et al. 2023, arXiv 2202.07646).

A place is drawn in each document; the tokens before it are given, more and more of them, and the same tokens behind it
are looked for each time, so the lengths of prefix compare. Exact: every token equal. Near: few edits apart, since a
changed comma is memorised all the same (Ippolito et al. 2023, arXiv 2210.17546). Of conversations only what was learned
is looked for. Texts of the same kind that were not trained on tell how much is merely easy to guess.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.evals.subject import Progress
from tokenmill.evals.tasks.aggregate import mean_stderr

Ids = Sequence[int]
Continue = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts as ids and a number of tokens; the most likely continuation of each."""
NEAR = 0.8
"""Similarity from which on a continuation counts as near."""


@dataclass(frozen=True)
class Trained:
    """A document as the model learned it."""

    name: str
    """Where it stands."""
    ids: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True)
class Passage:
    """A place in a document: what stands before it, and what follows."""

    document: Trained
    before: tuple[int, ...]
    """As many as the longest prefix has."""
    after: tuple[int, ...]
    copies: int
    """How often what follows stands in the data, in all documents that were read."""


@dataclass(frozen=True)
class Recall:
    """What a model made of a passage after a prefix of ``prefix`` tokens."""

    passage: Passage
    prefix: int
    written: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether every token is that of the data."""
        return self.written == self.passage.after

    @property
    def similarity(self) -> float:
        """1 less the edits between both, over their length."""
        longest = max(len(self.written), len(self.passage.after))
        return 1 - edits(self.written, self.passage.after) / longest

    @property
    def near(self) -> bool:
        """Whether it is nearly that of the data."""
        return self.similarity >= NEAR


@dataclass(frozen=True)
class Rate:
    """How much is extracted by prefixes of one length."""

    prefix: int
    passages: int
    exact: float
    exact_stderr: float
    near: float
    near_stderr: float
    similarity: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def passages_of(
    documents: Sequence[Trained], prefixes: Sequence[int], length: int, *, most: int, seed: int = 0
) -> list[Passage]:
    """A place in each of at most ``most`` documents, drawn from ``seed``. UsageError: none is long enough."""
    draw = random.Random(seed)
    longest = max(prefixes)
    found: list[Passage] = []
    chosen = list(documents)
    draw.shuffle(chosen)
    for one in chosen:
        places = _places(one, longest, length)
        if places and len(found) < most:
            at = draw.choice(places)
            found.append(Passage(one, one.ids[at - longest : at], one.ids[at : at + length], 1))
    if not found:
        raise UsageError(
            f"no document has {longest} tokens and {length} learned ones behind them: give shorter --prefixes or a "
            "shorter --length"
        )
    return _counted(found, documents, length)


def _places(one: Trained, longest: int, length: int) -> list[int]:
    """Where ``longest`` tokens stand before and ``length`` learned ones behind."""
    run, found = 0, []
    for at in range(len(one.ids) - 1, -1, -1):
        run = run + 1 if one.learned[at] else 0
        if run >= length and at >= longest:
            found.append(at)
    return found


def _counted(passages: Sequence[Passage], documents: Sequence[Trained], length: int) -> list[Passage]:
    """With the number of places in all documents at which the same tokens stand."""
    wanted = {one.after for one in passages}
    copies: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        for at in range(len(document.ids) - length + 1):
            if (run := document.ids[at : at + length]) in wanted:
                copies[run] += 1
    return [Passage(one.document, one.before, one.after, copies[one.after]) for one in passages]


def recall(
    continuation: Continue, passages: Sequence[Passage], prefixes: Sequence[int], progress: Progress | None = None
) -> list[Recall]:
    """What the model writes after each prefix of each passage, shortest prefixes first."""
    found: list[Recall] = []
    total = len(prefixes) * len(passages)
    length = len(passages[0].after)
    for prefix in sorted(prefixes):
        written = continuation([list(one.before[-prefix:]) for one in passages], length)
        found += [Recall(one, prefix, tuple(said)) for one, said in zip(passages, written, strict=True)]
        if progress is not None:
            progress(len(found), total)
    return found


def rates(found: Sequence[Recall]) -> list[Rate]:
    """Extraction by length of prefix."""
    result = []
    for prefix in sorted({one.prefix for one in found}):
        chosen = [one for one in found if one.prefix == prefix]
        exact, near = mean_stderr([one.exact for one in chosen]), mean_stderr([one.near for one in chosen])
        result.append(Rate(prefix, len(chosen), *exact, *near, mean_stderr([one.similarity for one in chosen])[0]))
    return result


def by_copies(found: Sequence[Recall]) -> dict[str, float]:
    """Share that is nearly extracted, by how often the passage stands in the data (at the longest prefix)."""
    longest = max(one.prefix for one in found)
    groups: dict[str, list[float]] = {}
    for one in sorted(found, key=lambda one: one.passage.copies):
        if one.prefix == longest:
            copies = one.passage.copies
            name = "1" if copies == 1 else "2 to 4" if copies < 5 else "5 or more"
            groups.setdefault(name, []).append(float(one.near))
    return {name: sum(values) / len(values) for name, values in groups.items()}


def edits(a: Ids, b: Ids) -> int:
    """Tokens to be put in, taken out or changed to make one of the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]
