"""What tokenizer is wanted. Every choice is checked against the kind: nothing is accepted that the kind would ignore.

The kinds, and the special tokens that each has:

- ``byte-bpe``: merges over bytes, as GPT-2, Llama 3 and Qwen do; any bytes round-trip.
- ``bpe``: merges over characters, ``▁`` for a space, rare characters as bytes, as Llama 2 does.
- ``unigram``: pieces with probabilities (SentencePiece's own model); rare characters as bytes.
- ``wordpiece``: BERT's: words cut greedily, ``##`` inside words.
- ``char``: a token a character, rare ones as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.text.pretokenizers import KINDS

BYTE_BPE, BPE, WORDPIECE, UNIGRAM, CHAR = KINDS_OF_TOKENIZER = ("byte-bpe", "bpe", "wordpiece", "unigram", "char")

TURNS = ("<|im_start|>", "<|im_end|>")
"""ChatML's tokens."""
NAMED: dict[str, dict[str, str]] = {
    BYTE_BPE: {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
    BPE: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    UNIGRAM: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    CHAR: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"},
    WORDPIECE: {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
}
"""transformers' name of every special token of a kind → its text; ids from 0 on, in this order."""

CUTS: dict[str, tuple[str, ...]] = {
    BYTE_BPE: tuple(KINDS),
    BPE: ("words", "punctuation"),
    UNIGRAM: ("words", "punctuation"),
    WORDPIECE: ("bert",),
    CHAR: ("none",),
}
"""How text may be cut before anything is learned; the first but for byte-bpe is the default."""
DEFAULT_CUT = {BYTE_BPE: "llama3", BPE: "words", UNIGRAM: "words", WORDPIECE: "bert", CHAR: "none"}
NORMAL_FORMS = ("none", "nfc", "nfkc")


@dataclass(frozen=True)
class TokenizerSpec:
    """One tokenizer to be trained. UsageError names everything that is not possible."""

    kind: str = BYTE_BPE
    vocab_size: int = 32768
    """Tokens in all, special ones included; rounded up to a multiple of `pad_to`."""
    cut: str = ""
    """How text is cut: for byte-bpe the name of a model's pattern (``llama3``, ``gpt-2``, ``qwen2``, ``gpt-4o`` …), for
    bpe and unigram ``words`` (runs of letters, digits, signs) or ``punctuation`` (and every sign alone). Empty: the
    kind's usual one."""
    digits: int = 0
    """Most digits of a token: 1, 2, 3; 0 leaves numbers to `cut`. bpe and unigram know 0 and 1."""
    normalise: str = "none"
    """``nfc`` or ``nfkc`` first; what it changes does not come back when decoded."""
    lowercase: bool = False
    """wordpiece only: lower case without accents, as BERT's uncased models."""
    special: tuple[str, ...] = ()
    """Further special tokens, behind the kind's own."""
    chat_template: str | None = None
    """Jinja source that is saved with it."""
    pad_to: int = 64
    """The vocabulary's size becomes a multiple of this, by reserved tokens at its end: such matrices are faster."""
    min_frequency: int = 2
    """A pair that is seen less often is not merged."""
    coverage: float = 0.9995
    """bpe, unigram, char, wordpiece: share of all characters that get tokens of their own; the rest is written in
    bytes (wordpiece: unknown)."""
    names: dict[str, str] = field(default_factory=dict)
    """Further named tokens (``mask_token``), each among `special`."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise UsageError("; ".join(problems))
        object.__setattr__(self, "cut", self.cut or DEFAULT_CUT[self.kind])

    @property
    def size(self) -> int:
        """Tokens in all, as a multiple of `pad_to`."""
        return -(-self.vocab_size // self.pad_to) * self.pad_to

    @property
    def named_tokens(self) -> dict[str, str]:
        """transformers' names of special tokens → text."""
        return NAMED[self.kind] | self.names

    @property
    def special_tokens(self) -> list[str]:
        """All special tokens in the order of their ids."""
        return list(dict.fromkeys([*NAMED[self.kind].values(), *self.special]))

    @property
    def bytes_as_pieces(self) -> bool:
        """Whether there are 256 tokens ``<0x00>`` … for what the vocabulary lacks."""
        return self.kind in (BPE, UNIGRAM, CHAR)

    def _problems(self) -> Iterator[str]:
        if self.kind not in KINDS_OF_TOKENIZER:
            near = did_you_mean(self.kind, KINDS_OF_TOKENIZER)
            yield f"no kind {self.kind!r}{near}; there are {', '.join(KINDS_OF_TOKENIZER)}"
            return
        if self.cut and self.cut not in CUTS[self.kind]:
            known = ", ".join(CUTS[self.kind])
            yield f"cut={self.cut!r} is nothing for {self.kind}{did_you_mean(self.cut, CUTS[self.kind])}: {known}"
        allowed = {BYTE_BPE: (0, 1, 2, 3), BPE: (0, 1), UNIGRAM: (0, 1)}.get(self.kind, (0,))
        if self.digits not in allowed:
            yield f"digits={self.digits}: {self.kind} knows {', '.join(map(str, allowed))}"
        if self.normalise not in NORMAL_FORMS:
            yield f"normalise={self.normalise!r}{did_you_mean(self.normalise, NORMAL_FORMS)}: {', '.join(NORMAL_FORMS)}"
        if self.kind == WORDPIECE and self.normalise != "none":
            yield "wordpiece cleans text as BERT does; normalise would do nothing (lowercase does)"
        if self.lowercase and self.kind != WORDPIECE:
            yield f"lowercase is for wordpiece; {self.kind} keeps case, so that text comes back as it was"
        if not 0 < self.coverage <= 1:
            yield f"coverage={self.coverage} is a share above 0, at most 1"
        if self.kind == BYTE_BPE and self.coverage != TokenizerSpec.coverage:
            yield "coverage means nothing to byte-bpe: its alphabet is all 256 bytes"
        if self.kind == CHAR and self.min_frequency != TokenizerSpec.min_frequency:
            yield "min_frequency means nothing to char: it merges nothing"
        if self.min_frequency < 1 or self.pad_to < 1:
            yield "min_frequency and pad_to are at least 1"
            return
        if empty := [token for token in self.special if not token.strip()]:
            yield f"a special token cannot be {empty[0]!r}"
        base = len(self.special_tokens) + (0 if self.kind == WORDPIECE else 256)
        if self.size <= base:
            what = f"{len(self.special_tokens)} special tokens" + ("" if self.kind == WORDPIECE else " and 256 bytes")
            yield f"vocab_size={self.vocab_size} is too small: {what} are there before anything is learned"
