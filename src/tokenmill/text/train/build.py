"""Trains tokenizers with the tokenizers library and gives them their special tokens, bytes, template and padding.

What the library leaves to chance is decided here, so that the same text gives the same tokenizer: which characters have
tokens of their own (counted in a pass before), and the order of Unigram's pieces. Memory follows from the number of
different words, not from the length of the text: texts are cut into pieces of some kilobytes on their way in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import atomic_write
from tokenmill.text import spm
from tokenmill.text.backend import framing
from tokenmill.text.modelproto import PieceType, SentencePieceModel
from tokenmill.text.pieces import SPACE
from tokenmill.text.pretokenizers import KINDS, Kind
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.train.pieces import unigram_pieces
from tokenmill.text.train.protofile import model_bytes
from tokenmill.text.train.spec import BPE, BYTE_BPE, CHAR, UNIGRAM, WORDPIECE, TokenizerSpec

MOST_BYTES = (1 << 31) - 1
"""Text that may be learned from. The library counts pairs in 32 bits with a sign; no pair is more frequent than there
are bytes, so up to here no count overflows (tokenizers issue 437: "the" was lost that way)."""
PIECE_CHARS = 1 << 13
"""Characters that are cut into words at once; the library holds about a hundred bytes for each."""
PRINTABLE = frozenset(map(chr, range(0x21, 0x7F))) | {SPACE, "\n"}
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPELLING = spm.Spelling()
"""Of bpe and unigram: ``▁`` for spaces and one before the text."""
PLAIN = spm.Spelling(add_dummy_prefix=False, escape_whitespaces=False)

Texts = Callable[[], Iterable[str]]
"""Gives the texts from the beginning each time it is called."""
Stage = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A new tokenizer, and its SentencePiece model where the kind has one."""

    tokenizer: Tokenizer
    sentencepiece: SentencePieceModel | None
    learned: int
    """Tokens that were learned or are single characters; the rest is special, bytes and padding."""

    def save(self, folder: Path) -> None:
        """Write the folder that `load_tokenizer`, transformers and (``tokenizer.model``) SentencePiece read."""
        self.tokenizer.save(folder)
        model = folder / "tokenizer.model"
        if self.sentencepiece is None:
            model.unlink(missing_ok=True)  # of a tokenizer that was here before
        else:
            with atomic_write(model) as file:
                file.write(model_bytes(self.sentencepiece))


def train_tokenizer(spec: TokenizerSpec, texts: Texts, *, stage: Stage | None = None) -> Trained:
    """Learn a tokenizer.

    Args:
        texts: at most `MOST_BYTES` together.
        stage: is told what is being done.

    Raises:
        ConfigError: there is no text.
    """
    say = stage or (lambda what: None)
    if spec.kind == BYTE_BPE:
        say("learning merges")
        return _finished(spec, _byte_bpe(spec, _pieces(texts)))
    say("counting characters")
    counts, kept = _alphabet(spec, texts)
    say("learning the vocabulary")
    if spec.kind == WORDPIECE:
        return _finished(spec, _wordpiece(spec, _pieces(texts), kept))
    pieces, merges = {BPE: _bpe, UNIGRAM: _unigram, CHAR: _char}[spec.kind](spec, texts, counts, kept)
    return _from_pieces(spec, pieces, merges)


def _pieces(texts: Texts) -> Iterator[str]:
    """The texts in short pieces that end behind white space; ConfigError where there are none."""
    some = False
    for text in texts():
        at = 0
        while at < len(text):
            end = at + PIECE_CHARS
            if end < len(text):
                end = max(text.rfind("\n", at, end), text.rfind(" ", at, end), at) + 1
                end = end if end > at + 1 else at + PIECE_CHARS
            some = True
            yield text[at:end]
            at = end
    if not some:
        raise ConfigError("there is no text to train a tokenizer on")


