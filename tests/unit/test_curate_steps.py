"""What each curation step does to documents: on the planted corpus, and on what is special to it."""

# ruff: noqa: E501, RUF001
from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planted import corpus, measure

from tokenmill.core.errors import ConfigError, FormatError, NotFoundError, UsageError
from tokenmill.data.curate import clean, linear
from tokenmill.data.curate.balance import Balance, BalanceOptions
from tokenmill.data.curate.lexicon import bundled, languages, of_words
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.steps import entry
from tokenmill.data.curate.words import hashes_of, ngrams, words_of, words_of_text


def run(step: Any, *texts: str, **meta: Any) -> tuple[list[Document], Tally]:
    tally = Tally()
    return step([Document(f"t#{n}", text, dict(meta)) for n, text in enumerate(texts)], tally), tally


def test_planted_corpus() -> None:
    """Every step finds what was planted for it, and leaves prose alone."""
    found = measure.measure(8, seed=3)
    assert len(found) == 4 + 10 + 1 + 8
    assert {name for name, values in found.items() if values["recall"] < 0.9} == set(), found
    assert {name for name, values in found.items() if values["precision"] < 0.9} == set(), found


# --- words


@given(st.lists(st.text(max_size=300), max_size=6))
def test_words_cover_everything_but_spaces(texts: list[str]) -> None:
    documents = [Document(str(n), text) for n, text in enumerate(texts)]
    words = words_of(documents)
    for number, text in enumerate(texts):
        here = slice(words.offset_D1[number], words.offset_D1[number + 1])
        pieces = [text[s : s + n] for s, n in zip(words.start_W[here], words.length_W[here], strict=True)]
        assert "".join(pieces) == "".join(text.split())
        assert pieces == words_of_text(text)  # alone as in a batch
    again = words_of([Document("x", text) for text in texts])
    assert (again.hash_W == words.hash_W).all()


def test_words_of_a_long_text_are_those_of_its_parts() -> None:
    part = "It's a plain text, with 3.14 and “quotes”...\n"
    (one,) = [Document("1", part * 5000)]
    words, single = words_of([one]), words_of([Document("2", part)])
    assert (words.hash_W.reshape(5000, -1) == single.hash_W).all()
    assert one.lexed is not None
    assert words_of([one]).hash_W.tolist() == words.hash_W.tolist()  # from what was kept


def test_hashes_follow_the_word_and_its_case() -> None:
    same = hashes_of(["the", "The", "THE", "tHe"], folded=True)
    assert len(set(same.tolist())) == 1
    assert len(set(hashes_of(["the", "The", "eht", "hte", "th", "thee"]).tolist())) == 6
    hashes, places = ngrams(words_of([Document("1", "a b a b"), Document("2", "a b")]), 2)
    assert places.tolist() == [0, 1, 2, 4]
    assert hashes[0] == hashes[2] == hashes[3] != hashes[1]


# --- clean and html


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("schÃ¶n und fÃ¼r alle", "schön und für alle"),
        ("e\u0301t\u00e9", "été"),
        ("zero\u200bwidth \u202ereversed\u202c so\u00adft \ufeffmark \x07bell", "zerowidth reversed soft mark bell"),
        ("👩\u200d👩\u200d👧 and क्\u200dष and می\u200cخواهم", "👩\u200d👩\u200d👧 and क्\u200dष and می\u200cخواهم"),
        ("a  b\t\tc \r\nnext\r\n\r\n\r\n\r\n\r\nlast\u00a0word  ", "a b c\nnext\n\n\nlast word"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("We use cookies to improve your visit.\nThe story begins.\nAll rights reserved.", "The story begins."),
        ("The privacy policy of kings was war.", "The privacy policy of kings was war."),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("“curly” quotes stay — and ½, ﬁ", "“curly” quotes stay — and ½, ﬁ"),
    ],
)  # fmt: skip
def test_clean(before: str, after: str) -> None:
    (document,), tally = run(measure.made("clean"), before)
    assert document.text == after
    assert bool(tally.changed) == (before != after)


def test_clean_counts_and_drops_the_empty() -> None:
    kept, tally = run(measure.made("clean", boilerplate=False), "\u200b\ufeff", "We use cookies here.", "fine")
    assert [d.text for d in kept] == ["We use cookies here.", "fine"]
    assert {reason: count.documents for reason, count in tally.dropped.items()} == {"nothing_left": 1}
    with pytest.raises(UsageError, match="no regular expression"):
        measure.made("clean", patterns=["("])


@given(st.text(max_size=400))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    step = measure.made("clean", mojibake=False)
    kept, _ = run(step, text)
    if kept:
        once = kept[0].text
        assert [d.text for d in run(step, once)[0]] == [once]
    assert not clean._INVISIBLE.search(clean.without_invisible(text))


