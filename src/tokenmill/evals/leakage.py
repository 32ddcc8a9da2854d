"""Which rows of a test set stand in the training data: shared runs of words, found as `data run` takes them out.

The runs are those of the step ``decontaminate`` (:mod:`tokenmill.data.curate.decontaminate`), seen from the other side:
there a training document is dropped, here a test row is named, with the share of its runs that were found and where.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from tokenmill.core.errors import UsageError
from tokenmill.data.curate.decontaminate import DecontaminateOptions, lexical, question_and_answer, row_runs
from tokenmill.data.curate.step import Document
from tokenmill.data.curate.words import U64, ngrams, words_of
from tokenmill.data.files import Row, find_files, read_rows
from tokenmill.evals.subject import Progress

BATCH = 256
SHOWN = 160
"""Characters of a row that are told."""


@dataclass
class TestRow:
    """A row of the test set, and what was found of it."""

    __test__ = False  # pytest would take it for a test

    name: str
    text: str
    runs: dict[int, U64]
    """Hashes of what is looked for, sorted, by the words in a run."""
    found: dict[int, set[int]] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    """Training documents, in the order in which they were read."""

    @property
    def share(self) -> float:
        """Of its runs, those that stand in the training data."""
        hits = sum(map(len, self.found.values()))
        return hits / sum(map(len, self.runs.values()))


@dataclass(frozen=True)
class Leakage:
    """What was found in all."""

    rows: int
    """Of the test set that are long enough to be looked for."""
    short: int
    """Too short for that."""
    documents: int
    """Of the training data that were read."""
    leaked: tuple[TestRow, ...]
    """Rows with a run in the training data, the most thoroughly leaked first."""

    @property
    def rate(self) -> float:
        """Share of the rows that leaked."""
        return len(self.leaked) / self.rows


def leakage(
    train: Iterable[tuple[str, str]], tests: Sequence[str], *, n: int = 12, progress: Progress | None = None
) -> Leakage:
    """Look for the test rows of files, folders or patterns in training texts, given as (name, text).

    ``n``: words in a run. UsageError: no row is long enough.
    """
    options = DecontaminateOptions(against=list(tests), n=n, min_words=min(8, n))
    rows, short = _test_rows(options)
    index = _Index(rows)
    documents = 0
    texts = iter(train)
    while batch := [Document(name, text) for name, text in islice(texts, BATCH)]:
        index.search(batch)
        documents += len(batch)
        if progress is not None:
            progress(documents, documents)
    leaked = sorted((row for row in rows if row.found), key=lambda row: -row.share)
    return Leakage(len(rows), short, documents, tuple(leaked))


def training_texts(path: str) -> Iterable[tuple[str, str]]:
    """The texts of a training file, folder or pattern, whatever its rows look like."""
    for file in find_files(path):
        for row in read_rows(file):
            if isinstance(row, Row):
                yield f"{file}:{row.line}", "\n".join(question_and_answer(row.value))


def _test_rows(options: DecontaminateOptions) -> tuple[list[TestRow], int]:
    rows, short = [], 0
    for file in (file for path in options.against for file in find_files(path)):
        for row in read_rows(file):
            if not isinstance(row, Row):
                continue
            question, answer = question_and_answer(row.value)
            name = f"{file}:{row.line}"
            runs = {n: np.unique(hashes) for n, hashes in row_runs(name, question, answer, options) if len(hashes)}
            if runs:
                rows.append(TestRow(name, f"{question}\n{answer}".strip()[:SHOWN], runs))
            else:
                short += 1
    if not rows:
        raise UsageError(f"no row of {', '.join(options.against)} is long enough to be looked for ({short} are short)")
    return rows, short


class _Index:
    """All runs of all test rows by length, each with the rows that have it."""

    def __init__(self, rows: Sequence[TestRow]) -> None:
        self.rows = rows
        self.wanted: dict[int, U64] = {}
        self.owners: dict[tuple[int, int], list[TestRow]] = {}
        for row in rows:
            for n, hashes in row.runs.items():
                for one in hashes.tolist():
                    self.owners.setdefault((n, one), []).append(row)
        for n in {n for n, _ in self.owners}:
            self.wanted[n] = np.array(sorted(one for m, one in self.owners if m == n), np.uint64)

    def search(self, documents: list[Document]) -> None:
        """Note in the rows what of them stands in these documents."""
        words = lexical(words_of(documents, folded=True))
        for n, wanted in self.wanted.items():
            hashes, places = ngrams(words, n)
            at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            hit = wanted[at] == hashes
            for one, document in zip(hashes[hit].tolist(), words.document_W[places[hit]].tolist(), strict=True):
                for row in self.owners[n, one]:
                    row.found.setdefault(n, set()).add(one)
                    if documents[document].id not in row.where[-1:]:
                        row.where.append(documents[document].id)
