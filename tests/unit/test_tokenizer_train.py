"""Tokenizers trained here: the same merges as the reference, the same ids as their owners' libraries, text that comes
back, and the same tokenizer from the same text."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from tokenmill import load_tokenizer
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.text.modelproto import read_model
from tokenmill.text.pieces import ALPHABET
from tokenmill.text.pretokenizers import KINDS
from tokenmill.text.train import KINDS_OF_TOKENIZER, TokenizerSpec, Trained, train_tokenizer
from tokenmill.text.train.build import PIECE_CHARS, _pieces
from tokenmill.text.train.reference import count_pairs, learn_bpe, merged

BOOK = (Path(__file__).parents[2] / "examples/texts/devils-dictionary.txt").read_text(encoding="utf-8")[:24_000]
ODD = [
    "",
    " ",
    "  a",
    "a  ",
    "\n\n\tx\r\n",
    "Hello, wörld 12345!",
    "日本語 и ещё",
    "👩‍👩‍👧 \u0301",
    "\x00\x7f",
    "<s> </s> <|im_end|>",
]


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    """One of each kind over the beginning of a book."""
    sizes = {"byte-bpe": 700, "bpe": 700, "wordpiece": 700, "unigram": 600, "char": 400}
    return {kind: train_tokenizer(TokenizerSpec(kind, size), lambda: [BOOK]) for kind, size in sizes.items()}


# --- the reference


def words_of(text: str) -> Counter[str]:
    """Words as the byte-level trainer sees them."""
    cut = KINDS["llama3"].pre_tokenizer()
    return Counter(word for piece in _pieces(lambda: [text]) for word, _ in cut.pre_tokenize_str(piece))


def test_byte_level_bpe_learns_the_merges_of_the_reference() -> None:
    text, count = BOOK[:8000], 90
    spec = TokenizerSpec("byte-bpe", 256 + 2 + count, pad_to=1)
    tokenizer = train_tokenizer(spec, lambda: [text]).tokenizer
    tokens, merges = learn_bpe(words_of(text), count, alphabet=ALPHABET)
    model = json.loads(tokenizer._backend.to_str())["model"]
    assert [tuple(pair) for pair in model["merges"]] == merges
    specials = len(spec.special_tokens)
    assert {token: number + specials for number, token in enumerate(tokens)} == {
        token: number for token, number in model["vocab"].items() if number >= specials
    }


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 9), min_size=1, max_size=9),
    st.integers(1, 25),
    st.integers(1, 3),
)
def test_the_reference_and_the_library_break_ties_alike(words: dict[str, int], merges: int, rarest: int) -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    size = len(set("".join(words))) + merges
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=rarest, show_progress=False)
    backend.train_from_iterator([" ".join([word] * count) for word, count in words.items()], trainer)
    model = json.loads(backend.to_str())["model"]
    tokens, learned = learn_bpe(words, merges, min_frequency=rarest)
    assert learned == [tuple(pair) for pair in model["merges"]]
    assert tokens == sorted(model["vocab"], key=model["vocab"].get)


def test_the_reference_counts_beyond_32_bits_and_says_how_ties_break() -> None:
    # tokenizers issue 437: a pair with more than 2^32 occurrences overflowed and was never merged
    _, merges = learn_bpe({"the": 2**33, "of": 2**32 + 5}, 3)
    assert merges == [("h", "e"), ("t", "he"), ("o", "f")]  # (h, e) before (t, h): the smaller left id
    assert count_pairs([([1, 1, 1], 2**40)])[1, 1] == 2**41
    assert merged([1, 1, 1, 2], (1, 1), 9) == [9, 1, 2]


# --- every kind


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_transformers_and_we_read_the_folder_alike(kind: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained[kind].save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    texts = [BOOK[at : at + 300] for at in (rng.randrange(len(BOOK)) for _ in range(20))]
    for text in [*texts, *ODD]:
        assert ours.encode(text) == theirs.encode(text) == trained[kind].tokenizer.encode(text)
    assert len(theirs) == ours.vocab_size == trained[kind].tokenizer.vocab_size
    assert ours.vocabulary_hash == trained[kind].tokenizer.vocabulary_hash


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_the_vocabulary_is_padded_and_full(kind: str, trained: dict[str, Trained]) -> None:
    tokenizer = trained[kind].tokenizer
    assert tokenizer.vocab_size % 64 == 0
    assert all(tokenizer.id_to_token(n) is not None for n in range(tokenizer.vocab_size))
    assert tokenizer.special_tokens.items() <= TokenizerSpec(kind, 1000).named_tokens.items()
    assert all(tokenizer.token_to_id(text) in tokenizer.special_ids for text in tokenizer.special_tokens.values())


@pytest.mark.parametrize("kind", KINDS_OF_TOKENIZER)
def test_the_same_text_gives_the_same_tokenizer(kind: str) -> None:
    text = BOOK[:6000]
    spec = TokenizerSpec(kind, 450 if kind == "wordpiece" else 400)
    both = [train_tokenizer(spec, lambda: [text]).tokenizer.vocabulary_hash for _ in range(2)]
    assert both[0] == both[1]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_come_back_from_byte_level_bpe(trained: dict[str, Trained], data: bytes) -> None:
    tokenizer = trained["byte-bpe"].tokenizer
    text = data.decode("latin-1")  # every byte a character
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    # and the bytes themselves, which are no text, through the tokens of single bytes
    ids = [tokenizer.token_to_id(char) for char in (byte_char[byte] for byte in data)]
    assert b"".join(tokenizer.token_bytes(n) for n in ids if n is not None) == data


byte_char = {byte: char for char, byte in ALPHABET.items()}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["byte-bpe", "bpe", "unigram", "char"]))
def test_any_text_comes_back(trained: dict[str, Trained], text: str, kind: str) -> None:
    tokenizer = trained[kind].tokenizer
    if kind in ("bpe", "unigram"):
        text = text.replace("\u2581", "")  # SentencePiece's sign for a space means a space
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_text_that_spells_control_tokens_stays_text(trained: dict[str, Trained]) -> None:
    for kind in ("byte-bpe", "bpe", "unigram", "char"):
        tokenizer = trained[kind].tokenizer
        name = tokenizer.special_tokens["eos_token"]
        ids = tokenizer.encode(f"a{name}b", add_special_tokens=False, parse_special=False)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.eos_token_id in tokenizer.encode(f"a{name}b", add_special_tokens=False)


# --- SentencePiece


@pytest.mark.parametrize(("cut", "digits"), [("words", 0), ("punctuation", 1)])
def test_sentencepiece_gives_a_unigram_models_ids(cut: str, digits: int, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    spec = TokenizerSpec("unigram", 520, cut=cut, digits=digits)
    trained = train_tokenizer(spec, lambda: [BOOK[:12_000]])
    trained.save(tmp_path)
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = load_tokenizer(tmp_path)
    assert theirs.vocab_size() == ours.vocab_size
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id()) == (
        ours.unk_token_id,
        ours.bos_token_id,
        ours.eos_token_id,
    )
    for text in [*(BOOK[at : at + 200] for at in range(0, 20_000, 771)), *ODD[:-1]]:
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text), text
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    model = read_model(tmp_path / "tokenizer.model")
    assert model.pieces[model.unk_id] == "<unk>"
    (tmp_path / "tokenizer.json").unlink()  # the SentencePiece file alone says the same
    alone = load_tokenizer(tmp_path)
    assert alone.encode(BOOK[:500], add_special_tokens=False) == theirs.encode(BOOK[:500])


# --- choices


def test_digits_cuts_chat_and_special_tokens_are_what_was_asked() -> None:
    text = "the year 1234567 and 2024 and 2025 " * 50
    for digits in (1, 2, 3):
        for cut in ("llama3", "gpt-2"):
            spec = TokenizerSpec("byte-bpe", 400, cut=cut, digits=digits, special=("<|tool|>",), chat_template="x")
            tokenizer = train_tokenizer(spec, lambda: [text]).tokenizer
            tokens = [tokenizer.id_to_token(n) or "" for n in range(tokenizer.vocab_size)]
            runs = [sum(char.isdigit() for char in token) for token in tokens if not token.startswith("<|")]
            assert max(runs) == digits
            assert tokenizer.encode("<|tool|>", add_special_tokens=False) == [tokenizer.token_to_id("<|tool|>")]
            assert tokenizer.chat_template == "x"
    mixed = train_tokenizer(
        TokenizerSpec("bpe", 500, cut="punctuation", digits=1), lambda: ["f(x), g(x), 12, 12. " * 60]
    )
    tokens = [mixed.tokenizer.id_to_token(n) or "" for n in range(275, mixed.tokenizer.vocab_size)]
    assert not [
        token for token in tokens if token.startswith("<|") is False and len(token) > 1 and set(token) & set("(),.12")
    ]


def test_a_lower_case_wordpiece_is_berts(trained: dict[str, Trained], tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    spec = TokenizerSpec("wordpiece", 700, lowercase=True)
    tokenizer = train_tokenizer(spec, lambda: [BOOK]).tokenizer
    vocab = sorted(((tokenizer.id_to_token(n) or "", n) for n in range(tokenizer.vocab_size)), key=lambda pair: pair[1])
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocab), encoding="utf-8")
    theirs = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True)
    for text in (BOOK[:2000], "Ünïcode CAFÉ, naïve.", "word " * 5):
        assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.encode("Café") == tokenizer.encode("cafe")
    assert trained["wordpiece"].tokenizer.encode("CAT") != trained["wordpiece"].tokenizer.encode("cat")


def test_normal_forms_are_applied() -> None:
    spec = TokenizerSpec("byte-bpe", 320, normalise="nfkc")
    tokenizer = train_tokenizer(spec, lambda: ["ﬁne " * 9]).tokenizer
    assert tokenizer.encode("ﬁ") == tokenizer.encode("fi")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "bytebpe"}, "did you mean 'byte-bpe'"),
        ({"cut": "lama3"}, "did you mean 'llama3'"),
        ({"kind": "unigram", "cut": "llama3"}, "words, punctuation"),
        ({"kind": "unigram", "digits": 3}, "knows 0, 1"),
        ({"kind": "char", "lowercase": True}, "lowercase is for wordpiece"),
        ({"kind": "wordpiece", "normalise": "nfc"}, "would do nothing"),
        ({"kind": "byte-bpe", "coverage": 0.9}, "means nothing to byte-bpe"),
        ({"kind": "char", "min_frequency": 5}, "means nothing to char"),
        ({"vocab_size": 200}, "too small"),
        ({"special": (" ",)}, "cannot be"),
    ],
)
def test_what_a_kind_would_ignore_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TokenizerSpec(**{"vocab_size": 1000, **values})  # type: ignore[arg-type]


def test_no_text_is_an_error() -> None:
    for kind in KINDS_OF_TOKENIZER:
        with pytest.raises(ConfigError, match="no text"):
            train_tokenizer(TokenizerSpec(kind, 1000), lambda: iter(()))


def test_long_texts_are_cut_behind_white_space_and_nothing_is_lost() -> None:
    text = ("word " * 5000) + "x" * 30_000 + "\nend"
    pieces = list(_pieces(lambda: [text]))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= PIECE_CHARS
    assert all(piece.endswith(" ") for piece in pieces[:2])
