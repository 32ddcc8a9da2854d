"""Deduplication: hashes of words against plain Python, union-find and grouping against the obvious way, planted copies
found as often as the formula says, and what stays by the stated rule whatever the order."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.global_step import run, step_of
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate import groups as groups_module
from tokenmill.data.curate import shingles
from tokenmill.data.curate.components import Components
from tokenmill.data.curate.exact import ExactOptions
from tokenmill.data.curate.groups import Groups
from tokenmill.data.curate.minhash import MinHashOptions, signatures
from tokenmill.data.curate.simhash import block_masks, close_pairs, fingerprints
from tokenmill.data.curate.step import Document


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(f"d#{number}", text) for number, text in enumerate(texts)]


# --- words


def plain_shingles(text: str, n: int) -> list[bytes]:
    words = shingles.plain_words(text).split()
    if len(words) < n:
        return [b" ".join(words)] if words else []
    return [b" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


WORDS = st.text(st.sampled_from("ab Z9,.\n“é中ไ\u0301ß\U0001f600"), max_size=40)


@settings(max_examples=80, deadline=None)
@given(st.lists(WORDS, max_size=12), st.integers(1, 5), st.sampled_from([16, 64, shingles.PIECE]))
def test_shingles_are_those_of_plain_python(texts: list[str], n: int, piece: int) -> None:
    """Equal runs of words have equal hashes, others have others, wherever the buffers are cut."""
    before, shingles.PIECE = shingles.PIECE, piece
    try:
        if any(len(word) > piece for text in texts for word in shingles.plain_words(text).split()):
            return  # a word longer than a buffer is cut; the next test is about that
        hashes, counts = shingles.shingle_hashes(texts, n)
    finally:
        shingles.PIECE = before
    wanted = [plain_shingles(text, n) for text in texts]
    assert counts.tolist() == [len(one) for one in wanted]
    known: dict[bytes, int] = {}
    for shingle, value in zip([shingle for one in wanted for shingle in one], hashes.tolist(), strict=True):
        assert known.setdefault(shingle, value) == value
    assert len(set(known.values())) == len(known)


def test_a_text_without_spaces_of_any_length_is_hashed() -> None:
    long = "x" * (3 * shingles.PIECE + 5)
    hashes, counts = shingles.word_hashes(["a", long, "", "b a"])
    assert counts.tolist() == [1, 4, 0, 2]
    assert hashes[0] == hashes[-1]


def test_words_are_what_is_left_between_space_and_punctuation() -> None:
    assert (
        shingles.plain_words("Don\u2019t\u2014stop, \u201cÜber\u201d 3.5%!").split()
        == "don t stop über 3 5".encode().split()
    )
    assert shingles.plain_words("日本語です").decode().split() == list("日本語です")
    decomposed, composed = "cafe\u0301", "café"
    assert shingles.plain_words(decomposed) == shingles.plain_words(composed)
    # the same words whichever way the rest of the text makes necessary
    greek, slow = "\u039f\u0394\u039f\u03a3 \u0130x \uff21", "\u00bd"
    assert shingles.plain_words(f"{greek} {slow}").split()[0] == shingles.plain_words(greek.split()[0]).split()[0]
    assert shingles.plain_words(f"{slow} \uff21\u2122").split() == [b"1", b"2", b"atm"]


# --- union-find and groups


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_union_find_is_reachability(case: tuple[int, list[tuple[int, int]]]) -> None:
    """Roots are the smallest number that can be reached, whatever the order and the batches."""
    count, pairs = case
    wanted = list(range(count))
    for _ in range(count):  # Bellman-Ford over labels: slow and obvious
        for left, right in pairs:
            wanted[left] = wanted[right] = min(wanted[left], wanted[right])
    for order in (pairs, pairs[::-1]):
        for size in (1, 3, max(len(pairs), 1)):
            components = Components(count)
            for start in range(0, len(order), size):
                part = np.array(order[start : start + size], np.int64).reshape(-1, 2)
                components.join(part[:, 0], part[:, 1])
            assert components.flatten().tolist() == wanted


def test_long_chains_are_joined_quickly(tmp_path: Path) -> None:
    """Pairs in a row are the worst case: walking them step by step would take 200,000 passes."""
    count = 200_000
    for order in (np.arange(count), np.random.default_rng(0).permutation(count)):
        components = Components(count, tmp_path / "parents")
        components.join(order[:-1], order[1:])
        assert not components.flatten().any()


@pytest.mark.parametrize("most", [1 << 21, 8])
def test_groups_give_every_equal_key(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one file or many; keys whose first half is equal by chance are told apart by the second."""
    monkeypatch.setattr(groups_module, "RECORDS_A_FILE", most)
    random_of = np.random.default_rng(1)
    keys = random_of.integers(0, 2**64, 40, dtype=np.uint64)[random_of.integers(0, 40, 300)]
    second = random_of.integers(0, 3, 300).astype(np.uint64)
    components = Components(300)
    with Groups(tmp_path / "groups", 300, 3) as groups:
        groups.add(keys[:100], second[:100], np.arange(100))
        groups.add(keys[100:], second[100:], np.arange(100, 300))
        for left, right in groups.alike():
            components.join(left, right)
    assert not (tmp_path / "groups").exists()
    first: dict[tuple[int, int], int] = {}
    wanted = [first.setdefault(key, number) for number, key in enumerate(zip(keys, second, strict=True))]
    assert components.flatten().tolist() == wanted


