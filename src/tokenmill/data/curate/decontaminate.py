"""The step ``decontaminate``: documents that contain what models are evaluated on.

Words are compared in lower case without punctuation, in runs of ``n`` (13 in Brown et al. 2020, arXiv 2005.14165; 12 in
datatrove and lighteval). Of each evaluation row these runs are looked for: all of its answer, all of its question, and
those across their border. An answer shorter than ``n`` words is looked for only together with the end of its question:
alone ("yes", "Paris") it would remove everything. A row that is shorter as a whole is one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tokenmill.config.parts import Count
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.filtering import FilterOptions, judged, settle
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.words import LEXICAL, U64, Words, ngrams, words_of
from tokenmill.data.files import Row, find_files, read_rows

QUESTIONS = (
    "question",
    "query",
    "problem",
    "prompt",
    "instruction",
    "input",
    "context",
    "ctx",
    "passage",
    "sentence",
    "text",
)
ANSWERS = ("answer", "answers", "output", "completion", "target", "solution", "gold", "response", "choices")

_ANSWERING = ("assistant", "gpt", "model")


class DecontaminateOptions(FilterOptions):
    """Which evaluation sets, and what counts as overlap."""

    against: list[str] = Field(min_length=1)
    """Files, folders or patterns of evaluation rows: JSONL, JSON, Parquet or text."""
    n: Count = 12
    """Words in a run."""
    questions: bool = True
    """Look for runs within questions too; off, only answers and what joins the two."""
    min_words: Count = 8
    """Rows with fewer words than this in all are not looked for."""
    min_runs: Count = 1
    """From how many different places on a document is dropped."""


def build(options: DecontaminateOptions, context: Context) -> Decontaminate:
    """The step. ConfigError: no row to look for. NotFoundError: no such file."""
    return Decontaminate(options)


class Decontaminate:
    """Drops documents that share runs of words with an evaluation row."""

    def __init__(self, options: DecontaminateOptions) -> None:
        self.options = options
        self.runs = _runs(options)
        if not self.runs:
            raise ConfigError(f"decontaminate: no row with {options.min_words} words in {', '.join(options.against)}")

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        chosen = judged(documents, self.options.languages)
        words = lexical(words_of(chosen, folded=True))
        hits_D = np.zeros(len(chosen), np.int64)
        for n, wanted in self.runs.items():
            hashes, places = ngrams(words, n)
            at = np.searchsorted(wanted, hashes)
            found = places[wanted[np.minimum(at, len(wanted) - 1)] == hashes]
            if n < self.options.n:  # a whole row: as much as there is to find
                found = np.repeat(found, self.options.min_runs)
            hits_D += np.bincount(words.document_W[found], minlength=len(chosen))
        verdicts = {
            d.id: "contaminated" for d, hits in zip(chosen, hits_D, strict=True) if hits >= self.options.min_runs
        }
        return settle(documents, verdicts, tally, tag=self.options.tag)


def lexical(words: Words) -> Words:
    """Without words that are punctuation only."""
    keep = (words.kind_W & LEXICAL) != 0
    offset = np.concatenate(([0], np.cumsum(keep)))[words.offset_D1]
    return Words(offset, words.start_W[keep], words.length_W[keep], words.kind_W[keep], words.hash_W[keep])


def _runs(options: DecontaminateOptions) -> dict[int, U64]:
    """Sorted hashes of the runs to look for, by their length in words."""
    found: dict[int, list[U64]] = {}
    for file in (file for path in options.against for file in find_files(path)):
        for number, (question, answer) in enumerate(_rows(file)):
            for n, hashes in row_runs(f"{file}#{number}", question, answer, options):
                found.setdefault(n, []).append(hashes)
    return {n: np.unique(np.concatenate(parts)) for n, parts in sorted(found.items()) if sum(map(len, parts))}


def row_runs(name: str, question: str, answer: str, options: DecontaminateOptions) -> Iterator[tuple[int, U64]]:
    """What is looked for of one evaluation row: words in a run, and the runs' hashes. Nothing of a short one."""
    parts = [Document(name, question), Document(name, answer), Document(name, f"{question}\n{answer}")]
    words = lexical(words_of(parts, folded=True))
    asked, answered, whole = words.count_D.tolist()
    if whole < options.min_words:
        return
    if whole < options.n:
        hashes, places = ngrams(words, whole)
        yield whole, hashes[words.document_W[places] == 2]
        return
    hashes, places = ngrams(words, options.n)
    document = words.document_W[places]
    place = places - words.offset_D1[2]  # within the whole
    across = (document == 2) & (place < asked) & (place + options.n > asked) & (answered > 0)
    yield options.n, hashes[(document == 1) | across | ((document == 0) & (options.questions or not answered))]


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Question and answer of every readable row."""
    for row in read_rows(file):
        if isinstance(row, Row):
            yield question_and_answer(row.value)


def question_and_answer(value: Mapping[str, Any]) -> tuple[str, str]:
    """Question and answer of a row, whatever its columns are called; of a conversation, what was said to the model and
    what it said."""
    turns = value.get("messages", value.get("conversations"))
    if not isinstance(turns, list):
        return _said(value, QUESTIONS), _said(value, ANSWERS)
    said = [(turn.get("role", turn.get("from")), turn) for turn in turns if isinstance(turn, Mapping)]
    return (
        "\n".join(_said(turn, ("content", "value")) for who, turn in said if who not in _ANSWERING),
        "\n".join(_said(turn, ("content", "value")) for who, turn in said if who in _ANSWERING),
    )


def _said(values: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    return "\n".join(text for column in columns for text in _texts(values.get(column)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
