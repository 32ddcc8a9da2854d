"""The verb ``tokenizer``: what it writes, what it prints, and the figures of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenmill import load_tokenizer
from tokenmill.cli.app import main
from tokenmill.config.compose import compose
from tokenmill.core.errors import ConfigError
from tokenmill.data.texts import Texts
from tokenmill.text.compare import compare, count_words, picture, sample_texts, tokens_of
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.train import TokenizerSpec, train_tokenizer
from tokenmill.train.new_model import Derivations, new_model

LINES = [f"the river {n} rose by {n % 9} cm, they said, and fell again" for n in range(200)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path / "home"))
    file = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": text, "language": "en" if n % 2 else "xx"}) for n, text in enumerate(LINES)]
    file.write_text("\n".join([*rows, "{broken", json.dumps({"nothing": 1})]) + "\n")
    return file


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["tokenizer", *words, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def test_from_text_to_a_model_that_can_begin(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = run(capsys, "train", "a.jsonl", "--vocab-size", "400", "--out", "tok")
    assert trained["vocab_size"] == load_tokenizer(Path("tok")).vocab_size == 320
    assert trained["text_bytes"] == sum(map(len, LINES))
    assert trained["rows_without_text"] == 2
    assert trained["round_trip"] is True
    assert json.loads(Path("tok/training.json").read_text()) == trained
    chat = load_tokenizer(Path("tok")).render_chat([{"role": "user", "content": "hi"}])
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    shards = run(capsys, "encode", "a.jsonl", "--tokenizer", "tok", "--out", "shards")
    assert (shards["documents"], shards["shards"], shards["rows_without_text"]) == (200, 1, 2)
    recipe = compose("pretrain", ["size=tiny", "data=shards"]).recipe
    derived = Derivations()
    tokenizer, config = new_model(recipe, derived, None)  # no tokenizer is named: theirs
    assert tokenizer.vocabulary_hash == load_tokenizer(Path("tok")).vocabulary_hash
    assert derived.values["tokenizer"] == "shards/tokenizer"
    assert config["vocab_size"] == 320
    with pytest.raises(ConfigError, match="no effect"):
        new_model(compose("pretrain", ["size=tiny", "data=shards", "vocab_size=512"]).recipe, Derivations(), None)


def test_comparing_counts_bytes_words_and_what_is_lost(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("byte-bpe", "wordpiece"):
        run(capsys, "train", "a.jsonl", "--kind", kind, "--vocab-size", "400", "--out", kind)
    options = ("--text", "a.jsonl", "--no-builtin", "--html", "page.html")
    ours, bert = run(capsys, "compare", "byte-bpe", "wordpiece", *options)["tokenizers"]
    assert set(ours["groups"]) == {"en", "xx"}
    total = ours["total"]
    tokenizer = load_tokenizer(Path("byte-bpe"))
    assert total["tokens"] == sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in LINES)
    assert total["bytes"] == sum(map(len, LINES))
    assert total["words"] == 12 * 200
    assert total["bytes_per_token"] == total["bytes"] / total["tokens"]
    assert total["failures"] == 0
    assert bert["total"]["bytes"] == total["bytes"]
    page = Path("page.html").read_text()
    assert "wordpiece" in page
    assert "<script" not in page
    builtin = run(capsys, "compare", "byte-bpe")["tokenizers"][0]
    assert set(builtin["groups"]) == set(sample_texts())
    assert builtin["total"]["failures"] == 0


def test_a_lossy_tokenizer_is_caught_with_the_place() -> None:
    spec = TokenizerSpec("byte-bpe", 320, normalise="nfkc")
    lossy = train_tokenizer(spec, lambda: ["fine " * 20]).tokenizer
    (one,) = compare({"lossy": lossy}, [("a", "fine"), ("a", "so \ufb01ne"), ("b", "x")])
    assert (one.groups["a"].failures, one.groups["b"].failures) == (1, 0)
    assert one.lost == [("a", "\ufb01ne", "fine")]
    assert "\ufb01ne" in picture([one])


def test_words_are_counted_in_every_script() -> None:
    assert count_words("don't stop") == 3
    assert count_words("x_1 = 3.14") == 4
    assert count_words("日本語 ok") == 4
    assert count_words("Grüße, мир!") == 2
    assert count_words("") == 0


def test_the_cut_that_is_drawn_is_the_text() -> None:
    for kind in ("byte-bpe", "unigram"):
        tokenizer: Tokenizer = train_tokenizer(TokenizerSpec(kind, 384), lambda: LINES).tokenizer
        assert "".join(tokens_of(tokenizer, LINES[0])) == LINES[0]


def test_a_folder_keeps_nothing_of_the_tokenizer_before(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "train", "a.jsonl", "--vocab-size", "300", "--out"]
    assert main([*words, "tok"]) == 0
    assert load_tokenizer("./tok").chat_templates
    assert main([*words, "tok", "--chat-template", "none"]) == 0
    assert not load_tokenizer("./tok").chat_templates
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("{}")
    assert main([*words, "model"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_an_even_share_is_taken_of_too_much_text(corpus: Path) -> None:
    whole = Texts(["a.jsonl"])
    assert list(whole) == LINES
    part = Texts(["a.jsonl"], most_bytes=corpus.stat().st_size // 4)
    some = list(part)
    assert 20 < len(some) < 80
    assert some == list(part)
    assert min(map(LINES.index, some)) < 40 < 160 < max(map(LINES.index, some))  # from everywhere
    assert part.bytes == sum(map(len, some))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["train", "a.jsonl", "--kind", "bytebpe", "--out", "x"], 2, "did you mean 'byte-bpe'"),
        (["train", "none.txt", "--out", "x"], 2, "no such file"),
        (["train", "a.jsonl", "--chat-template", "none.jinja", "--out", "x"], 2, "no such file"),
        (["compare", "none"], 1, "none"),
        (["encode", "a.jsonl", "--tokenizer", "none", "--out", "x"], 1, "none"),
    ],
)
def test_mistakes_are_said_without_a_traceback(
    corpus: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, said: str
) -> None:
    assert main(["tokenizer", *words]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("x").exists()
