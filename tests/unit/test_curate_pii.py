"""Personal data: recall of every kind on planted sentences, silence on near misses and on clean text, replacement."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planted import control, personal

from tokenmill.data.curate.pii.find import KINDS, find
from tokenmill.data.curate.pii.step import Pii, PiiOptions
from tokenmill.data.curate.step import Document, Tally


def test_recall_and_precision_of_every_kind() -> None:
    found, planted, false = Counter[str](), Counter[str](), Counter[str]()
    missed = []
    for kind, sentence, value in personal.planted(300, seed=11):
        start = sentence.index(value)
        hits = find(sentence)
        planted[kind] += 1
        # found: everything but surrounding marks of the value is covered, as that kind
        good = [h for h in hits if h.kind == kind and h.start <= start + 1 and h.end >= start + len(value) - 1]
        found[kind] += bool(good)
        for hit in hits:
            false[hit.kind] += hit not in good and not (hit.start >= start and hit.end <= start + len(value))
        if not good:
            missed.append((kind, sentence, hits))
    recall = {kind: found[kind] / planted[kind] for kind in KINDS}
    assert min(recall.values()) >= 0.95, (recall, random.Random(0).sample(missed, min(25, len(missed))))
    assert sum(false.values()) <= 0.01 * sum(planted.values()), false


@pytest.mark.parametrize("text", personal.NEAR_MISSES)
def test_near_misses(text: str) -> None:
    assert not find(text), [text[h.start : h.end] for h in find(text)]


def test_clean_text_stays_clean() -> None:
    text = control.clean_text(1_000_000)
    words = len(text.split())
    hits = find(text)
    assert words > 100_000
    assert len(hits) <= words / 10_000, [text[max(0, h.start - 30) : h.end + 10] for h in hits]


def test_replaces_by_typed_placeholders() -> None:
    text = "Write to anna@posteo.de or call +49 30 901820; server 62.138.9.4 has key AKIAQ2FZ4BCDEFGHIJ5K."
    tally = Tally()
    (document,) = Pii(PiiOptions())([Document("0", text)], tally)
    assert document.text == "Write to <EMAIL> or call <PHONE>; server <IP> has key <SECRET>."
    assert {reason: count.hits for reason, count in tally.changed.items()} == dict.fromkeys(
        ("email", "phone", "ip", "secret"), 1
    )
    assert tally.kept == 1


def test_replaces_in_conversations() -> None:
    meta = {"messages": [{"role": "user", "content": "I am anna@posteo.de"}], "source": "chat@posteo.de"}
    (document,) = Pii(PiiOptions())([Document("0", "I am anna@posteo.de", meta, derived=True)], Tally())
    assert document.meta == {"messages": [{"role": "user", "content": "I am <EMAIL>"}], "source": "chat@posteo.de"}
    assert document.text == "I am <EMAIL>"


def test_drops_and_tags_and_leaves_kinds_alone() -> None:
    texts = ["clean words", "anna@posteo.de", "anna@posteo.de and tom@web.net"]
    tally = Tally()
    kept = Pii(PiiOptions(action="drop", min_hits=2))([Document(str(n), t) for n, t in enumerate(texts)], tally)
    assert [d.text for d in kept] == texts[:2]
    assert {reason: count.documents for reason, count in tally.dropped.items()} == {"email": 1}
    kept = Pii(PiiOptions(action="tag"))([Document(str(n), t) for n, t in enumerate(texts)], Tally())
    assert [d.meta.get("pii") for d in kept] == [None, {"email": 1}, {"email": 2}]
    assert find("anna@posteo.de", ["phone"]) == []
    assert find("10.0.0.7 answered", public_ips_only=False)[0].kind == "ip"


@given(st.text(alphabet=st.sampled_from("0123456789+-./: ()@abzABZ\n=_"), max_size=400))
def test_any_text_is_searched_without_overlaps(text: str) -> None:
    hits = find(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(hits))
    assert all(0 <= h.start < h.end <= len(text) for h in hits)


@pytest.mark.parametrize(
    "piece",
    [
        "a@",
        "1.",
        "1:",
        "A1 ",
        "+1 ",
        "Aa ",
        "key=",
        "eyJ",
        "0 ",
        "://a:",
        "-----BEGIN ",
        "Calle A ",
        "Calle A de ",
        "AB12 ",
        "1 rue A ",
        "Str. 1 ",
    ],
)
def test_hostile_text_takes_no_longer_than_in_proportion(piece: str) -> None:
    """Expressions that look back and forth must not be quadratic: 50 kB of the worst pieces within seconds."""
    import time

    started = time.process_time()
    find(piece * (50_000 // len(piece)))
    assert time.process_time() - started < 3