def _alphabet(spec: TokenizerSpec, texts: Texts) -> tuple[Counter[str], list[str]]:
    """How often each character is there after normalising, and those of them that get tokens, by code point."""
    raw: Counter[str] = Counter()
    for text in texts():
        raw.update(text)
    if not raw:
        raise ConfigError("there is no text to train a tokenizer on")
    normalizer = _normalizer(spec)
    counts: Counter[str] = Counter()
    for char, count in raw.items():
        for new in char if normalizer is None else normalizer.normalize_str(char):
            counts[new] += count
    if spec.kind in (BPE, UNIGRAM):
        counts[SPACE] += counts.pop(" ", 0) + 1
    room = spec.size - len(spec.special_tokens)
    room = room - 256 if spec.bytes_as_pieces else room // 2  # wordpiece has every character twice, with ## and without
    wanted, seen = spec.coverage * counts.total(), 0
    kept: list[str] = []
    for char, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        # rare as they may be in this text, ASCII's characters are in every other
        if (seen < wanted or char in PRINTABLE) and len(kept) < room:
            kept.append(char)
        seen += count
    return counts, sorted(kept)


# --- the kinds


def _cut_by_model(spec: TokenizerSpec) -> Kind:
    """A model's patterns, with numbers in groups of at most ``spec.digits``."""
    kind = KINDS[spec.cut]
    if not spec.digits:
        return kind
    group = rf"\p{{N}}{{1,{spec.digits}}}"
    patterns = tuple(pattern.replace(r"\p{N}{1,3}", group) for pattern in kind.patterns)
    return Kind(patterns if patterns != kind.patterns else (group, *patterns))


def _byte_bpe(spec: TokenizerSpec, texts: Iterator[str]) -> Backend:
    backend = Backend(models.BPE())
    if (normalizer := _normalizer(spec)) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer, backend.decoder = _cut_by_model(spec).pre_tokenizer(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.size,
        min_frequency=spec.min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=spec.special_tokens,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    bos = spec.named_tokens["bos_token"]
    backend.post_processor = framing({bos: spec.special_tokens.index(bos)}, {})
    return backend


def _wordpiece(spec: TokenizerSpec, texts: Iterator[str], kept: list[str]) -> Backend:
    """BERT's. The library learns it by merging pairs, as its authors did not publish theirs."""
    lower = spec.lowercase
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # "##x" of every character goes in as a special token, for the library would number them in the order of a hash
    alphabet = [char for char in kept if not char.isspace()]
    first = [*spec.special_tokens, *alphabet, *(f"##{char}" for char in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.size,
        min_frequency=spec.min_frequency,
        special_tokens=first,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocab = backend.get_vocab(with_added_tokens=False)
    new = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    new.normalizer, new.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    new.decoder = decoders.WordPiece(prefix="##")
    new.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in spec.special_tokens])
    new.post_processor = framing({"[CLS]": vocab["[CLS]"]}, {"[SEP]": vocab["[SEP]"]})
    return new


Pieces = list[tuple[str, float]]
Merges = list[tuple[str, str]] | None


def _bpe(spec: TokenizerSpec, texts: Texts, counts: Counter[str], kept: list[str]) -> tuple[Pieces, Merges]:
    backend = Backend(models.BPE())
    _prepare(backend, spec)
    trainer = trainers.BpeTrainer(
        vocab_size=spec.size - len(spec.special_tokens) - 256,
        min_frequency=spec.min_frequency,
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        special_tokens=[],
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(texts), trainer)
    model = json.loads(backend.to_str())["model"]
    # as SentencePiece writes BPE: the score is the rank of the merge
    return [(piece, -float(rank)) for rank, piece in enumerate(model["vocab"])], [tuple(m) for m in model["merges"]]


def _unigram(spec: TokenizerSpec, texts: Texts, counts: Counter[str], kept: list[str]) -> tuple[Pieces, Merges]:
    backend = Backend(models.Unigram())
    _prepare(backend, spec)
    room = spec.size - len(spec.special_tokens) - 256
    trainer = trainers.UnigramTrainer(
        # the library keeps every character, rare ones too: these are taken out again
        vocab_size=room + len(counts),
        special_tokens=[],
        max_piece_length=16,
        show_progress=False,
    )
    backend.train_from_iterator(_pieces(texts), trainer)
    learned = [(str(piece), float(score)) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]
    return unigram_pieces(learned, counts, kept, room), None


def _char(spec: TokenizerSpec, texts: Texts, counts: Counter[str], kept: list[str]) -> tuple[Pieces, Merges]:
    return [(char, 0.0) for char in kept], []


def _prepare(backend: Backend, spec: TokenizerSpec) -> None:
    """How bpe and unigram read text, in training and later: spaces made visible, then cut before each."""
    steps: list[Any] = [] if (form := _normalizer(spec)) is None else [form]
    spelling = PLAIN if spec.kind == CHAR else SPELLING
    backend.normalizer = normalizers.Sequence([*steps, spelling.normalizer()]) if spec.kind != CHAR or steps else None
    if spec.kind != CHAR:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_word_pattern(spec)), behavior="isolated")


