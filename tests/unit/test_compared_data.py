"""Rows that compare answers: what they may look like, what becomes of them, and that pairs never part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.tiny_llm import tiny_folder
from tokenmill.config.compose import compose
from tokenmill.config.parts import DataConfig
from tokenmill.core.errors import ConfigError
from tokenmill.data.batch import NO_LABEL
from tokenmill.data.compared import CollateCompared, Compared
from tokenmill.data.formats import Chat, Completion, RowError
from tokenmill.data.loader import Loader
from tokenmill.data.preferences import parse_judged, parse_pair
from tokenmill.data.prepare import Splits, load_splits
from tokenmill.data.render import Renderer
from tokenmill.data.show import show_rows
from tokenmill.data.tokenise import Kind
from tokenmill.models import load_tokenizer
from tokenmill.text.tokenizer import Tokenizer

ASKED = {"role": "user", "content": "hello"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tiny_folder(tmp_path_factory.mktemp("model")))


def splits(tmp_path: Path, tokenizer: Tokenizer, rows: list[Any], kind: Kind, **config: Any) -> Splits:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    causal, seq_len = config.pop("causal", True), config.pop("seq_len", 128)
    given = DataConfig.model_validate({"path": str(path), "eval_share": 0.0, "cache": False, **config})
    return load_splits(given, tokenizer, seq_len=seq_len, causal=causal, kind=kind)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [said("a")], "rejected": [said("b")]},
        {"prompt": [ASKED], "chosen": "a", "rejected": "b"},
        {"chosen": [ASKED, said("a")], "rejected": [ASKED, said("b")]},
        {"prompt": "hello", "chosen": [ASKED, said("a")], "rejected": [ASKED, said("b")]},  # UltraFeedback
        {"prompt": "hello", "chosen": [said("a")], "rejected": [said("b")]},
    ],
)
def test_shapes_of_a_pair(row: dict[str, Any]) -> None:
    chosen, rejected = parse_pair({**row, "margin": 2})
    assert chosen.document == Chat([ASKED, said("a")], None, context=1)
    assert rejected.document == Chat([ASKED, said("b")], None, context=1)
    assert (chosen.good, rejected.good, chosen.margin) == (True, False, 2.0)


def test_plain_texts_and_verdicts() -> None:
    chosen, _ = parse_pair({"prompt": "p", "chosen": "a", "rejected": "b"})
    assert chosen.document == Completion("p", "a")
    assert [one.good for one in parse_judged({"prompt": "p", "completion": "a", "label": 0})] == [False]
    assert [one.good for one in parse_judged({"prompt": "p", "chosen": "a", "rejected": "b"})] == [True, False]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "p", "chosen": "a"}, "a pair has prompt, chosen and rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "the same"),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen must be text or a list"),
        ({"prompt": [ASKED], "chosen": [ASKED, said("x")], "rejected": [said("b")]}, "must begin with the same"),
        ({"chosen": [ASKED], "rejected": [ASKED, said("b")]}, "must begin with the same"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "much"}, "margin must be a number"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": float("nan")}, "margin must be a number"),
    ],
)
def test_rows_that_are_no_pairs(row: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError, match=part):
        parse_pair(row)


@pytest.mark.parametrize("label", [None, "yes", 2])
def test_a_verdict_is_yes_or_no(label: Any) -> None:
    with pytest.raises(RowError, match="label must be true or false"):
        list(parse_judged({"prompt": "p", "completion": "a", "label": label}))


def rows_of(count: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    words = "the cat dog sat on mat and log hello there".split()  # noqa: SIM905
    answers = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(2 * count)]
    return [
        {"prompt": f"what {i}", "chosen": f"{answers[2 * i]} yes", "rejected": f"{answers[2 * i + 1]} no", "margin": i}
        for i in range(count)
    ]


def test_pairs_keep_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """In every batch document 2i is the chosen answer to what document 2i + 1 answers, and only answers are learned."""
    rows = rows_of(20)
    data = splits(tmp_path, tokenizer, rows, "pairs").train
    assert isinstance(data, Compared)
    assert len(data) == 20
    loader = Loader(data, seq_len=256, micro_batch=2, seed=1, collate=CollateCompared())
    seen: list[int] = []
    for batch in loader.once():
        texts = [tokenizer.decode(part.tolist()) for part in batch.tokens_T.split(batch.lengths)]  # type: ignore[union-attr]
        learned = [
            tokenizer.decode([i for i in part.tolist() if i != NO_LABEL])
            for part in batch.labels_T.split(batch.lengths)  # type: ignore[union-attr]
        ]
        for place, index in enumerate(batch.indices):
            row = rows[index]
            for text, answer, side in zip(
                texts[2 * place :], learned[2 * place :], ("chosen", "rejected"), strict=False
            ):
                assert f"{row['prompt']}\n" in text
                assert answer == row[side]
            assert float(batch.margins_P[place]) == row["margin"]  # type: ignore[union-attr]
        seen += batch.indices
    assert sorted(seen) == list(range(20))


def test_a_pair_that_does_not_fit_is_dropped_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = rows_of(6)
    rows[2]["rejected"] = "on " * 200
    rows[4]["chosen"] = "on " * 200
    found = splits(tmp_path, tokenizer, rows, "pairs")
    assert len(found.train) == 4
    assert found.report.train.truncated == 2
    kept = {int(float(found.train[i].margin)) for i in range(4)}  # type: ignore[attr-defined]
    assert kept == {0, 1, 3, 5}


def test_whole_conversations_for_scores(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A reward model reads all tokens, up to what the template writes behind the end token."""
    row = {"prompt": "hello", "chosen": "there", "rejected": "the cat"}
    sample = splits(tmp_path, tokenizer, [row, rows_of(1)[0]], "pairs", causal=False).train[0]
    first = sample.tokens[: sample.split].tolist()  # type: ignore[attr-defined]
    assert first == tokenizer.encode_chat([ASKED, said("there")], add_generation_prompt=False)


