"""Tokenizers out of GGUF metadata: the ``tokenizer.*`` keys that llama.cpp reads.

Four kinds (``tokenizer.ggml.model``): ``gpt2`` (byte-level BPE, cut as ``tokenizer.ggml.pre`` says), ``llama``
(SentencePiece BPE, merges rebuilt from scores), ``bert`` (WordPiece, whose GGUF form marks word beginnings with ▁
instead of continuations with ##), ``t5`` (Unigram). Any other kind or pre-tokenizer is refused by name, never guessed;
so are ids outside the vocabulary, arrays of wrong length or type, byte tokens that name no byte, tokens standing twice.

Defaults where a key is missing are llama.cpp's. It takes a bad id for "use the default"; this refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tokenmill.core.errors import FormatError, did_you_mean
from tokenmill.core.log import get_logger
from tokenmill.text import spm
from tokenmill.text.backend import framing, library_errors
from tokenmill.text.modelproto import PieceType
from tokenmill.text.pieces import BYTE_TOKEN, SPACE
from tokenmill.text.pretokenizers import KINDS, Kind
from tokenmill.text.tokenizer import Tokenizer

_log = get_logger(__name__)

PREFIX = "tokenizer.ggml."
ID_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # GGUF spells it so
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
END_KEYS = ("eot_token_id", "eom_token_id")
_DEFAULT_IDS = {"llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0}, "t5": {"eos_token": 1, "unk_token": 2}}


def tokenizer_from_gguf(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: the file's keys and values, arrays as lists (or numpy arrays).
        path: the file, for error messages.

    Raises:
        FormatError: missing, contradictory or unsupported.
    """
    return _Reader(metadata, path).tokenizer()


