"""Tokenizers into GGUF metadata: the ``tokenizer.*`` keys that llama.cpp reads, the way back of ``text/gguf.py``.

What GGUF says of a tokenizer is less than what a ``tokenizer.json`` can say: a kind, a vocabulary, the name of a way to
cut text. So the keys are read again with our own reader, and ids of awkward texts must come out the same; a tokenizer
that no keys describe is refused, never written nearly right.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models

from tokenmill.core.errors import FormatError
from tokenmill.text.compare import sample_texts
from tokenmill.text.gguf import END_KEYS, ID_KEYS, PREFIX, tokenizer_from_gguf
from tokenmill.text.modelproto import PieceType
from tokenmill.text.pieces import BYTE_TOKEN, SPACE
from tokenmill.text.pretokenizers import KINDS
from tokenmill.text.tokenizer import Tokenizer

_PROBES = (
    "Hello  world!\n\n\tI'll  don't WE'RE x1234567 3.14\u00a0€5 ",
    "a_b(c){\r\n    return !x && y[0] == 'z';\r\n}  // ∑ ñ e\u0301 Ω",
    "Straße 東京 한국어 हिन्दी العربية עברית ไทย 🙂👩‍👩‍👧 ½ Ⅷ ١٢٣ \u200b",
    " leading", "trailing   ", "\n", "CamelCaseXMLHttp HTTPServer ...!!!??? --- ``` #$%^",
)  # fmt: skip


def gguf_from_tokenizer(tokenizer: Tokenizer, rows: int, origin: Path) -> dict[str, Any]:
    """The ``tokenizer.*`` keys for a model whose embedding has ``rows`` rows.

    Rows beyond the vocabulary are named ``[PADn]``, as llama.cpp's conversion names them. FormatError (about
    ``origin``) for a tokenizer that GGUF cannot describe.
    """
    state = tokenizer.state()
    builders = {"BPE": _bpe, "WordPiece": _word_piece, "Unigram": _unigram}
    kind = state["model"].get("type", "BPE")
    if kind not in builders:
        raise FormatError(
            origin, "tokenizer", f"GGUF has no kind for a {kind} vocabulary; known: {', '.join(builders)}"
        )
    if tokenizer.vocab_size > rows:
        raise FormatError(origin, "tokenizer", f"has {tokenizer.vocab_size} tokens for an embedding of {rows} rows")
    tokens = [tokenizer.id_to_token(number) or f"[PAD{number}]" for number in range(rows)]
    keys: dict[str, Any] = {"tokens": tokens, "token_type": _types(tokenizer, state, tokens)}
    keys |= builders[kind](tokenizer, state, keys, origin)
    keys |= _framing(tokenizer, keys["model"], origin) | _ids(tokenizer)
    named = {PREFIX + key: value for key, value in keys.items()} | _templates(tokenizer)
    again = tokenizer_from_gguf(named, origin)
    _check(tokenizer, again, origin)
    # ends of a turn that are known by their names need no key
    others = sorted(tokenizer.eos_token_ids - again.eos_token_ids)
    return named | dict(zip((PREFIX + key for key in END_KEYS), others, strict=False))


def _types(tokenizer: Tokenizer, state: Mapping[str, Any], tokens: list[str]) -> list[int]:
    added = {token["id"]: token["special"] for token in state["added_tokens"]}
    fallback, bpe = bool(state["model"].get("byte_fallback")), state["model"].get("type", "BPE") == "BPE"
    types = []
    for number, token in enumerate(tokens):
        if tokenizer.id_to_token(number) is None:
            kind = PieceType.UNUSED
        elif number == tokenizer.unk_token_id and (fallback or not bpe):
            kind = PieceType.UNKNOWN
        elif number in added:
            kind = PieceType.CONTROL if added[number] else PieceType.USER_DEFINED
        elif fallback and BYTE_TOKEN.fullmatch(token):
            kind = PieceType.BYTE
        else:
            kind = PieceType.NORMAL
        types.append(int(kind))
    return types


def _bpe(tokenizer: Tokenizer, state: Mapping[str, Any], keys: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in state["model"]["merges"]]
    if any(step.get("type") == "ByteLevel" for step in _steps(state.get("pre_tokenizer"))):
        name = _cut(tokenizer, bool(state["model"].get("ignore_merges")), origin)
        return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges]}
    # SentencePiece: a piece's score is the rank of the merge that makes it
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [float(-ranks.get(token, len(merges))) for token in keys["tokens"]]
    return {"model": "llama", "pre": "default", "scores": scores, **_spelling(state)}


def _unigram(tokenizer: Tokenizer, state: Mapping[str, Any], keys: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    del tokenizer, origin
    known = dict(state["model"]["vocab"])
    scores = [float(known.get(token, 0.0)) for token in keys["tokens"]]
    found: dict[str, Any] = {"model": "t5", "pre": "default", "scores": scores, **_spelling(state)}
    for step in _steps(state.get("normalizer")):
        if step.get("type") == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            found["precompiled_charsmap"] = [byte - 256 if byte > 127 else byte for byte in charsmap]
    return found


def _word_piece(
    tokenizer: Tokenizer, state: Mapping[str, Any], keys: Mapping[str, Any], origin: Path
) -> dict[str, Any]:
    """GGUF marks beginnings with ▁ where BERT marks continuations with ##."""
    del tokenizer, origin
    plain = (int(PieceType.CONTROL), int(PieceType.UNKNOWN), int(PieceType.UNUSED))
    tokens = [
        token if kind in plain else token[2:] if token.startswith("##") else SPACE + token
        for token, kind in zip(keys["tokens"], keys["token_type"], strict=True)
    ]
    found: dict[str, Any] = {"model": "bert", "pre": "default", "tokens": tokens}
    for step in _steps(state.get("normalizer")):
        if step.get("type") == "BertNormalizer":
            lowercase, accents = step.get("lowercase", True), step.get("strip_accents")
            found["normalizer.lowercase"] = lowercase
            found["normalizer.strip_accents"] = lowercase if accents is None else accents
    return found


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parts of a sequence, or the one part."""
    if part is None:
        return
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if part.get("type") == "Sequence" and key in part:
            for step in part[key]:
                yield from _steps(step)
            return
    yield part


def _spelling(state: Mapping[str, Any]) -> dict[str, bool]:
    """How SentencePiece prepares text, as far as GGUF has words for it."""
    steps = [*_steps(state.get("normalizer")), *_steps(state.get("pre_tokenizer"))]
    begins = any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )
    squeezes = any(
        step.get("type") == "Replace" and step.get("pattern", {}).get("Regex") in (" {2,}", "( ){2,}") for step in steps
    )
    return {"add_space_prefix": begins, "remove_extra_whitespaces": squeezes}


def _cut(tokenizer: Tokenizer, ignore_merges: bool, origin: Path) -> str:
    """llama.cpp's name of the way this tokenizer cuts text: one that cuts awkward texts alike."""
    ours = _pieces(tokenizer.backend())
    alike: list[str] = []
    seen = set()
    for name, kind in KINDS.items():
        if kind in seen:
            continue
        seen.add(kind)
        other = Backend(models.BPE())
        other.pre_tokenizer = kind.pre_tokenizer()
        if (normalizer := kind.normalizer()) is not None:
            other.normalizer = normalizer
        if _pieces(other) == ours:
            if kind.ignore_merges == ignore_merges:
                return name
            alike.append(name)
    if alike:  # whole words that merges reach anyway: the check of ids will tell
        return alike[0]
    raise FormatError(origin, "tokenizer", "cuts text in a way that llama.cpp has no name for; it cannot go into GGUF")