# --- exact


def test_exact_finds_all_and_nothing_else(tmp_path: Path) -> None:
    """Precision and recall of one, over 2,000 documents that differ in single characters, in shards of any size."""
    random_of = random.Random(2)
    texts = [f"text {random_of.randrange(900)}{random_of.choice(['', ' ', '.'])}" for _ in range(2000)]
    wanted = [document for n, document in enumerate(documents(texts)) if document.text not in texts[:n]]
    for number, size in enumerate((2000, 7)):
        all_of_them = documents(texts)
        shards = [all_of_them[i : i + size] for i in range(0, 2000, size)]
        kept, tally = run(step_of("exact"), [*shards, []], tmp_path / str(number))
        assert [document.id for document in kept] == [document.id for document in wanted]
        assert tally.dropped["duplicate"].documents == 2000 - len(wanted)


def test_exact_may_look_at_words_only(tmp_path: Path) -> None:
    texts = ["One, two!", "one\ttwo", "onetwo", "one two three", "...", "!!"]
    kept, _ = run(step_of("exact", normalise=True), [documents(texts)], tmp_path)
    assert [document.text for document in kept] == ["One, two!", "onetwo", "one two three", "..."]


def test_equal_lines_and_paragraphs_are_cut_out(tmp_path: Path) -> None:
    notice = "All rights reserved by the authors of this page."
    texts = [
        f"First text\n{notice}\n}}\n",
        f"Second\n{notice}\n}}\nend {notice}",
        f"{notice}\n",
        f"{notice}\n\n{notice}",
    ]
    kept, tally = run(step_of("exact", unit="lines"), [documents(texts[:2]), documents(texts[2:])], tmp_path / "lines")
    assert [document.text for document in kept] == [texts[0], f"Second\n}}\nend {notice}"]
    assert tally.changed["repeated_lines"].documents == 1
    assert tally.dropped["all_repeated"].documents == 2
    texts = [f"A\n\n{notice}\n\nB", f"C\n \n{notice}\n\n\nD", f"{notice}\nE", f"F\n\n{notice}"]
    kept, _ = run(step_of("exact", unit="paragraphs"), [documents(texts)], tmp_path / "paragraphs")
    assert [document.text for document in kept] == [texts[0], "C\n \nD", texts[2], "F"]


def test_rows_without_a_text_of_their_own_keep_their_lines(tmp_path: Path) -> None:
    rows = [Document(f"c#{n}", "the same long line in both conversations", {"messages": []}, True) for n in (1, 2)]
    assert len(run(step_of("exact", unit="lines"), [rows], tmp_path / "lines")[0]) == 2
    assert len(run(step_of("exact"), [rows], tmp_path / "documents")[0]) == 1


def test_options_without_effect_are_refused() -> None:
    for options in ({"unit": "lines", "keep": "longest"}, {"min_chars": 5}, {"unit": "paragraphs", "score": "x"}):
        with pytest.raises(ValueError, match="unit"):
            ExactOptions.model_validate(options)