PAGE = """<html><head><title>Rivers</title><style>p{}</style></head><body><nav><a href="/">Home</a> <a href="/x">More</a></nav>
<article><h1>Rivers</h1><p>A river carries water from the hills to the sea, and with it sand, stones and stories.</p>
<p>Where it is slow, it builds meadows; where it is quick, it cuts gorges into the rock over thousands of years.</p>
</article><footer>Imprint Contact</footer><script>var x = 1;</script></body></html>"""


def test_html() -> None:
    kept, tally = run(measure.made("html"), PAGE, "<html><body></body></html>", content_type="text/html; charset=utf-8")
    (document,) = kept
    assert "A river carries water" in document.text
    assert "cuts gorges" in document.text
    assert not {"Home", "Imprint", "var x"} & set(document.text.replace("\n", " ").split(" "))
    assert document.meta == {"title": "Rivers"}
    assert list(tally.dropped) == ["no_main_text"]
    assert run(measure.made("html"), "plain <b>text</b>")[0][0].text == "plain <b>text</b>"


# --- language and balance


def test_language_tags_and_survives_odd_characters() -> None:
    step = measure.made("language")
    kept, _ = run(step, "Dies ist ein deutscher Satz.\x00\ufdd0", "12345", "\ud7ff\U000e0001", "")
    assert [d.meta["language"] for d in kept] == ["de", "und", "und", "und"]
    with pytest.raises(UsageError, match="no language xx"):
        measure.made("language", keep=["xx"])
    strict = measure.made("language", keep=["de"], unknown=False)
    kept, tally = run(strict, "Dies ist ein deutscher Satz.", "This is English prose.", "12345")
    assert len(kept) == 1
    assert set(tally.dropped) == {"en", "unknown"}


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, (8000, 2000, 500)), (0.0, (500, 500, 500)), (0.5, (2000, 1000, 500))]
)
def test_balance(tmp_path: Path, alpha: float, expected: tuple[int, ...]) -> None:
    sizes = {"en": 8000, "de": 2000, "fr": 500}
    documents = [Document(f"{code}#{n}", "x", {"language": code}) for code, size in sizes.items() for n in range(size)]
    step = Balance(BalanceOptions(alpha=alpha), seed=3)
    for number, part in enumerate((documents[:4000], documents[4000:])):
        (tmp_path / f"{number}").write_bytes(step.observe(part))
    folder = tmp_path / "verdict"
    folder.mkdir()
    step.decide([tmp_path / "0", tmp_path / "1"], folder)
    tally = Tally()
    kept = step.apply(documents[:4000], tally, folder, 0) + step.apply(documents[4000:], tally, folder, 1)
    counts = Counter(d.meta["language"] for d in kept)
    for code, wanted in zip(sizes, expected, strict=True):
        assert abs(counts[code] - wanted) <= 4 * math.sqrt(wanted)
    assert kept == step.apply(documents, Tally(), folder, 0)  # whatever the shards are
    assert tally.kept == len(kept)


# --- filters that need a model or lists


def test_perplexity() -> None:
    def service(model: str, texts: list[str]) -> list[float]:
        assert model == "m"
        return [float(len(set(text))) if text.strip() else math.nan for text in texts]

    found = entry("perplexity")
    options = found.options_class().model_validate({"model": "m", "max": 5.0, "min": 2.0})
    step = found.builder()(options, Context(services={"perplexity": service}))
    kept, tally = run(step, "aabb", "abcdefgh", "aaaa", " ")
    assert [d.text for d in kept] == ["aabb"]
    assert kept[0].meta["perplexity"] == 2.0
    assert {reason: count.documents for reason, count in tally.dropped.items()} == {"above_max": 2, "below_min": 1}
    with pytest.raises(UsageError, match="needs a model"):
        found.builder()(options, Context())
    with pytest.raises(ConfigError, match="for nothing"):
        found.builder()(found.options_class()(), Context())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [d for d in corpus.planted(30, seed=5) if d.meta["planted"] in ("prose", "spam", "gibberish")]
    labels = ["good" if d.meta["planted"] == "prose" else "bad" for d in documents]
    model = linear.train(documents, labels, bits=14, epochs=4)
    file = tmp_path_factory.mktemp("classifier") / "quality.safetensors"
    model.save(file)
    return file


