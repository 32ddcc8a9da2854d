"""Reads a SentencePiece model file: the few fields of its ``ModelProto`` that say how text becomes ids.

Protocol-buffers wire format, read directly and bounded by the file's own length (a length that points past the end is
FormatError before anything is allocated). Field numbers: sentencepiece's ``src/sentencepiece_model.proto``. Fields that
only matter in training are skipped; those that change tokenization and are not understood are refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tokenmill.core.errors import FormatError

MAX_BYTES = 256 << 20


class PieceType(IntEnum):
    """What a piece of the vocabulary is. GGUF's ``token_type`` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4


@dataclass
class SentencePieceModel:
    """A model as its file describes it, with the proto's defaults."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[PieceType] = field(default_factory=list)
    model_type: int = UNIGRAM
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_model(path: Path) -> SentencePieceModel:
    """Read ``tokenizer.model`` / ``spiece.model``; FormatError if it is broken or uses what is not supported."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise FormatError(path, "", f"{size} bytes are too many for a SentencePiece model")
    data = memoryview(path.read_bytes())
    model = SentencePieceModel()
    for number, value in _fields(data, path, "model"):
        match number, value:
            case 1, memoryview():
                _read_piece(value, model, path)
            case 2, memoryview():
                _read_trainer(value, model, path)
            case 3, memoryview():
                _read_normalizer(value, model, path)
            case 5, memoryview():
                denormalizer = SentencePieceModel()
                _read_normalizer(value, denormalizer, path)
                if denormalizer.charsmap:
                    raise FormatError(path, "denormalizer_spec", "rewriting decoded text is not supported")
    if not model.pieces:
        raise FormatError(path, "pieces", "there are none; is this a SentencePiece model?")
    if len(set(model.pieces)) != len(model.pieces):
        raise FormatError(path, "pieces", "the same piece stands twice")
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        if getattr(model, name) >= len(model.pieces):
            raise FormatError(path, f"trainer_spec.{name}", f"{getattr(model, name)} is outside the vocabulary")
    return model


def _read_piece(data: memoryview, model: SentencePieceModel, path: Path) -> None:
    where = f"pieces[{len(model.pieces)}]"
    text, score, kind = "", 0.0, PieceType.NORMAL
    for number, value in _fields(data, path, where):
        match number, value:
            case 1, memoryview():
                try:
                    text = str(value, "utf-8")
                except UnicodeDecodeError as error:
                    raise FormatError(path, where, "the piece is not UTF-8") from error
            case 2, float():
                score = value
            case 3, int():
                try:
                    kind = PieceType(value)
                except ValueError:
                    raise FormatError(path, where, f"unknown type {value}") from None
            case 1 | 2 | 3, _:
                raise FormatError(path, where, f"field {number} has the wrong type")
    if not text:
        raise FormatError(path, where, "an empty piece")
    if not -1e30 < score < 1e30:
        raise FormatError(path, where, f"score {score} is not a finite number")
    model.pieces.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _read_trainer(data: memoryview, model: SentencePieceModel, path: Path) -> None:
    ids = {40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
    for number, value in _fields(data, path, "trainer_spec"):
        if number == 3 and isinstance(value, int):
            if value not in (UNIGRAM, BPE, CHAR):
                kind = "WORD" if value == WORD else value
                raise FormatError(path, "trainer_spec.model_type", f"{kind} is not supported: unigram, bpe or char is")
            model.model_type = value
        elif number == 24 and value:
            raise FormatError(path, "trainer_spec.treat_whitespace_as_suffix", "is not supported")
        elif number in ids and isinstance(value, int):
            # int32, negative ones sign-extended to 64 bits
            setattr(model, ids[number], value - (1 << 64) if value >= 1 << 63 else value)


def _read_normalizer(data: memoryview, model: SentencePieceModel, path: Path) -> None:
    flags = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}
    for number, value in _fields(data, path, "normalizer_spec"):
        if number == 2 and isinstance(value, memoryview):
            model.charsmap = bytes(value)
        elif number in flags and isinstance(value, int):
            setattr(model, flags[number], bool(value))


def _fields(data: memoryview, path: Path, where: str) -> Iterator[tuple[int, int | float | memoryview]]:
    """(field number, value) of one message: varints as int, fixed32 as float, the rest as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, path, where)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, path, where)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at, path, where)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise FormatError(path, where, f"wire type {wire} of field {number}: not a SentencePiece model")
        if size > len(data) - at:
            raise FormatError(path, where, f"field {number} is {size} bytes long, {len(data) - at} are left")
        body = data[at : at + size]
        at += size
        yield number, struct.unpack("<f", body)[0] if wire == 5 else body


def _varint(data: memoryview, at: int, path: Path, where: str) -> tuple[int, int]:
    value = 0
    for n in range(10):
        if at + n >= len(data):
            raise FormatError(path, where, "the file ends in the middle of a number")
        byte = data[at + n]
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + n + 1
    raise FormatError(path, where, "a number of more than ten bytes")
