"""Tokenizers out of folders: SentencePiece's wire format, configuration files, and what is refused."""

from __future__ import annotations

import io
import json
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import texts
from tokenmill.core.errors import FormatError
from tokenmill.text import modelproto
from tokenmill.text.load import tokenizer_from_folder


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    model = io.BytesIO()
    lines = [line for text in texts.training_text()[:40] for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=600, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


def save(folder: Path, **config: Any) -> Path:
    """A folder with a small ``tokenizer.json`` and this configuration."""
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3, "</s>": 4}, [("a", "b")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_wire_format_is_read_as_protobuf_reads_it(tmp_path: Path, model_bytes: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_bytes)
    ours = modelproto.read_model(path)
    theirs = sentencepiece_model_pb2.ModelProto.FromString(model_bytes)
    assert ours.pieces == [piece.piece for piece in theirs.pieces]
    assert ours.scores == [piece.score for piece in theirs.pieces]
    assert ours.types == [piece.type for piece in theirs.pieces]
    assert ours.charsmap == theirs.normalizer_spec.precompiled_charsmap
    for name in ("unk_id", "bos_id", "eos_id", "pad_id", "model_type"):
        assert getattr(ours, name) == getattr(theirs.trainer_spec, name)


def test_damaged_models_give_typed_errors_only(tmp_path: Path, model_bytes: bytes) -> None:
    rng = random.Random(11)
    path = tmp_path / "tokenizer.model"
    refused = []
    for n in range(600):
        damaged = bytearray(model_bytes if n % 2 else model_bytes[:4000])
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(max(1, len(damaged) if n % 3 else min(200, len(damaged))))
            match rng.randrange(4):
                case 0:
                    damaged[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del damaged[at:]
                case 2:
                    damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 3:
                    damaged[at : at + 10] = b"\xff" * 10
            damaged = damaged or bytearray(b"\x0a")  # an empty file is tested below
        path.write_bytes(bytes(damaged))
        try:
            tokenizer_from_folder(tmp_path).encode("Hello, wörld \u2126 \u1112\u1161\u11ab")
        except FormatError as error:
            refused.append(error.path)
    assert 100 < len(refused) < 600
    assert set(refused) <= {str(path), str(tmp_path)}


def piece(text: bytes, score: float = 0.0, kind: int | None = None) -> bytes:
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
    body += b"" if kind is None else b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "there are none"),
        (b"PK\x03\x04" + b"\0" * 40, "wire type"),
        (b"\x0a\xff\xff\xff\xff\x0f", "4294967295 bytes long, 0 are left"),
        (b"\x0a\x80", "the middle of a number"),
        (b"\x0a" + b"\xff" * 12, "more than ten bytes"),
        (piece(b"\xff\xfe"), "not UTF-8"),
        (piece(b""), "an empty piece"),
        (piece(b"a", float("nan")), "not a finite number"),
        (piece(b"a", kind=9), "unknown type 9"),
        (piece(b"a") * 2, "the same piece stands twice"),
        (piece(b"a") + b"\x12\x02\x18\x03", "WORD is not supported"),
        (piece(b"a") + b"\x12\x03\xc0\x01\x01", "treat_whitespace_as_suffix"),
        (piece(b"a") + b"\x12\x03\xc8\x02\x09", "bos_id: 9 is outside"),
        (piece(b"a") + b"\x2a\x04\x12\x02ab", "rewriting decoded text"),
    ],
)
def test_what_a_model_file_may_not_say(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=problem):
        modelproto.read_model(path)


def test_a_negative_id_means_none(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    minus_one = b"\xff" * 9 + b"\x01"
    path.write_bytes(b"".join(piece(text) for text in (b"a", b"b", b"c")) + b"\x12\x0c\xc8\x02" + minus_one)
    assert modelproto.read_model(path).bos_id == -1


def test_end_ids_templates_and_added_tokens_of_a_folder(tmp_path: Path) -> None:
    save(
        tmp_path,
        eos_token={"content": "</s>", "__type": "AddedToken"},
        bos_token="<s>",
        added_tokens_decoder={"5": {"content": "<|im_end|>", "special": True}, "6": {"content": "<think>"}},
        chat_template=[{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}],
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 0]}')
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode("ab<|im_end|><think></s>") == [2, 5, 6, 4]
    assert tokenizer.eos_token_ids == {0, 4, 5}
    assert (tokenizer.special_ids, tokenizer.vocab_size) == ({3, 4, 5}, 7)
    assert tokenizer.chat_templates == {"default": "d", "tool_use": "t"}
    (tmp_path / "chat_template.jinja").write_text("from a file")
    assert tokenizer_from_folder(tmp_path).chat_templates == {"default": "from a file"}


