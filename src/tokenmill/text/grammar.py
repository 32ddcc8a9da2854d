"""Structured output: which tokens may come next so that the text fits a JSON schema, a regular expression or a grammar.

The work is llguidance's (https://github.com/guidance-ai/llguidance); this module builds its view of a tokenizer, sets
its limits and turns its silent failures into errors. A `Guide` is one generation's state. It deals in token ids and bit
masks only, so the engine can use it without knowing text.

Refused, with the library's reason: schema keywords it cannot hold (``not``, ``uniqueItems`` …), references to other
documents, grammars that nothing can match, and whatever passes the limits on size, nesting and work. Schemas follow
https://json-schema.org, draft 2020-12, as far as docs/json_schema.md of llguidance says; regular expressions are
Rust's, without look-around and back-references, and match the whole text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenmill.core.errors import TokenmillError, UsageError

if TYPE_CHECKING:
    import llguidance
    import llguidance._lib

MAX_SOURCE = 65_536  # characters of a schema, a regular expression or a grammar
MAX_NESTING = 64  # of a schema
MAX_PROPERTIES = 500  # of one object; the library's work grows with their square
MAX_CHOICES = 2_000
_CACHED = 32  # compiled grammars: a client sends the same schema again and again
# Between two JSON tokens: nothing, one space, or a new line and its indentation. The library's own default lets a model
# write white space for ever.
_WHITE_SPACE = r"( |\n[ \t]{0,20})"
_JSON_OPTIONS: llguidance._lib.JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITE_SPACE,
    "coerce_one_of": False,
    "lenient": False,
}


class Vocabulary(Protocol):
    """What is needed of a tokenizer; `tokenmill.text.tokenizer.Tokenizer` has it."""

    vocab_size: int
    special_ids: frozenset[int]
    eos_token_ids: frozenset[int]

    def token_bytes(self, token_id: int) -> bytes: ...

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]: ...


class Guide:
    """The state of one guided generation.

    Each step: `fill_bitmask`, sample an allowed token, `accept` it. When `stopped`, the text is complete and only an
    end token could follow. All methods raise UsageError if the grammar turns out too complex while it runs: the
    generation must then end, for an unguided continuation would not fit.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size
        self.num_words = (vocab_size + 31) // 32

    def fill_bitmask(self, bitmask: npt.NDArray[np.int32]) -> None:
        """Writes which tokens may come next into `bitmask`, int32 [num_words]: bit ``i % 32`` of word ``i // 32``.

        Ids without a token (the padding of an embedding matrix) are never allowed; an end token is, exactly when the
        text is complete as it stands.
        """
        if bitmask.shape != (self.num_words,) or bitmask.dtype != np.int32 or not bitmask.flags.c_contiguous:
            raise ValueError(f"bitmask must be int32 [{self.num_words}], got {bitmask.dtype} {list(bitmask.shape)}")
        self._matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        self._check()

    def mask(self) -> npt.NDArray[np.bool_]:
        """The same as bool [vocab_size]."""
        bitmask = np.zeros(self.num_words, dtype=np.int32)
        self.fill_bitmask(bitmask)
        return unpack_bitmask(bitmask, self.vocab_size)

    def accept(self, token_id: int) -> None:
        """Takes note of the token that was sampled. Raises UsageError for one that was not allowed."""
        if not 0 <= token_id < self.vocab_size or not self._matcher.consume_token(token_id):
            raise UsageError(f"token {token_id} cannot follow: {_reason(self._matcher.get_error())}")
        self._check()

    @property
    def stopped(self) -> bool:
        """The text is complete and nothing can be added."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """The text fits as it stands; more may follow unless `stopped`."""
        return bool(self._matcher.is_accepting())

    def copy(self) -> Guide:
        """An independent guide in the same state, for a second answer to the same prompt."""
        return Guide(self._matcher.deep_copy(), self.vocab_size)

    def _check(self) -> None:
        # in its error state the library allows exactly the end tokens, as if the text were complete
        if self._matcher.is_error():
            raise UsageError(f"the grammar cannot be followed any further: {_reason(self._matcher.get_error())}")


def unpack_bitmask(bitmask: npt.NDArray[np.int32], vocab_size: int) -> npt.NDArray[np.bool_]:
    """int32 [..., ceil(vocab_size / 32)] to bool [..., vocab_size]."""
    little = bitmask.astype("<i4", copy=False).view(np.uint8)
    return np.unpackbits(little, axis=-1, count=vocab_size, bitorder="little").view(np.bool_)


class GuideFactory:
    """Makes guides for one tokenizer and one model.

    Args:
        tokenizer: built into the library's form on first use (about 10 µs a token).
        vocab_size: the width of the model's logits, which may be larger than the tokenizer; default: the tokenizer's.
    """

    def __init__(self, tokenizer: Vocabulary, vocab_size: int | None = None) -> None:
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._tokenizer = tokenizer
        self._compile = functools.lru_cache(maxsize=_CACHED)(self._compile_uncached)

    def json_schema(self, schema: dict[str, Any] | None = None) -> Guide:
        """JSON that fits `schema`; without one, any JSON object. Keys come in the order the schema lists them."""
        if schema is None:
            schema = {"type": "object"}
        if not isinstance(schema, dict):
            raise UsageError(f"a JSON schema is an object, got {type(schema).__name__}")
        return self._guide("json_schema", _checked_schema(schema))

    def regex(self, pattern: str) -> Guide:
        """A text that `pattern` matches as a whole."""
        return self._guide("regex", _checked_text(pattern, "regular expression"))

    def choice(self, options: Sequence[str]) -> Guide:
        """Exactly one of `options`."""
        if isinstance(options, str) or not all(isinstance(option, str) for option in options):
            raise UsageError("the options to choose from must be a list of texts")
        if not 1 <= len(options) <= MAX_CHOICES:
            raise UsageError(f"from 1 to {MAX_CHOICES} options can be chosen from, got {len(options)}")
        grammar = "start: " + " | ".join(json.dumps(option) for option in dict.fromkeys(options))
        return self._guide("lark", _checked_text(grammar, "list of options"))

    def lark(self, grammar: str) -> Guide:
        """A text of llguidance's variant of a Lark grammar."""
        return self._guide("lark", _checked_text(grammar, "grammar"))

    def gbnf(self, grammar: str) -> Guide:
        """A text of a grammar in llama.cpp's notation."""
        from llguidance.gbnf_to_lark import any_to_lark

        _checked_text(grammar, "grammar")
        if "::=" not in grammar:
            raise UsageError("a GBNF grammar has rules of the form: name ::= …")
        try:
            converted = any_to_lark(grammar)
        except RecursionError:
            raise UsageError("this GBNF grammar is nested too deeply") from None
        except Exception as error:  # the converter indexes and asserts its way through broken text
            raise UsageError(f"this GBNF grammar cannot be read: {_reason(str(error))}") from None
        return self._guide("lark", _checked_text(converted, "grammar"))

    def from_format(self, value: str | dict[str, Any] | None) -> Guide | None:
        """Ollama's ``format`` field: ``"json"``, a schema (also as text), or nothing, which guides nothing."""
        if value is None or value == "":
            return None
        if value == "json":
            return self.json_schema()
        if isinstance(value, str):
            value = parse_schema(value)
        return self.json_schema(value)

    def _guide(self, kind: str, source: str) -> Guide:
        return self._compile(kind, source).copy()

    def _compile_uncached(self, kind: str, source: str) -> Guide:
        """A guide at its beginning, tried for one token, so that what cannot work is refused before generation."""
        from llguidance import LLMatcher

        what = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}[kind]
        try:
            if kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(source, overrides=_JSON_OPTIONS)
            elif kind == "regex":
                grammar = LLMatcher.grammar_from_regex(source)
            else:
                grammar = LLMatcher.grammar_from_lark(source)
            matcher = LLMatcher(self._library_tokenizer, grammar, log_level=0, limits=_limits())
        except ValueError as error:
            raise UsageError(f"this {what} cannot be used: {_reason(str(error))}") from None
        if matcher.is_error():
            raise UsageError(f"this {what} cannot be used: {_reason(matcher.get_error())}")
        if warnings := matcher.get_grammar_warnings():
            raise UsageError(f"this {what} cannot be used: {_reason('; '.join(warnings))}")
        guide = Guide(matcher, self.vocab_size)
        try:
            _try_first_step(guide.copy(), self._tokenizer.eos_token_ids)
        except UsageError as error:
            raise UsageError(f"this {what} cannot be used: {error}") from None
        return guide

    @functools.cached_property
    def _library_tokenizer(self) -> llguidance.LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        ends = sorted(end for end in self._tokenizer.eos_token_ids if end < self.vocab_size)
        if not ends:
            raise UsageError("this model's tokenizer has no end token, so its output cannot be held to a grammar")
        view = _LibraryView(self._tokenizer, self.vocab_size, ends[0])
        return LLTokenizer(TokenizerWrapper(view), n_vocab=self.vocab_size, eos_token=ends)