def _word_pattern(spec: TokenizerSpec) -> str:
    """A run of letters, of digits or of signs, with the space before it; nothing is learned across two runs.

    Classes of characters alone decide, so that a Unigram model finds the same borders without being cut: SentencePiece,
    which does not cut, gives the same ids. For the same reason each further space stands alone there; bpe, as a model
    for code wants it, learns runs of them.
    """
    letters, digits, signs = r"[\p{L}\p{M}]+", r"\p{N}+", rf"[^{SPACE}\s\p{{L}}\p{{M}}\p{{N}}]+"
    if spec.digits:
        digits = r"\p{N}"
    if spec.cut == "punctuation":
        signs = signs.removesuffix("+")
    runs = "|".join(f"{SPACE}?{run}" for run in (letters, digits, signs))
    spaces = SPACE if spec.kind == UNIGRAM else rf"{SPACE}+(?={SPACE}[^{SPACE}\s])|{SPACE}+"
    return rf"{runs}|{spaces}|\s+"


def _from_pieces(spec: TokenizerSpec, learned: Pieces, merges: Merges) -> Trained:
    """A tokenizer out of pieces, laid out as SentencePiece does: unknown, control, bytes, then what was learned."""
    rows = [(t, 0.0, PieceType.UNKNOWN if t == "<unk>" else PieceType.CONTROL) for t in spec.special_tokens]
    rows += [(token, 0.0, PieceType.BYTE) for token in BYTES]
    taken = {piece for piece, _, _ in rows}
    rows += [(piece, score, PieceType.NORMAL) for piece, score in learned if piece not in taken]
    count = len(rows)
    rows += [(token, 0.0, PieceType.CONTROL) for token in _reserved(spec, count)]
    pieces, scores, types = (list(column) for column in zip(*rows, strict=True))
    unk_id = pieces.index("<unk>")
    if merges is None:
        backend = spm.unigram(pieces, scores, types, unk_id=unk_id)
    else:
        vocab = {piece: n for n, piece in enumerate(pieces)}
        model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        backend = Backend(model)
        backend.add_tokens(spm.added_tokens(pieces, types))
    _prepare(backend, spec)
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps) if spec.kind == CHAR else SPELLING.decoder()
    bos = spec.named_tokens["bos_token"]
    backend.post_processor = framing({bos: pieces.index(bos)}, {})
    proto = None
    if spec.kind == UNIGRAM and spec.normalise == "none":
        proto = SentencePieceModel(pieces, scores, types, remove_extra_whitespaces=False)
        for name in ("unk", "bos", "eos", "pad"):
            setattr(proto, f"{name}_id", pieces.index(spec.named_tokens[f"{name}_token"]))
    return Trained(_tokenizer(spec, backend), proto, count - len(spec.special_tokens) - 256)


def _normalizer(spec: TokenizerSpec) -> normalizers.Normalizer | None:
    if spec.kind == WORDPIECE:
        return normalizers.BertNormalizer(lowercase=spec.lowercase, strip_accents=spec.lowercase)
    forms: Mapping[str, Any] = {"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}
    return forms[spec.normalise]() if spec.normalise in forms else None


# --- finishing


def _reserved(spec: TokenizerSpec, count: int) -> list[str]:
    return [f"<|reserved_{n}|>" for n in range(-count % spec.pad_to)]


def _finished(spec: TokenizerSpec, backend: Backend) -> Trained:
    count = backend.get_vocab_size()
    reserved = [AddedToken(token, special=True, normalized=False) for token in _reserved(spec, count)]
    backend.add_special_tokens(reserved)
    return Trained(_tokenizer(spec, backend), None, count - len(spec.special_tokens))


def _tokenizer(spec: TokenizerSpec, backend: Backend) -> Tokenizer:
    templates = {} if spec.chat_template is None else {"default": spec.chat_template}
    return Tokenizer(backend, origin="the new tokenizer", names=spec.named_tokens, chat_templates=templates)
