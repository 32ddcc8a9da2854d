"""What each token contributes to the text, as bytes.

The tokenizers library decodes whole lists. Streaming needs one token's share, and needs it as bytes, for a character
may be spread over several tokens. This module reads the library's decoder (the ``decoder`` of a ``tokenizer.json``) and
gives that share for the kinds that language models use: byte-level BPE, SentencePiece with byte fallback, Metaspace,
WordPiece, none. Anything else (CTC, BPEDecoder) is refused by name.

One deliberate difference from the library: its ByteFallback writes one U+FFFD for *every* byte of a run of byte tokens
as soon as one of them is invalid, so that a good character's fate hangs on tokens to come. Here a run of byte tokens
decodes as any byte stream does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenmill.core.errors import FormatError

SPACE = "\u2581"
"""SentencePiece's visible space."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (Radford et al. 2019, ``encoder.py``): character → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


ALPHABET = byte_level_alphabet()


@dataclass(frozen=True)
class Pieces:
    """One decoder's rule. `share(token, first)` gives the bytes; `strip` leading spaces go from the whole text."""

    share: Callable[[str, bool], bytes]
    strip: int = 0


def pieces_of(decoder: dict[str, Any] | None, path: str) -> Pieces:
    """The rule for a decoder as ``tokenizer.json`` writes it; FormatError for one that is not understood."""
    if decoder is None:
        return Pieces(lambda token, first: token.encode() if first else b" " + token.encode())
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return Pieces(_byte_level)
    if kind == "Metaspace":
        return _metaspace(decoder)
    if kind == "WordPiece":
        return _word_piece(decoder)
    if kind in ("Sequence", "Replace", "ByteFallback", "Fuse", "Strip"):
        return _sequence(decoder["decoders"] if kind == "Sequence" else [decoder], path)
    known = "ByteLevel, Metaspace, WordPiece, or a Sequence of Replace, ByteFallback, Fuse, Strip"
    raise FormatError(path, "decoder", f"kind {kind!r} is not understood; known: {known}")


def _byte_level(token: str, first: bool) -> bytes:
    try:
        return bytes([ALPHABET[char] for char in token])
    except KeyError:  # an added token, written as itself
        return token.encode()


def _metaspace(decoder: dict[str, Any]) -> Pieces:
    mark = decoder.get("replacement", SPACE)
    keeps_first = decoder.get("prepend_scheme", "always") == "never"

    def share(token: str, first: bool) -> bytes:
        return token.replace(mark, "" if first and not keeps_first else " ").encode()

    return Pieces(share)


# the library's WordPiece clean-up, applied to one token at a time
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _word_piece(decoder: dict[str, Any]) -> Pieces:
    prefix, cleanup = decoder.get("prefix", "##"), decoder.get("cleanup", True)

    def share(token: str, first: bool) -> bytes:
        if not first:
            token = token[len(prefix) :] if token.startswith(prefix) else " " + token
        if cleanup:
            for spaced, joined in _CLEANUP:
                token = token.replace(spaced, joined)
        return token.encode()

    return Pieces(share)


def _sequence(steps: list[dict[str, Any]], path: str) -> Pieces:
    replaced: list[tuple[str, str]] = []
    byte_fallback, fused, strip = False, False, 0
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused:
                replaced.append((old, new))
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": int(strip), "stop": 0} if fused:
                pass
            case {"type": "ByteLevel"} if len(steps) == 1:
                return Pieces(_byte_level)
            case _:
                raise FormatError(path, "decoder", f"step {step!r} of the sequence is not understood")

    def share(token: str, first: bool) -> bytes:
        if byte_fallback and (hexadecimal := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(hexadecimal[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return Pieces(share, strip)