def test_classifier(trained: Path) -> None:
    fresh = [d for d in corpus.planted(20, seed=6) if d.meta["planted"] in ("prose", "spam", "gibberish")]
    step = measure.made("classifier", model=str(trained), label="good", min=0.5)
    kept = step(list(fresh), Tally())
    kinds = Counter(d.meta["planted"] for d in kept)
    assert kinds["prose"] >= 19
    assert kinds["spam"] + kinds["gibberish"] <= 3
    assert all(0.5 <= d.meta["quality"] <= 1 for d in kept)
    model = linear.Linear.load(trained)
    values = model.probabilities(fresh)
    assert values.sum(axis=1) == pytest.approx(1, abs=1e-5)
    alone = [model.probabilities([d])[0, 1] for d in fresh[:5]]
    assert values[:5, 1] == pytest.approx(alone, abs=1e-6)  # not of the batch


def test_classifier_refuses(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'good'"):
        measure.made("classifier", model=str(trained), label="god")
    with pytest.raises(NotFoundError):
        measure.made("classifier", model=str(tmp_path / "none"), label="good")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(FormatError):
        measure.made("classifier", model=str(tmp_path / "broken.safetensors"), label="good")
    with pytest.raises(ConfigError, match="two labels"):
        linear.train([Document("1", "a")], ["good"])


def test_training_finds_the_words_that_tell(tmp_path: Path) -> None:
    documents = [Document(str(n), f"common words here {'alpha' if n % 2 else 'beta'} and more") for n in range(60)]
    labels = ["a" if n % 2 else "b" for n in range(60)]
    model = linear.train(documents, labels, bits=12)
    assert linear.evaluate(model, documents, labels)["accuracy"] == 1.0
    same = linear.train(documents, labels, bits=12)
    assert (same.weight_BL == model.weight_BL).all()  # the seed says all


def test_toxicity(tmp_path: Path, trained: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("frobnicator\nvile gnarl\n", "utf-8")
    step = measure.made("toxicity", lexicon=False, words=str(words), min_hits=2, max_share=0.1)
    vile = "You FROBNICATOR, you vile gnarl, said he."
    kept, tally = run(step, vile, "a frobnicator and a gnarl that is not vile", vile + " and so on" * 20)
    assert [d.id for d in kept] == ["t#1", "t#2"]
    assert list(tally.dropped) == ["lexicon"]
    judged = measure.made("toxicity", lexicon=False, classifier={"model": str(trained), "label": "bad"})
    spam = next(d for d in corpus.planted(1, seed=8) if d.meta["planted"] == "spam")
    assert not judged([spam], Tally())
    assert {"en", "de", "fr", "es", "ru", "zh", "ar", "hi"} <= set(languages())
    english = bundled("en")
    assert english is not None
    assert sum(map(len, english.values())) > 390
    assert of_words(["Two Words"])[2][0] == of_words(["two  words"])[2][0]


def test_decontaminate(tmp_path: Path) -> None:
    rows = [
        {"question": "How many legs does the spider in the corner of the kitchen have today?", "answer": "eight"},
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": " ".join("abcdefghijklmno")},
            ]
        },
        {"question": "Is it true?", "answer": "yes"},
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    leaked = "He asked: HOW MANY legs does the spider -- in the corner of the kitchen -- have today? Eight, she said."
    texts = (leaked, "how many legs does a spider have, eight", "is it true? yes", "so: A b c d e f g h i j k l m n o!")
    kept, tally = run(measure.made("decontaminate", against=[str(file)]), *texts)
    assert [d.text for d in kept] == [texts[1], texts[2]]
    assert {r: c.documents for r, c in tally.dropped.items()} == {"contaminated": 2}
    answers = measure.made("decontaminate", against=[str(file)], questions=False)
    assert [d.id for d in run(answers, leaked, leaked.replace("Eight", "Nine"))[0]] == ["t#1"]
    with pytest.raises(ConfigError, match="no row"):
        measure.made("decontaminate", against=[str(file)], min_words=50)


def test_filters_tag_instead_of_dropping_and_judge_only_some_languages() -> None:
    kept, tally = run(measure.made("gopher", tag=True), "too short", language="en")
    assert kept[0].meta["flags"] == ["short_doc"]
    assert tally.kept == 1
    kept, _ = run(measure.made("gopher", languages=["en"]), "zu kurz", language="de")
    assert len(kept) == 1
    german = " ".join(corpus.SENTENCES["de"]) + " "
    (kept, _), (dropped, _) = (
        run(measure.made("gopher", stop_words=words), german, language="de") for words in (None, ["the", "of"])
    )
    assert (len(kept), len(dropped)) == (1, 0)


@pytest.mark.parametrize("name", ["clean", "pii", "gopher", "decontaminate", "language"])
def test_unknown_options_are_refused(name: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        entry(name).options_class().model_validate({"nonsense": 1})