# --- near duplicates


def pair(number: int, similarity: float, words: int = 120) -> tuple[str, str, float]:
    """Two texts with a common beginning, their endings all different, and the exact Jaccard of their 5-grams."""
    runs = words - 4
    common = round(2 * similarity * runs / (1 + similarity)) + 4
    begin = [f"w{number}x{i}" for i in range(common)]
    one, other = ([*begin, *(f"{side}{number}x{i}" for i in range(words - common))] for side in "ab")
    first, second = (set(plain_shingles(" ".join(side), 5)) for side in (one, other))
    return " ".join(one), " ".join(other), len(first & second) / len(first | second)


@pytest.mark.parametrize("similarity", [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
def test_recall_is_what_the_formula_says(similarity: float, tmp_path: Path) -> None:
    """1 - (1 - s^8)^14 of planted pairs are found, within four standard deviations."""
    number = 500
    pairs = [pair(n, similarity) for n in range(number)]
    texts = [text for one, other, _ in pairs for text in (one, other)]
    kept, tally = run(step_of("minhash", seed=7), [documents(texts)], tmp_path)
    found = tally.dropped["near_duplicate"].documents if tally.dropped else 0
    exact = pairs[0][2]
    assert all(jaccard == exact for _, _, jaccard in pairs)
    assert abs(exact - similarity) < 0.01
    wanted = 1 - (1 - exact**8) ** 14
    assert abs(found / number - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / number) + 1 / number
    assert len({document.text.split()[0] for document in kept}) == number, "a text was taken for another pair's copy"


@pytest.mark.parametrize(("bands", "rows", "ngram"), [(20, 5, 5), (4, 3, 5), (1, 1, 5)])
def test_recall_of_other_shapes(bands: int, rows: int, ngram: int, tmp_path: Path) -> None:
    pairs = [pair(n, 0.6) for n in range(400)]
    texts = [text for one, other, _ in pairs for text in (one, other)]
    _, tally = run(step_of("minhash", bands=bands, rows=rows, ngram=ngram), [documents(texts)], tmp_path)
    wanted = 1 - (1 - pairs[0][2] ** rows) ** bands
    found = tally.dropped["near_duplicate"].documents / 400
    assert abs(found - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / 400) + 1 / 400


def test_signatures_estimate_jaccard_without_bias() -> None:
    for similarity in (0.1, 0.5, 0.9):
        pairs = [pair(n, similarity) for n in range(200)]
        signature_DH, _ = signatures([text for one, other, _ in pairs for text in (one, other)], 5, 112, 3)
        agreed = float((signature_DH[0::2] == signature_DH[1::2]).mean())
        assert abs(agreed - pairs[0][2]) < 4 * math.sqrt(similarity * (1 - similarity) / (200 * 112))


def copies(kinds: int, random_of: random.Random) -> list[Document]:
    """Groups of one to four near copies of different lengths, in a random order."""
    found = []
    for kind in range(kinds):
        words = [f"k{kind}w{i}" for i in range(150)]
        for copy in range(random_of.randrange(1, 5)):
            found.append(Document(f"{kind}#{copy}", " ".join([*words, *["tail"] * copy]), {"score": kind * copy % 3}))
    random_of.shuffle(found)
    return found


def test_the_longest_copy_stays_in_any_order_and_cut(tmp_path: Path) -> None:
    found = copies(60, random.Random(3))
    wanted = {
        max((d for d in found if d.id.startswith(f"{kind}#")), key=lambda d: len(d.text)).id for kind in range(60)
    }
    for number in range(4):
        random.Random(number).shuffle(found)
        size = (1, 7, 50, 1000)[number]
        shards = [found[i : i + size] for i in range(0, len(found), size)]
        kept, _ = run(step_of("minhash"), shards, tmp_path / str(number))
        assert {document.id for document in kept} == wanted


def test_among_equals_the_choice_does_not_depend_on_the_order(tmp_path: Path) -> None:
    found = [
        Document(f"{place}#{n}", f"{'the same words again and again ' * 5}{n}", {}) for place in "ab" for n in range(20)
    ]
    results = set()
    for number in range(3):
        random.Random(number).shuffle(found)
        kept, _ = run(step_of("minhash"), [found[:11], found[11:]], tmp_path / str(number))
        results.add(frozenset(document.id for document in kept))
    assert len(results) == 1


def test_a_score_decides_before_length_and_first_means_first(tmp_path: Path) -> None:
    found = copies(40, random.Random(4))

    def group(kind: int) -> list[Document]:
        return [document for document in found if document.id.startswith(f"{kind}#")]

    by_score = {max(group(k), key=lambda d: (d.meta["score"], len(d.text))).id for k in range(40)}
    first = {group(k)[0].id for k in range(40)}
    for name in ("minhash", "simhash"):
        kept, _ = run(step_of(name, score="score"), [found[:30], found[30:]], tmp_path / name)
        if name == "minhash":
            assert {document.id for document in kept} == by_score
    kept, _ = run(step_of("minhash", keep="first"), [found[:30], found[30:]], tmp_path / "first")
    assert {document.id for document in kept} == first
    found[3].meta["score"] = "high"
    with pytest.raises(ConfigError, match=f"{found[3].id}.*'high'"):
        step_of("minhash", score="score").observe(found)


def test_texts_without_words_are_nobodys_copies(tmp_path: Path) -> None:
    for name in ("minhash", "simhash"):
        kept, _ = run(step_of(name), [documents(["...", "!!", "one two", "one two"])], tmp_path / name)
        assert [document.text for document in kept] == ["...", "!!", "one two"]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="band"):
        MinHashOptions.model_validate({"band": 3})


def test_simhash_finds_every_pair_within_its_distance() -> None:
    """The blocks lose none: compared with all pairs of fingerprints, for each distance."""
    random_of = np.random.default_rng(5)
    for distance in (0, 1, 3, 5):
        base = random_of.integers(1, 2**64, 60, dtype=np.uint64)
        flips = np.zeros(60, np.uint64)
        for _ in range(distance + 1):
            flips |= np.uint64(1) << random_of.integers(0, 64, 60, dtype=np.uint64)
        bits = np.concatenate([base, base ^ flips, base[:5]])
        wanted = {
            (i, j) for i, j in combinations(range(len(bits)), 2) if int(bits[i] ^ bits[j]).bit_count() <= distance
        }
        found = set()
        for mask in block_masks(distance):
            records = np.stack([bits & mask, bits, np.arange(len(bits), dtype=np.uint64)], axis=1)
            records = records[np.lexsort((records[:, 2], records[:, 1], records[:, 0]))]
            for left, right in close_pairs(records, distance):
                found |= {(min(p), max(p)) for p in zip(left.tolist(), right.tolist(), strict=True)}
        components, oracle = Components(len(bits)), Components(len(bits))
        for target, pairs in ((components, found), (oracle, wanted)):
            target.join(*np.array(sorted(pairs), np.int64).reshape(-1, 2).T)
        assert found <= wanted
        assert components.flatten().tolist() == oracle.flatten().tolist()


def test_fingerprints_count_votes_of_words() -> None:
    texts = ["a b c a", "", "a " * 50000 + "b", "b"]
    hashes, _ = shingles.shingle_hashes(["a b c"], 1)
    a, b, c = (int(value) for value in hashes)
    wanted = sum(1 << bit for bit in range(64) if 2 * (a >> bit & 1) + (b >> bit & 1) + (c >> bit & 1) > 2)
    assert fingerprints(texts, 1).tolist() == [wanted, 0, a, b]


def test_simhash_finds_edited_texts(tmp_path: Path) -> None:
    random_of = random.Random(6)
    texts = []
    for kind in range(30):
        words = [f"k{kind}w{random_of.randrange(400)}" for _ in range(800)]
        texts += [" ".join(words), " ".join([*words[:400], "edited", *words[401:]])]
    kept, tally = run(step_of("simhash"), [documents(texts[:20]), documents(texts[20:])], tmp_path)
    assert tally.dropped["near_duplicate"].documents >= 28
    assert {document.text.partition("w")[0] for document in kept} == {f"k{kind}" for kind in range(30)}