def test_mismatched_answers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Behind a judged answer stands the same prompt with the answer to an earlier row's, never to its own."""
    rows = rows_of(7)
    data = splits(tmp_path, tokenizer, rows, "judged").train
    assert len(data) == 14
    for i in range(14):
        sample = data[i]
        assert sample.good == (i % 2 == 0)  # type: ignore[attr-defined]
        split = sample.split  # type: ignore[attr-defined]
        answers = [tokenizer.decode([t for t in part.tolist() if t != NO_LABEL])
                   for part in (sample.labels[:split], sample.labels[split:])]  # fmt: skip
        own = {rows[i // 2]["chosen"], rows[i // 2]["rejected"]}
        other = {rows[i // 2 - 1]["chosen"], rows[i // 2 - 1]["rejected"]}
        assert answers[0] in own
        assert answers[1] in other
        prompts = [tokenizer.decode(part.tolist()).split("assistant")[0]
                   for part in (sample.tokens[:split], sample.tokens[split:])]  # fmt: skip
        assert prompts[0] == prompts[1]
        assert len(sample) == data.lengths[i]


def test_one_row_has_nothing_to_compare_with(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="single row"):
        splits(tmp_path, tokenizer, rows_of(1), "judged")


def test_a_single_held_out_verdict_is_no_evaluation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of few rows one is held out, and there is nothing that its answer could be compared with."""
    found = splits(tmp_path, tokenizer, rows_of(8), "judged", eval_share=0.01)
    assert found.eval is None
    assert len(found.train) == 14


def test_weights_repeat_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, rows_of(3))))
    sources = [{"path": str(tmp_path / "twice.jsonl"), "weight": 2.0}]
    assert len(splits(tmp_path, tokenizer, rows_of(3), "pairs", path=sources).train) == 6


def test_likelihood_covers_what_it_should(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sample = splits(tmp_path, tokenizer, rows_of(2), "pairs").train[0]
    split = sample.split  # type: ignore[attr-defined]
    everything = CollateCompared("all")([sample], 0).nll_labels_T
    answer = CollateCompared("answer")([sample], 0).nll_labels_T
    assert (everything[: split - 1].numpy() == sample.tokens[1:split]).all()
    assert (answer[:split].numpy() == sample.labels[:split]).all()
    assert (everything[split:] == NO_LABEL).all()
    assert CollateCompared("none")([sample], 0).num_nll == 0


def test_both_answers_are_shown(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """What ``data show`` prints of a pair: two examples, of each of which the answer alone is learned."""
    (tmp_path / "pair.jsonl").write_text(
        json.dumps({"prompt": [ASKED, said("no"), ASKED], "chosen": "there", "rejected": "cat"})
    )
    shown = list(show_rows(DataConfig(path=str(tmp_path / "pair.jsonl")), Renderer(tokenizer), limit=9))
    learned = ["".join(token.text for token in row.tokens if token.learned) for row in shown]
    assert learned == ["there<|im_end|>", "cat<|im_end|>"]


def test_a_text_compares_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "book.txt").write_text("once upon a time")
    with pytest.raises(ConfigError, match="compares no answers"):
        splits(tmp_path, tokenizer, [], "pairs", path=str(tmp_path / "book.txt"))


@pytest.mark.parametrize(
    ("recipe", "override", "part"),
    [
        ("dpo", "preference.gamma=2.0", "preference.gamma=2.0 has no effect"),
        ("dpo", "adapter.dropout=0.1", "noise"),
        ("dpo", "data.truncate=split", "part an answer"),
        ("dpo", "data.train_on=all", "data.train_on=all has no effect"),
        ("orpo", "preference.reference=x", "preference.reference=x has no effect"),
        ("simpo", "preference.loss=ipo", "preference.loss=ipo has no effect"),
        ("reward", "preference.beta=0.5", "preference.beta=0.5 has no effect"),
        ("reward", "adapter.kind=prompt", "cannot be folded"),
        ("lora", "reward.center=0.1", "reward.center=0.1 has no effect"),
        ("kto", "preference.betta=1", "did you mean"),
    ],
)
def test_recipes_refuse_what_they_would_ignore(recipe: str, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        compose(recipe, ["model=m", "data=d.jsonl", override])


@pytest.mark.parametrize("recipe", ["dpo", "simpo", "orpo", "kto", "reward"])
def test_recipes_compose(recipe: str) -> None:
    assert compose(recipe, ["model=m", "data=d.jsonl"]).recipe.objective == recipe
