"""Builds tokenizers of the SentencePiece kind out of pieces, scores and flags, wherever these come from.

SentencePiece BPE has no list of merges: whichever neighbours make the piece with the best score merge first. The
tokenizers library wants that order as merges, so every way to cut a piece into two pieces becomes one, ordered by the
whole's score and then the longer left part, as transformers orders them. Control, unknown, byte and user-defined pieces
take no part: SentencePiece never makes those out of text.

Where added tokens cut a text, each part gets the dummy prefix, as in llama.cpp and the ``tokenizer.json`` of Llama 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from tokenmill.text.modelproto import PieceType
from tokenmill.text.pieces import BYTE_TOKEN, SPACE

_MERGING = frozenset({PieceType.NORMAL, PieceType.UNUSED})


@dataclass(frozen=True)
class Spelling:
    """How SentencePiece prepares text: its ``NormalizerSpec``."""

    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True

    def normalizer(self) -> normalizers.Normalizer:
        steps: list[normalizers.Normalizer] = []
        if self.charsmap:
            steps.append(normalizers.Precompiled(self.charsmap))
        if self.remove_extra_whitespaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.add_dummy_prefix:
            steps.append(normalizers.Prepend(SPACE if self.escape_whitespaces else " "))
        if self.escape_whitespaces:
            steps.append(normalizers.Replace(" ", SPACE))
        return normalizers.Sequence(steps)

    def decoder(self) -> decoders.Decoder:
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.add_dummy_prefix:
            steps.append(decoders.Strip(content=" ", left=1, right=0))
        return decoders.Sequence(steps)


def merges_of(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """The merges that a SentencePiece BPE vocabulary implies, best first."""
    mergeable = {piece for piece, kind in zip(pieces, types, strict=True) if kind in _MERGING}
    found: list[tuple[float, int, int, str]] = []
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        if kind in _MERGING:
            for at in range(1, len(piece)):
                if piece[:at] in mergeable and piece[at:] in mergeable:
                    found.append((-score, -at, at - len(piece), piece))
    found.sort(key=lambda merge: merge[:3])
    return [(piece[:-at], piece[-at:]) for _, at, _, piece in found]


def bpe(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, unk_id: int | None, merging: bool = True
) -> Tokenizer:
    """SentencePiece BPE; without `merging` its character model."""
    model = models.BPE(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=merges_of(pieces, scores, types) if merging else [],
        unk_token=None if unk_id is None else pieces[unk_id],
        fuse_unk=True,
        byte_fallback=_has_bytes(pieces, types),
    )
    return _with_added(model, pieces, types)


def unigram(pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], *, unk_id: int | None) -> Tokenizer:
    """SentencePiece Unigram."""
    vocab = list(zip(pieces, scores, strict=True))
    model = models.Unigram(vocab, unk_id=unk_id, byte_fallback=_has_bytes(pieces, types))
    return _with_added(model, pieces, types)


def _has_bytes(pieces: Sequence[str], types: Sequence[int]) -> bool:
    known = {piece for piece, kind in zip(pieces, types, strict=True) if kind == PieceType.BYTE}
    return sum(BYTE_TOKEN.fullmatch(piece) is not None for piece in known) == 256


def _with_added(model: models.Model, pieces: Sequence[str], types: Sequence[int]) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens(added_tokens(pieces, types))
    return tokenizer


def added_tokens(pieces: Sequence[str], types: Sequence[int]) -> list[AddedToken]:
    """The pieces matched in the text as they stand: control and unknown ones special, user-defined ones not."""
    whole = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED)
    return [
        AddedToken(piece, special=kind != PieceType.USER_DEFINED, normalized=False)
        for piece, kind in zip(pieces, types, strict=True)
        if kind in whole
    ]