class _LibraryView:
    """A tokenizer as llguidance wants to see it. Ids without a token have no bytes and are therefore never allowed."""

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, end: int) -> None:
        known = min(tokenizer.vocab_size, vocab_size)
        self.eos_token_id, self.bos_token_id = end, None
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(known)] + [b""] * (vocab_size - known)
        self.special_token_ids = sorted(
            token_id for token_id in tokenizer.special_ids | tokenizer.eos_token_ids if token_id < vocab_size
        )
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, parse_special=False)


def parse_schema(text: str) -> dict[str, Any]:
    """A JSON schema given as text. Raises UsageError."""
    _checked_text(text, "JSON schema")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f'format must be "json" or a JSON schema; {text[:60]!r} is neither: {error}') from None
    if not isinstance(schema, dict):
        raise UsageError(f"a JSON schema is an object, got {text[:60]!r}")
    return schema


def read_format(argument: str) -> str | dict[str, Any]:
    """A command line's ``--format``: ``json``, a schema, or ``@FILE`` with one. Not for requests: it opens files."""
    if not argument.startswith("@"):
        return argument if argument == "json" else parse_schema(argument)
    path = Path(argument[1:])
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_SOURCE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--format {argument}: {error}") from None
    return parse_schema(text)


def _checked_text(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise UsageError(f"a {what} is a text, got {type(text).__name__}")
    if len(text) > MAX_SOURCE:
        raise UsageError(f"this {what} has {len(text)} characters; at most {MAX_SOURCE} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"this {what} has a lone surrogate, which no text can match") from None
    return text


def _checked_schema(schema: Any) -> str:
    """`schema` as JSON text, its keys in their order, after the checks that must come before the library's work."""
    waiting = [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_NESTING:
            raise UsageError(f"this JSON schema is nested deeper than {MAX_NESTING} levels")
        if isinstance(value, dict):
            if len(value) > MAX_PROPERTIES:
                raise UsageError(
                    f"an object of this JSON schema has {len(value)} keys; at most {MAX_PROPERTIES} are allowed"
                )
            waiting += ((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple):
            if len(value) > MAX_SOURCE:
                raise UsageError(f"a list of this JSON schema has {len(value)} items")
            waiting += ((item, depth + 1) for item in value)
        if len(waiting) > MAX_SOURCE:
            raise UsageError(f"this JSON schema has more than {MAX_SOURCE} values")
    try:
        return _checked_text(json.dumps(schema, ensure_ascii=False, allow_nan=False), "JSON schema")
    except (TypeError, ValueError) as error:
        if isinstance(error, TokenmillError):
            raise
        raise UsageError(f"this JSON schema is not JSON: {error}") from None


def _try_first_step(guide: Guide, ends: frozenset[int]) -> None:
    allowed = np.flatnonzero(guide.mask())
    if not len(allowed):
        raise UsageError("no token of this model can begin a text that fits")
    inner = [int(token_id) for token_id in allowed if int(token_id) not in ends]
    if inner:
        guide.accept(inner[0])
        guide.mask()


def _limits() -> llguidance.LLParserLimits:
    """A tenth of the library's defaults where those let one step take seconds and hundreds of megabytes.

    Measured with a vocabulary of 32,000: schemas of 150 fields, all formats, ``\\p{L}{1,500}`` and ``.{0,2000}`` stay
    below these; ``(a{1000}){1000}`` is given up after 0.4 s and 50 MB instead of 3 s and 270 MB.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=20_000,
        max_lexer_states=50_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def _reason(message: str) -> str:
    """The library's message on one line, without its place-holders and code names."""
    message = message.replace("<non-verbose/>", "").replace("NoExtensionBias", "no text fits it")
    text = " ".join(message.split())
    return text if len(text) <= 300 else text[:297] + "..."
