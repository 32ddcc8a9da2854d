"""Streamed text is the decoded text, for any ids of any kind of tokenizer, and never shows half a character."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

import texts
from tokenmill.core.errors import FormatError
from tokenmill.text.detokenizer import StreamingDetokenizer
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.pieces import pieces_of
from tokenmill.text.tokenizer import Tokenizer

KINDS = ["byte-level", "sentencepiece", "wordpiece", "metaspace"]


@cache
def library(kind: str) -> Backend:
    """A small vocabulary of each kind, by the library's own trainers."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "byte-level":
        backend = Backend(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "wordpiece":
        backend = Backend(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    else:
        backend = Backend(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    backend.train_from_iterator(texts.training_text(), trainer)
    return backend


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind != "sentencepiece":
        return Tokenizer(library(kind), origin=kind)
    words = ["\u2581", "a", "b", "é", "你", "\u2581a", "ab", "\u2581\u2581", "\u2581ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in range(len(words))],
        },
        Path("small.gguf"),
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_streamed_text_is_the_decoded_text_for_any_ids(kind: str, data: st.DataObject) -> None:
    ours = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 3), max_size=30))
    skip = data.draw(st.booleans())
    stream = StreamingDetokenizer(ours, skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    text = "".join(pieces) + stream.flush()
    assert text == ours.decode(ids, skip_special_tokens=skip)
    if kind != "sentencepiece":  # there the library gives one U+FFFD for every byte of a run with an invalid one
        assert text == library(kind).decode(ids, skip_special_tokens=skip)
    # after a flush the next text begins anew
    assert "".join([*map(stream.push, ids), stream.flush()]) == text


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_sentencepiece_text_survives_and_equals_the_library(text: str) -> None:
    ours = tokenizer("sentencepiece")
    ids = ours.encode(text, parse_special=False)
    assert ours.decode(ids) == text.replace("\u2581", " ")
    assert ours._backend.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_no_half_character_is_ever_given_out(kind: str) -> None:
    ours = tokenizer(kind)
    for text in texts.corpus():
        if "\ufffd" in text:
            continue
        stream = StreamingDetokenizer(ours)
        expected = text if kind == "byte-level" else text.replace("\u2581", " ")
        given_out = ""
        for token_id in ours.encode(text, parse_special=False):
            given_out += stream.push(token_id)
            assert expected.startswith(given_out)
        assert stream.flush() == ""


def test_invalid_bytes_show_as_soon_as_they_are_certain() -> None:
    ours = tokenizer("sentencepiece")
    stream = StreamingDetokenizer(ours)
    ids = [ours.token_to_id(f"<0x{byte:02X}>") or 0 for byte in b"\xe4\xbd"]
    assert [stream.push(token_id) for token_id in ids] == ["", ""]
    assert stream.push(ours.token_to_id("a") or 0) == "\ufffda"
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"


def test_only_the_first_space_of_sentencepiece_is_not_text() -> None:
    ours = tokenizer("sentencepiece")
    ids = [ours.token_to_id(token) or 0 for token in ("<s>", "\u2581", "\u2581\u2581", "ab", "\u2581a")]
    assert ours.decode(ids) == "  ab a"
    assert ours.decode(ids, skip_special_tokens=False) == "<s>   ab a"


def test_bytes_of_single_tokens() -> None:
    spm, bpe, wordpiece = tokenizer("sentencepiece"), tokenizer("byte-level"), tokenizer("wordpiece")
    assert spm.token_bytes(spm.token_to_id("<0xE4>") or 0) == b"\xe4"
    assert spm.token_bytes(spm.token_to_id("\u2581ab") or 0) == b" ab"
    assert spm.token_bytes(spm.token_to_id("é") or 0) == "é".encode()
    assert bpe.token_bytes(bpe.token_to_id("Ġa") or 0) == b" a"
    assert bpe.token_bytes(bpe.token_to_id("</s>") or 0) == b"</s>"
    continued = next(token for token in library("wordpiece").get_vocab() if token.startswith("##"))
    assert wordpiece.token_bytes(wordpiece.token_to_id(continued) or 0) == continued[2:].encode()
    assert spm.token_bytes(spm.vocab_size) == spm.token_bytes(-1) == b""


@pytest.mark.parametrize("decoder", [{"type": "CTC"}, {"type": "BPEDecoder", "suffix": "</w>"}])
def test_a_decoder_that_is_not_understood_is_refused_by_name(decoder: dict[str, str]) -> None:
    with pytest.raises(FormatError, match=decoder["type"]):
        pieces_of(decoder, "tokenizer.json")
    with pytest.raises(FormatError, match=decoder["type"]):
        pieces_of({"type": "Sequence", "decoders": [decoder]}, "tokenizer.json")
