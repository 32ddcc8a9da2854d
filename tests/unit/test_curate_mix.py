"""Mixes have the proportions that were asked for, within budget and caps, the same whatever the order; splits keep near
copies on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.global_step import run, step_of
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.mix import MixOptions, epochs_of, sizes_of
from tokenmill.data.curate.step import Document


def corpus(sizes: dict[str, int], words: int = 10) -> list[Document]:
    """Documents of about `words` words in each source."""
    random_of = random.Random(1)
    return [
        Document(f"{source}#{n}", " ".join(["word"] * random_of.randrange(1, 2 * words)), {"source": source})
        for source, count in sizes.items()
        for n in range(count)
    ]


def words_by_source(documents: Sequence[Document]) -> Counter[str]:
    return sum((Counter({d.meta["source"]: len(d.text.split())}) for d in documents), Counter())


def test_shares_and_budget_are_met(tmp_path: Path) -> None:
    """Each source within a document of its part, the whole never beyond the budget."""
    documents = corpus({"web": 3000, "books": 300, "code": 500})
    step = step_of("mix", weights={"web": 2, "books": 1, "code": 1}, tokens=8000, max_epochs=4)
    kept, tally = run(step, [documents[:1000], documents[1000:]], tmp_path)
    found = words_by_source(kept)
    for source, part in (("web", 4000), ("books", 2000), ("code", 2000)):
        assert part - 20 <= found[source] <= part
    assert tally.dropped["not_drawn"].documents + len({d.id for d in kept}) == 3800


def test_epochs_are_capped_and_the_rest_goes_to_the_others(tmp_path: Path) -> None:
    documents = corpus({"small": 100, "large": 2000})
    size = words_by_source(documents)
    step = step_of("mix", weights={"small": 1, "large": 1}, tokens=12000, max_epochs={"small": 2.5, "large": 1})
    kept, tally = run(step, [documents], tmp_path)
    found = words_by_source(kept)
    assert 2.5 * size["small"] - 20 <= found["small"] <= 2.5 * size["small"]
    assert 12000 - 40 <= found.total() <= 12000
    times = Counter(document.id.partition("~")[0] for document in kept if document.meta["source"] == "small")
    assert set(times.values()) == {2, 3}
    assert len({document.id for document in kept}) == len(kept)
    assert tally.changed["repeated"].documents == sum(times.values()) - len(times)


def test_a_mix_does_not_depend_on_order_or_cut(tmp_path: Path) -> None:
    documents = corpus({"a": 400, "b": 100})
    results = []
    for number, size in enumerate((500, 33)):
        random.Random(number).shuffle(documents)
        shards = [documents[i : i + size] for i in range(0, 500, size)]
        kept, _ = run(
            step_of("mix", seed=3, temperature=5.0, tokens=2000, max_epochs=3), shards, tmp_path / str(number)
        )
        results.append(sorted(document.id for document in kept))
    assert results[0] == results[1]
    other, _ = run(step_of("mix", seed=4, temperature=5.0, tokens=2000, max_epochs=3), shards, tmp_path / "other")
    assert sorted(document.id for document in other) != results[0]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 10**9), st.floats(0.01, 100)), min_size=1),
    st.integers(1, 10**10),
    st.floats(0.1, 5),
)
def test_epochs_follow_weights_up_to_their_caps(sources: dict[str, tuple[int, float]], tokens: int, cap: float) -> None:
    """All that are below their cap stand in the ratio of their weights, and take as much as the others; the budget is
    used up, unless every source is at its cap."""
    sizes = {name: size for name, (size, _) in sources.items()}
    weights = {name: weight for name, (_, weight) in sources.items()}
    epochs = epochs_of(sizes, MixOptions(weights=weights, tokens=tokens, max_epochs=cap))
    taken = {name: epochs[name] * sizes[name] for name in sizes}
    assert all(value <= cap * (1 + 1e-9) for value in epochs.values())
    free = [name for name in sizes if epochs[name] < cap * (1 - 1e-9)]
    rates = [taken[name] / weights[name] for name in free]
    assert all(rate == pytest.approx(rates[0], rel=1e-6) for rate in rates)
    assert sum(taken.values()) == pytest.approx(min(tokens, cap * sum(sizes.values())), rel=1e-6)


def test_temperature_lifts_what_is_small() -> None:
    sizes = {"small": 100, "large": 10_000}
    assert epochs_of(sizes, MixOptions()) == {"small": 1.0, "large": 1.0}
    epochs = epochs_of(sizes, MixOptions(temperature=2.0, tokens=1100, max_epochs=10))
    assert epochs["small"] * 100 == pytest.approx(100)
    assert epochs["large"] * 10_000 == pytest.approx(1000)
    epochs = epochs_of(sizes, MixOptions(weights={"small": 1, "large": 0}, max_epochs=3.0))
    assert epochs == {"small": 3.0, "large": 0.0}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weights": {"a": 1, "c": 1}}, r"no source 'c'.*source 'b' has none"),
        ({"max_epochs": {"bb": 2.0}}, "did you mean 'b'"),
        ({"weights": {"a": 1, "b": 1}, "temperature": 2.0}, "give one"),
        ({"weights": {"a": 0, "b": 0}}, "no source has both"),
        ({"by": "domain"}, r"a#0 has no column 'domain'.*its columns: source"),
        ({"count": "tokenizer.jsn"}, "not words, bytes or the path"),
    ],
)
def test_wrong_options_say_why(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(step_of("mix", **options), [corpus({"a": 3, "b": 3})], tmp_path)


def test_tokens_may_be_words_bytes_or_a_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Punctuation()
    backend.save(str(tmp_path / "tokenizer.json"))
    texts = ["a, b", "ü", ""]
    assert sizes_of(texts, "words").tolist() == [2, 1, 0]
    assert sizes_of(texts, "bytes").tolist() == [4, 2, 0]
    assert sizes_of(texts, str(tmp_path / "tokenizer.json")).tolist() == [3, 1, 0]


def near_copies(groups: int) -> list[Document]:
    """Groups of three texts with a word in forty replaced, shuffled."""
    random_of = random.Random(2)
    found = []
    for group in range(groups):
        words = [f"g{group}w{n}" for n in range(200)]
        for copy in range(3):
            edited = [f"e{copy}x{n}" if n % 40 == 5 and copy else word for n, word in enumerate(words)]
            found.append(Document(f"{group}#{copy}", " ".join(edited), {}))
    random_of.shuffle(found)
    return found


def test_no_near_copy_is_on_the_other_side(tmp_path: Path) -> None:
    """600 documents in 200 groups: whole groups go to one side, and about as many as asked for."""
    results = []
    for number, size in enumerate((600, 41)):
        documents = near_copies(200)
        random.Random(number).shuffle(documents)
        shards = [documents[i : i + size] for i in range(0, 600, size)]
        kept, _ = run(step_of("split", seed=1, validation=0.2, test=0.1), [*shards, []], tmp_path / str(number))
        sides = {document.id: document.meta["split"] for document in kept}
        for group in range(200):
            assert len({sides[f"{group}#{copy}"] for copy in range(3)}) == 1
        results.append(sides)
    assert results[0] == results[1], "the order of documents moved some"
    counts = Counter(results[0].values())
    assert 3 * 22 <= counts["validation"] <= 3 * 58  # 40 groups of 200, four standard deviations of 5.7 less some
    assert 3 * 5 <= counts["test"] <= 3 * 37
    other, _ = run(step_of("split", seed=2, validation=0.2, test=0.1), [near_copies(200)], tmp_path / "other")
    assert {document.id: document.meta["split"] for document in other} != results[0]


def test_new_documents_move_no_old_ones(tmp_path: Path) -> None:
    few, _ = run(step_of("split", validation=0.3), [near_copies(50)], tmp_path / "few")
    many, _ = run(step_of("split", validation=0.3), [near_copies(120)], tmp_path / "many")
    sides = {document.id: document.meta["split"] for document in many}
    assert all(sides[document.id] == document.meta["split"] for document in few)


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        step_of("split", validation=0.6, test=0.4)
