"""SentencePiece models, from their own file and as GGUF metadata, against sentencepiece itself and transformers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaTokenizer, T5Tokenizer

import texts
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.load import tokenizer_from_folder
from tokenmill.text.tokenizer import Tokenizer

LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
FLAVOURS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", **LLAMA},
    "no prefix": {"model_type": "bpe", **LLAMA, "add_dummy_prefix": False},
    "bpe, spaces merged": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "bpe, nmt_nfkc": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "unigram with bytes": {"model_type": "unigram", **LLAMA},
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "char": {"model_type": "char", "normalization_rule_name": "identity"},
}


def train(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts.training_text() for line in text.splitlines() if line),
        model_writer=model,
        vocab_size=1200 if options["model_type"] != "char" else 400,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def as_gguf(model: sentencepiece.SentencePieceProcessor, kind: str, **extra: Any) -> Tokenizer:
    """The metadata that llama.cpp's converter writes."""
    ids = range(model.get_piece_size())
    tests = (model.is_unknown, model.is_control, model.is_unused, model.is_byte)
    types = [next((t for t, test in zip((2, 3, 5, 6), tests, strict=True) if test(n)), 1) for n in ids]
    metadata = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": [model.id_to_piece(n) for n in ids],
        "tokenizer.ggml.scores": [model.get_score(n) for n in ids],
        "tokenizer.ggml.token_type": types,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }
    for key, token_id in (("bos", model.bos_id()), ("eos", model.eos_id()), ("unknown", model.unk_id())):
        if token_id >= 0:
            metadata[f"tokenizer.ggml.{key}_token_id"] = token_id
    return tokenizer_from_gguf(metadata, Path("small.gguf"))


def plain_corpus() -> list[str]:
    """Without texts that spell a special token: sentencepiece itself knows none in texts."""
    return [text for text in texts.corpus() if not re.search(r"</?s>|<unk>|<pad>", text)]


def decomposed(text: str) -> bool:
    """Where the library's Precompiled normalizer, which transformers uses too, is not sentencepiece's.

    It rewrites grapheme by grapheme, and those of more than five bytes character by character.
    """
    return bool(re.search("[\u0300-\u036f\u1100-\u11ff]", text))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ids_and_text_equal_sentencepiece(flavour: str, tmp_path: Path) -> None:
    model, ours = train(tmp_path, **FLAVOURS[flavour]), tokenizer_from_folder(tmp_path)
    mapped = "normalization_rule_name" not in FLAVOURS[flavour]
    compared = 0
    for text in plain_corpus():
        if mapped and decomposed(text):
            continue
        compared += 1
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == model.encode(text), text
        # of a text that begins with several spaces sentencepiece drops all, if it was told to merge spaces
        if model.unk_id() not in ids and "\u2581" not in text:
            assert ours.decode(ids) == model.decode(ids), text
    assert compared > 150


@pytest.mark.parametrize("legacy", [True, False])
def test_llama_equals_transformers(tmp_path: Path, legacy: bool) -> None:
    train(tmp_path, **FLAVOURS["llama"])
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": legacy}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = LlamaTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in plain_corpus():
        if text.startswith((" ", "\u2581")):  # transformers 5 puts no dummy prefix there; sentencepiece does
            continue
        assert ours.encode(text) == theirs.encode(text), text


def test_t5_equals_transformers(tmp_path: Path) -> None:
    train(tmp_path, **FLAVOURS["t5"])
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    theirs, ours = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0), tokenizer_from_folder(tmp_path)
    for text in plain_corpus():
        if "\u1680" in text:  # transformers cuts at all of Unicode's spaces; sentencepiece at those its rules rewrite
            continue
        assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("flavour", ["llama", "no prefix", "unigram", "t5"])
def test_gguf_equals_the_model_file(flavour: str, tmp_path: Path) -> None:
    options = FLAVOURS[flavour]
    model, from_file = train(tmp_path, **options), tokenizer_from_folder(tmp_path)
    extra: dict[str, Any] = {"add_space_prefix": options.get("add_dummy_prefix", True)}
    if options["model_type"] == "unigram":
        proto = sentencepiece_model_pb2.ModelProto.FromString((tmp_path / "tokenizer.model").read_bytes())
        extra["remove_extra_whitespaces"] = True
        if charsmap := proto.normalizer_spec.precompiled_charsmap:
            extra["precompiled_charsmap"] = list(charsmap)
    ours = as_gguf(model, "t5" if options["model_type"] == "unigram" else "llama", **extra)
    for text in texts.corpus():
        assert ours.encode(text, add_special_tokens=False) == from_file.encode(text, add_special_tokens=False), text
    eos, bos = [model.eos_id()], [model.bos_id()]
    framed = ours.encode("ab")
    assert framed[-1:] == eos if options["model_type"] == "unigram" else framed[:1] == bos


def test_a_saved_sentencepiece_tokenizer_is_the_same_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for flavour in ("llama", "t5"):
        folder = tmp_path / flavour
        folder.mkdir()
        train(folder, **FLAVOURS[flavour])
        ours = tokenizer_from_folder(folder)
        ours.save(folder / "saved")
        theirs, again = AutoTokenizer.from_pretrained(folder / "saved"), tokenizer_from_folder(folder / "saved")
        for text in texts.corpus():
            assert ours.encode(text) == theirs.encode(text) == again.encode(text), (flavour, text)


def test_special_tokens_in_text_are_text_when_asked(tmp_path: Path) -> None:
    """A Unigram vocabulary would find </s> as an ordinary piece, and the best-scored one at that."""
    for flavour in ("llama", "unigram", "t5"):
        model = train(tmp_path, **FLAVOURS[flavour])
        ours = tokenizer_from_folder(tmp_path)
        text = "a</s> b <unk>"
        assert model.eos_id() in ours.encode(text, add_special_tokens=False)
        plain = ours.encode(text, add_special_tokens=False, parse_special=False)
        assert model.eos_id() not in plain
        assert plain == model.encode(text), flavour
