"""The quality filters decide as datatrove's do, reason for reason, on the same words and sentences."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from datatrove.data import Document as TheirDocument
from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter
from datatrove.pipeline.filters import gopher_repetition_filter as repetition_filter

from tokenmill.data.curate.c4 import C4, C4Options, count_sentences
from tokenmill.data.curate.fineweb import Fineweb, FinewebOptions
from tokenmill.data.curate.gopher import Gopher, GopherOptions
from tokenmill.data.curate.punctuation import PUNCTUATION, TERMINAL
from tokenmill.data.curate.repetition import Repetition, RepetitionOptions
from tokenmill.data.curate.step import Document, Tally
from tokenmill.data.curate.words import words_of_text

WORDS = [
    "the", "be", "to", "of", "and", "that", "have", "with", "river", "stone", "bright", "walking", "quietly",
    "government", "12", "3.14", "don't", "café", "naïve", "Überraschung", "well-known",
    "http://example.org/a?b=1", "#", "...", "…", "-", "•", "==", "привет", "你好", "*", "{}", "JavaScript",
    "[12]", "x", "y",
]  # fmt: skip
LINES = (
    "This page uses cookies to make your visit better.",
    "Lorem ipsum dolor sit amet, consectetur.",
    "- one more point of the list",
    "• another point",
    "and so it goes on...",
    "Please enable Javascript to see this page.",
    "He said that they have walked to the river with a dog.",
    "It was the best of times, it was the worst of times.",
    "Short.",
    "",
    "   ",
    'She asked: "Is this the end of the road?"',
    "A fact that needs a source.[citation needed]",
    "if (x) { return y; }",
)


def made_texts(count: int, seed: int) -> Iterator[str]:
    """Texts on both sides of every rule: prose, lists, repetitions, symbols, odd white space."""
    rng = random.Random(seed)
    for _ in range(count):
        style = rng.choice(("prose", "lines", "repeat", "symbols", "few", "bullets"))
        lines: list[str] = []
        favourites = rng.sample(WORDS, rng.randrange(2, len(WORDS)))
        for _ in range(rng.randrange(1, 25)):
            if style == "lines" or (style != "bullets" and rng.random() < 0.15):
                lines.append(rng.choice(LINES))
            elif style == "repeat" and lines and rng.random() < 0.3:
                lines.append(rng.choice(lines))
            else:
                chosen = favourites if style in ("repeat", "symbols") else WORDS[: rng.choice((16, len(WORDS)))]
                line = " ".join(rng.choice(chosen) for _ in range(rng.randrange(1, 30)))
                mark = rng.choice("-•") + " " if style == "bullets" else ""
                lines.append(mark + line.capitalize() + rng.choice((".", ".", "!", "?", "", "...", "…", ",")))
        if style == "few":
            lines = lines[:2]
        yield (
            rng.choice(("", "\n", " ")) + rng.choice(("\n", "\n", "\n\n")).join(lines) + rng.choice(("", "\n", "\n\n"))
        )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["", " ", "\n\n", *made_texts(450, seed=5)]


@pytest.fixture(autouse=True)
def same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove splits with spaCy; here both sides see our words, so that only the rules are compared."""
    for module in (gopher_quality_filter, fineweb_quality_filter, repetition_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, language: words_of_text(text))
    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, language: [0] * count_sentences(text))


def theirs(judge: Any, text: str) -> tuple[str | None, str]:
    document = TheirDocument(text=text, id="0")
    try:
        verdict = judge.filter(document)
    except ZeroDivisionError:  # a text without any word, where theirs breaks
        return "broken", text
    if verdict is True:
        return None, document.text
    return verdict[1], document.text


def compare(judge: Any, reasons: Callable[[list[Document]], list[str | None]], texts: list[str], least: int) -> None:
    expected = [theirs(judge, text)[0] for text in texts]
    found = reasons([Document(str(n), text) for n, text in enumerate(texts)])
    short = [e if e is None else e.removeprefix("gopher_") for e in expected]
    differing = [(t, e, f) for t, e, f in zip(texts, short, found, strict=True) if e not in (f, "broken")]
    assert not differing, differing[:3]
    counts = Counter(short)
    assert len(counts) >= least, counts  # the texts reach the rules
    assert counts[None] > 10, counts


def test_gopher(texts: list[str]) -> None:
    judge = gopher_quality_filter.GopherQualityFilter(min_doc_words=8)
    compare(judge, Gopher(GopherOptions(min_words=8)).reasons, texts, 9)


def test_gopher_with_the_published_limits(texts: list[str]) -> None:
    ours = Gopher(GopherOptions())
    compare(gopher_quality_filter.GopherQualityFilter(), ours.reasons, [text * 4 for text in texts[:200]], 6)


def test_repetition(texts: list[str]) -> None:
    judge = repetition_filter.GopherRepetitionFilter()
    compare(judge, Repetition(RepetitionOptions()).reasons, texts, 8)


def test_repetition_of_long_runs() -> None:
    """Runs of five to ten words that come again, on both sides of each limit; lines and paragraphs never repeat."""
    rng = random.Random(3)
    texts = []
    for number in range(150):
        run = [f"w{rng.randrange(10**6)}" for _ in range(rng.randrange(5, 14))]
        fresh = iter(f"x{number}y{k}" for k in range(10**6))
        words: list[str] = []
        for _ in range(rng.randrange(2, 5)):
            words += [*run, *(next(fresh) for _ in range(rng.randrange(4, 120)))]
        texts.append(" ".join(words))
    compare(repetition_filter.GopherRepetitionFilter(), Repetition(RepetitionOptions()).reasons, texts, 4)


def test_fineweb(texts: list[str]) -> None:
    step = Fineweb(FinewebOptions())
    judge = fineweb_quality_filter.FineWebQualityFilter()
    compare(judge, lambda ds: [step.reason(d.text, len(words_of_text(d.text))) for d in ds], texts, 5)


def test_c4(texts: list[str]) -> None:
    judge = c4_filters.C4QualityFilter()
    seen: Counter[str | None] = Counter()
    for text in texts:
        reason, changed = theirs(judge, text)
        tally = Tally()
        kept = C4(C4Options())([Document("0", text)], tally)
        assert list(tally.dropped) == ([] if reason is None else [reason]), text
        if reason is None:
            assert kept[0].text == changed
        seen[reason] += 1
    assert set(seen) == {None, "lorem_ipsum", "curly_bracket", "too_few_sentences"}


def test_the_lists_of_punctuation_are_theirs() -> None:
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    assert PUNCTUATION == PUNCTUATION_SET
    assert TERMINAL == TERMINAL_PUNCTUATION


def test_words_are_near_those_of_a_regular_expression() -> None:
    """The splitter against its own description, written as a slow expression."""
    slow = re.compile(r"\w(?:\w|(?<=[^\W\d_])['’](?=[^\W\d_])|(?<=\d)[.,](?=\d))*|([^\w\s])\1*")  # noqa: RUF001
    for text in made_texts(300, seed=9):
        plain = text.replace("你好", "x")  # characters that stand alone are not in the expression
        assert words_of_text(plain) == [found.group() for found in slow.finditer(plain)]
