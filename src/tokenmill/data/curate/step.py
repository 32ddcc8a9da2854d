"""What a curation step is, and what it counts.

A *map step* looks at one batch of documents and remembers nothing: it runs in any process, in any order. A *global
step* (deduplication, mixing) has to see everything; it works in three turns:

1. ``observe`` takes from every shard, in parallel, what the decision needs (signatures, counts), as bytes;
2. ``decide`` reads these files once, in one process, within bounded memory, and leaves its verdict in a folder;
3. ``apply`` carries the verdict out, shard by shard, in parallel, as a map step does.

Both are made by one function ``build(options, context)`` a step, listed in `steps`. What they do may depend on their
options, the context and the documents, never on the time, the process or the order of batches: a run that was killed
and resumed gives the same bytes.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

SAMPLES = 5
"""Samples that are kept for each reason."""
SAMPLE_CHARS = 400
"""Characters of a sample, before and after."""


@dataclass(slots=True)
class Document:
    """One document on its way.

    Raw web pages (HTML files, WARC records) arrive with their source in ``text`` and ``meta["content_type"]`` set to
    ``"text/html"``; the step that extracts the text takes that key away.
    """

    id: str
    """``<file>#<number>``, stable over runs."""
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    """All other columns (``url``, ``language``, ``source``, ``messages``, …), JSON values; steps add to it."""
    derived: bool = False
    """True for conversations and other rows without a text of their own: ``text`` is then their contents joined, for
    steps to look at, and is not written out; what is written is ``meta``."""
    lexed: Any = field(default=None, repr=False, compare=False)
    """The text's words, left by `words.words_of` for the next step; holds while ``text`` is the same object."""
    folded: Any = field(default=None, repr=False, compare=False)
    """The same in lower case."""


@dataclass(frozen=True)
class Context:
    """What a step may know besides its options."""

    seed: int = 0
    """The recipe's. Derive from it whatever is random, together with the document's id or text."""
    services: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """What needs a model or a network, handed in by the command line; module-level functions, as they are sent to
    other processes. The step that asks for one says in its error which it was."""


class Sample:
    """One document that a step dropped or changed."""

    __slots__ = ("after", "before", "id", "rank")

    def __init__(self, rank: int, id: str, before: str, after: str | None) -> None:
        self.rank, self.id, self.before, self.after = rank, id, before, after

    def __lt__(self, other: Sample) -> bool:  # a heap of these has the highest rank first
        return (self.rank, self.id) > (other.rank, other.id)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; ``after`` is None for a dropped document."""
        return {"id": self.id, "before": self.before, "after": self.after}


class Count:
    """How often one thing happened, with a bounded sample that does not depend on the order of counting."""

    __slots__ = ("documents", "hits", "samples")

    def __init__(self) -> None:
        self.documents = 0
        self.hits = 0
        self.samples: list[Sample] = []

    def add(self, seed: int, document: Document, before: str | None, hits: int = 1) -> None:
        """`before` None: the document was dropped, and its text is the sample."""
        self.documents += 1
        self.hits += hits
        rank = zlib.crc32(document.id.encode("utf-8", "surrogatepass"), seed)
        if len(self.samples) == SAMPLES and rank > self.samples[0].rank:
            return
        if before is None:
            sample = Sample(rank, document.id, document.text[:SAMPLE_CHARS], None)
        else:
            sample = Sample(rank, document.id, *_around(before, document.text))
        self._push(sample)

    def _push(self, sample: Sample) -> None:
        heapq.heappush(self.samples, sample)
        if len(self.samples) > SAMPLES:
            heapq.heappop(self.samples)

    def merge(self, other: Count) -> None:
        """Add what `other` counted."""
        self.documents += other.documents
        self.hits += other.hits
        for sample in other.samples:
            self._push(sample)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the samples in a fixed order."""
        samples = [[s.rank, s.id, s.before, s.after] for s in sorted(self.samples, reverse=True)]
        return {"documents": self.documents, "hits": self.hits, "samples": samples}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Count:
        """What `as_dict` gave."""
        count = cls()
        count.documents, count.hits = values["documents"], values["hits"]
        for sample in values["samples"]:
            count._push(Sample(*sample))
        return count


class Tally:
    """What one step did: kept, dropped and changed by reason, with samples. Tallies of shards merge into one; the sum
    does not depend on their order."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.kept = 0
        self.dropped: dict[str, Count] = {}
        self.changed: dict[str, Count] = {}

    def keep(self, n: int = 1) -> None:
        """`n` documents go on, changed or not."""
        self.kept += n

    def drop(self, document: Document, reason: str) -> None:
        """The document ends here. `reason` is one of few fixed words, such as ``short_lines``."""
        self.dropped.setdefault(reason, Count()).add(self.seed, document, None)

    def change(self, document: Document, reason: str, before: str, count: int = 1) -> None:
        """The document's text was changed from `before`, `count` times, for `reason`. It is also kept or dropped."""
        self.changed.setdefault(reason, Count()).add(self.seed, document, before, count)

    def merge(self, other: Tally) -> None:
        """Add what `other` counted."""
        self.kept += other.kept
        for mine, theirs in ((self.dropped, other.dropped), (self.changed, other.changed)):
            for reason, count in theirs.items():
                mine.setdefault(reason, Count()).merge(count)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` reads them back."""
        return {
            "kept": self.kept,
            "dropped": {reason: self.dropped[reason].as_dict() for reason in sorted(self.dropped)},
            "changed": {reason: self.changed[reason].as_dict() for reason in sorted(self.changed)},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], seed: int = 0) -> Tally:
        """What `as_dict` gave."""
        tally = cls(seed)
        tally.kept = values["kept"]
        tally.dropped = {reason: Count.from_dict(count) for reason, count in values["dropped"].items()}
        tally.changed = {reason: Count.from_dict(count) for reason, count in values["changed"].items()}
        return tally


def _around(before: str, after: str) -> tuple[str, str]:
    """Both texts from a little before the first place where they differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # length of the common beginning
        middle = (low + high + 1) // 2
        if before[:middle] == after[:middle]:
            low = middle
        else:
            high = middle - 1
    start = max(0, low - SAMPLE_CHARS // 4)
    return before[start : start + SAMPLE_CHARS], after[start : start + SAMPLE_CHARS]


@runtime_checkable
class Step(Protocol):
    """A map step. Gets a batch of documents (a few thousand, some MB), which it may change, and returns those that go
    on, in order; it counts every document once as kept or dropped."""

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        """The documents that go on."""
        ...


@runtime_checkable
class GlobalStep(Protocol):
    """A step that has to see everything."""

    def observe(self, documents: list[Document]) -> bytes:
        """What the decision needs of one shard (at most some 64 MB of text). Stored until the decision."""
        ...

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """Read what was observed, one file a shard, in order, and write the verdict into `folder`, which is empty.

        Memory stays bounded: neither all of `observed` nor all of the verdict is held at once. Called again on an
        empty folder after a kill. A step that makes files of its own for the person (token shards) puts them under
        ``folder / "output"``; they end up under the recipe's output in a folder with the step's name.
        """
        ...

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """Carry the verdict out on the same documents, in the same order, as ``observed[shard]`` came from."""
        ...


def bytes_of(documents: Iterable[Document]) -> int:
    """About how many bytes the documents are: characters of text, which is exact for ASCII."""
    return sum(len(document.text) for document in documents)