def _pieces(backend: Backend) -> list[Any]:
    """How a tokenizer cuts the awkward texts before it looks into its vocabulary."""
    found = []
    for text in _texts():
        text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        found.append(backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else text)
    return found


def _texts() -> list[str]:
    """Awkward texts, then some in many languages, and code."""
    return [*_PROBES, *(text[:400] for texts in sample_texts().values() for text in texts)]


def _framing(tokenizer: Tokenizer, model: str, origin: Path) -> dict[str, bool]:
    """What is put around a text, as flags."""
    bare, framed = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    at = next((n for n in range(len(framed)) if framed[n : n + len(bare)] == bare), 0)
    before, after = framed[:at], framed[at + len(bare) :]
    begin = tokenizer.token_to_id(tokenizer.special_tokens.get("cls_token", "")) if model == "bert" else None
    begin = tokenizer.bos_token_id if begin is None else begin
    separator = tokenizer.token_to_id(tokenizer.special_tokens.get("sep_token", ""))
    end = separator if model == "bert" else tokenizer.eos_token_id
    if before not in ([], [begin]) or after not in ([], [end]):
        raise FormatError(
            origin, "tokenizer", f"puts {before} before and {after} after a text: GGUF has no word for it"
        )
    found = {"add_bos_token": bool(before), "add_eos_token": bool(after) and model != "bert"}
    return found | ({"add_sep_token": bool(after)} if model == "bert" else {})


def _ids(tokenizer: Tokenizer) -> dict[str, int]:
    found = {}
    for name, key in ID_KEYS.items():
        token = tokenizer.special_tokens.get(name)
        number = None if token is None else tokenizer.token_to_id(token)
        if number is not None:
            found[key] = number
    return found


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {}
    others = {name: source for name, source in tokenizer.chat_templates.items() if name != "default"}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    if others:
        found["tokenizer.chat_templates"] = list(others)
        found |= {f"tokenizer.chat_template.{name}": source for name, source in others.items()}
    return found


def _check(tokenizer: Tokenizer, again: Tokenizer, origin: Path) -> None:
    """The keys, read again, must cut and number awkward texts as the tokenizer does."""
    for text in _texts():
        for special in (True, False):
            ours, theirs = (which.encode(text, add_special_tokens=special) for which in (tokenizer, again))
            if ours != theirs:
                problem = f"GGUF cannot say all that it does: {text[:40]!r} would become other ids"
                raise FormatError(origin, "tokenizer", problem)