def test_saving_keeps_templates_and_limits(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    save(source, model_max_length=77, chat_template=[{"name": name, "template": name} for name in ("default", "rag")])
    tokenizer_from_folder(source).save(copy)
    again = tokenizer_from_folder(copy)
    assert again.chat_templates == {"default": "default", "rag": "rag"}
    assert json.loads((copy / "tokenizer_config.json").read_text())["model_max_length"] == 77


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "no tokenizer here: none of tokenizer.json"),
        ({"tokenizer.json": "{"}, "the tokenizer is broken"),
        ({"tokenizer.json": "[]"}, "the tokenizer is broken"),
        ({"tokenizer.json": b"\xff\xfe"}, "byte 0: not UTF-8"),
        ({"tokenizer_config.json": "[]"}, "must be a JSON object, not list"),
        ({"tokenizer_config.json": "{"}, "not JSON"),
        ({"tokenizer_config.json": "[" * 100_000}, "not JSON"),
        ({"tokenizer_config.json": '{"eos_token": 3}'}, "eos_token: must be text, not int"),
        ({"vocab.json": "{}"}, "merges.txt: missing beside vocab.json"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b c"}, "line 1: a merge is two tokens"),
        ({"vocab.txt": "a\nb\n"}, "unk_token: is not in the vocabulary"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "BartTokenizer"}'},
            "how BartTokenizer cuts text is not in its files",
        ),
        (
            {"spiece.model": "", "tokenizer_config.json": '{"tokenizer_class": "XLMRobertaTokenizer"}'},
            "XLMRobertaTokenizer does more than its SentencePiece model says",
        ),
    ],
)
def test_a_broken_folder_is_named_with_its_place(tmp_path: Path, files: dict[str, Any], problem: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError, match=problem):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"9": {"content": "y"}}}, "cannot get this id"),
        ({"added_tokens_decoder": {"5": 3}}, "added_tokens_decoder"),
        ({"chat_template": [{"name": "x"}]}, "a list of {name, template}"),
        ({"chat_template": [{"name": "../x", "template": ""}]}, "may have only letters"),
    ],
)
def test_a_broken_configuration_is_named_with_its_place(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        tokenizer_from_folder(save(tmp_path, **config))


@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "a*"}])
def test_replacements_that_multiply_are_refused(tmp_path: Path, pattern: dict[str, str]) -> None:
    save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": pattern, "content": "aa"}] * 40,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"normalizer: makes texts \d+ times longer"):
        tokenizer_from_folder(tmp_path)


def test_mutated_tokenizer_files_give_typed_errors_only(tmp_path: Path) -> None:
    save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    rng = random.Random(13)
    odd = ["null", "-1", "18446744073709551616", "1e999", '""', '"\\ud800"', "[]", "{}", "true", '"ByteLevel"', '"x"']
    accepted = 0
    for _ in range(1500):
        damaged = text
        for _ in range(rng.randrange(1, 3)):
            if rng.random() < 0.8:  # a value swapped for another
                values = list(re.finditer(r'"[^"]*"(?!\s*:)|\b\d+\b|true|false|null', damaged))
                place = rng.choice(values)
                damaged = damaged[: place.start()] + rng.choice(odd) + damaged[place.end() :]
            else:
                at = rng.randrange(len(damaged))
                damaged = damaged[:at] + damaged[at + rng.randrange(1, 9) :]
        (tmp_path / "tokenizer.json").write_text(damaged)
        try:
            tokenizer = tokenizer_from_folder(tmp_path)
            tokenizer.decode([*tokenizer.encode("ab <s> é"), *tokenizer.encode("ab <s>", parse_special=False), 0, 3, 9])
            accepted += 1
        except FormatError:
            pass
    assert 50 < accepted < 1000


def test_lone_surrogates_are_read_as_replacement_characters(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_folder(save(tmp_path))
    assert tokenizer.encode("ab\ud800") == tokenizer.encode("ab\ufffd")
    assert tokenizer.encode("\ud83d\ude00a") == tokenizer.encode("😀a")