class _Reader:
    """One reading of one file's metadata; every value is checked where it is taken."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata, self.path = metadata, path
        self.model = self.get("model", str, None)
        builders = {"gpt2": self._gpt2, "llama": self._llama, "bert": self._bert, "t5": self._t5}
        if self.model not in builders:
            known = ", ".join(builders)
            raise self.error("model", f"tokenizer kind {self.model!r} is not supported; known: {known}")
        self.build = builders[self.model]
        self.tokens = self._tokens()
        self.types = self._types()
        self.names = {name: n for name in ID_KEYS if (n := self.token_id(name)) is not None}
        self.ends = [n for key in END_KEYS if (n := self.checked_id(key)) is not None]
        self._mark_controls()

    def error(self, key: str, problem: str) -> FormatError:
        return FormatError(self.path, PREFIX + key, problem)

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return default
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"must be {kind.__name__}, not {type(value).__name__}")
        return value

    def array(self, key: str, kinds: tuple[type, ...], length: int | None = None) -> list[Any] | None:
        value = self.metadata.get(PREFIX + key)
        if value is None:
            return None
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise self.error(key, f"must be an array, not {type(value).__name__}")
        if not set(map(type, value)) <= set(kinds):
            wrong = next(n for n, item in enumerate(value) if type(item) not in kinds)
            raise self.error(f"{key}[{wrong}]", f"must be {kinds[0].__name__}, not {type(value[wrong]).__name__}")
        if length is not None and len(value) != length:
            raise self.error(key, f"has {len(value)} entries for {length} tokens")
        return list(value)

    def token_id(self, name: str) -> int | None:
        return self.checked_id(ID_KEYS[name], _DEFAULT_IDS.get(self.model, {}).get(name))

    def checked_id(self, key: str, default: int | None = None) -> int | None:
        token_id = self.get(key, int, default)
        if token_id is None or (token_id >= len(self.tokens) and PREFIX + key not in self.metadata):
            return None
        if not 0 <= token_id < len(self.tokens):
            raise self.error(key, f"{token_id} is outside the vocabulary of {len(self.tokens)} tokens")
        return int(token_id)

    def _tokens(self) -> list[str]:
        tokens = self.array("tokens", (str,))
        if not tokens:
            raise self.error("tokens", "missing or empty: the file has no vocabulary")
        # an empty token can never be written, but its place is taken (llama.cpp names it so)
        tokens = [token or f"[EMPTY_{n}]" for n, token in enumerate(tokens)]
        if len(set(tokens)) != len(tokens):
            seen: dict[str, int] = {}
            for n, token in enumerate(tokens):
                if token in seen:
                    raise self.error(f"tokens[{n}]", f"{token!r} stands at {seen[token]} already")
                seen[token] = n
        return tokens

    def _types(self) -> list[int]:
        types = self.array("token_type", (int,), len(self.tokens))
        if types is None:
            types = [int(PieceType.NORMAL)] * len(self.tokens)
            if self.model in ("llama", "t5"):
                raise self.error("token_type", "missing: byte and control tokens cannot be told apart")
        if not set(types) <= set(map(int, PieceType)) | {0}:
            wrong = next(n for n, kind in enumerate(types) if kind not in (0, *PieceType))
            raise self.error(f"token_type[{wrong}]", f"{types[wrong]} is no token type (0 to 6)")
        for n, kind in enumerate(types):
            if kind == PieceType.BYTE and not _is_byte(self.tokens[n]):
                raise self.error(f"tokens[{n}]", f"{self.tokens[n]!r} is marked as a byte, but is not <0x00> … <0xFF>")
        return [kind or int(PieceType.NORMAL) for kind in types]

    def _mark_controls(self) -> None:
        """Old files leave <|im_end|> an ordinary token; what they name as begin or end is a control token."""
        for token_id in (*self.ends, self.names.get("bos_token"), self.names.get("eos_token")):
            if token_id is not None and self.tokens[token_id].startswith(("<", "[")):
                self.types[token_id] = int(PieceType.CONTROL)

    def tokenizer(self) -> Tokenizer:
        with library_errors(self.path, "tokenizer.ggml"):
            backend = self.build()
        return Tokenizer(
            backend,
            origin=self.path,
            names={name: self.tokens[token_id] for name, token_id in self.names.items()},
            end_ids=self.ends,
            chat_templates=self._chat_templates(),
        )

    def _chat_templates(self) -> dict[str, str]:
        start = "tokenizer.chat_template"
        found = {key: value for key, value in self.metadata.items() if key == start or key.startswith(start + ".")}
        for key, value in found.items():
            if not isinstance(value, str):
                raise FormatError(self.path, key, f"must be str, not {type(value).__name__}")
        return {key[len(start) + 1 :] or "default": value for key, value in found.items()}

    def framed(self, backend: Backend, *, bos: bool, eos: bool, sep: bool = False) -> Backend:
        """Put BOS and EOS (or [CLS] and [SEP]) around texts, as the file says or else as `bos`, `eos`, `sep` say."""
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for flag, name, default, side in (
            ("add_bos_token", "bos_token", bos, before),
            ("add_eos_token", "eos_token", eos, after),
            ("add_sep_token", "sep_token", sep, after),
        ):
            if self.get(flag, bool, default):
                if name in self.names:
                    side[self.tokens[self.names[name]]] = self.names[name]
                elif PREFIX + flag in self.metadata:
                    raise self.error(flag, f"is true, but there is no {ID_KEYS[name]}")
        if before or after:
            backend.post_processor = framing(before, after)
        return backend

    def _gpt2(self) -> Backend:
        kind = self._kind()
        merges = self.array("merges", (str,))
        if merges is None:
            raise self.error("merges", "missing")
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        for n, pair in enumerate(pairs):
            if len(pair) != 2 or not all(pair):
                raise self.error(f"merges[{n}]", f"{merges[n]!r} is not two tokens with a space between")
        vocab = {token: n for n, token in enumerate(self.tokens)}
        backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=kind.ignore_merges))
        if (normalizer := kind.normalizer()) is not None:
            backend.normalizer = normalizer
        backend.pre_tokenizer, backend.decoder = kind.pre_tokenizer(), decoders.ByteLevel()
        backend.add_tokens(spm.added_tokens(self.tokens, self.types))
        return self.framed(backend, bos=kind.add_bos, eos=False)

    def _kind(self) -> Kind:
        name = self.get("pre", str, None)
        if name is None:
            # as llama.cpp: files from before the key existed
            _log.warning("%s has no %spre: text is cut in a generic way, answers may suffer", self.path, PREFIX)
            name = "default"
        if name not in KINDS:
            raise self.error("pre", f"pre-tokenizer {name!r} is not known{did_you_mean(name, KINDS)}")
        return KINDS[name]

    def _scores(self) -> list[float]:
        scores = self.array("scores", (float, int), len(self.tokens))
        if scores is None:
            raise self.error("scores", "missing")
        for n, score in enumerate(scores):
            if not -1e30 < score < 1e30:
                raise self.error(f"scores[{n}]", f"{score} is not a finite number")
        return scores

    def _spelling(self, *, add_dummy_prefix: bool, charsmap: bytes = b"") -> spm.Spelling:
        return spm.Spelling(
            charsmap=charsmap,
            add_dummy_prefix=self.get("add_space_prefix", bool, add_dummy_prefix),
            remove_extra_whitespaces=self.get("remove_extra_whitespaces", bool, False),
        )

    def _llama(self) -> Backend:
        backend = spm.bpe(self.tokens, self._scores(), self.types, unk_id=self.names.get("unk_token"))
        spelling = self._spelling(add_dummy_prefix=True)
        backend.normalizer, backend.decoder = spelling.normalizer(), spelling.decoder()
        return self.framed(backend, bos=True, eos=False)

    def _t5(self) -> Backend:
        charsmap = self.array("precompiled_charsmap", (int,)) or []
        if not set(charsmap) <= set(range(-128, 256)):
            raise self.error("precompiled_charsmap", "must be bytes")
        backend = spm.unigram(self.tokens, self._scores(), self.types, unk_id=self.names.get("unk_token"))
        spelling = self._spelling(add_dummy_prefix=False, charsmap=bytes(byte & 0xFF for byte in charsmap))
        backend.normalizer, backend.decoder = spelling.normalizer(), spelling.decoder()
        return self.framed(backend, bos=False, eos=True)

    def _bert(self) -> Backend:
        texts = [
            token if kind in (PieceType.CONTROL, PieceType.UNKNOWN) else _continued(token)
            for token, kind in zip(self.tokens, self.types, strict=True)
        ]
        for name, usual in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]")):
            other = self.names.get("bos_token") if name == "cls_token" else None
            if name not in self.names and (found := other if other is not None else _index(texts, usual)) is not None:
                self.names[name] = found
        if missing := [name for name in ("unk_token", "cls_token", "sep_token") if name not in self.names]:
            raise self.error(ID_KEYS[missing[0]], "missing")
        if len(set(texts)) != len(texts):
            raise self.error("tokens", "two tokens are one when written with ##")
        self.tokens = texts
        unknown = texts[self.names["unk_token"]]
        backend = Backend(models.WordPiece({token: n for n, token in enumerate(texts)}, unk_token=unknown))
        lowercase = self.get("normalizer.lowercase", bool, True)
        strip_accents = self.get("normalizer.strip_accents", bool, lowercase)
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
        backend.add_tokens(spm.added_tokens(texts, self.types))
        self.names["bos_token"] = self.names["cls_token"]
        return self.framed(backend, bos=True, eos=False, sep=True)


def _is_byte(token: str) -> bool:
    return BYTE_TOKEN.fullmatch(token) is not None and token == token[:3] + token[3:5].upper() + ">"


def _continued(token: str) -> str:
    """GGUF's ``▁word`` and ``ing`` are BERT's ``word`` and ``##ing``."""
    return token[1:] if token.startswith(SPACE) and token != SPACE else "##" + token


def _index(texts: Sequence[str], text: str) -> int | None:
    return texts.index(text) if text in texts else None
