"""Writes a SentencePiece model file, field by field as `text.modelproto` reads it."""

from __future__ import annotations

import struct

from tokenmill.text.modelproto import SentencePieceModel


def model_bytes(model: SentencePieceModel) -> bytes:
    """The ``ModelProto`` of a model. Numbers of fields: sentencepiece's ``src/sentencepiece_model.proto``."""
    out = bytearray()
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        out += _message(1, _message(1, piece.encode()) + _float(2, score) + _number(3, int(kind)))
    byte_fallback = any(kind == 6 for kind in model.types)
    trainer = _number(3, model.model_type) + _number(4, len(model.pieces)) + _number(35, byte_fallback)
    for field, name in ((40, "unk_id"), (41, "bos_id"), (42, "eos_id"), (43, "pad_id")):
        trainer += _number(field, getattr(model, name))
    out += _message(2, trainer)
    normalizer = _message(1, b"identity") + _message(2, model.charsmap) + _number(3, model.add_dummy_prefix)
    normalizer += _number(4, model.remove_extra_whitespaces) + _number(5, model.escape_whitespaces)
    return bytes(out + _message(3, normalizer))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative ones are sign-extended to 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
