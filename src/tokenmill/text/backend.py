"""Helpers around the tokenizers library's object: its errors, its plain twin, its BOS and EOS."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, processors

from tokenmill.core.errors import FormatError

MAX_GROWTH = 100


@contextmanager
def library_errors(origin: Path | str, where: str) -> Iterator[None]:
    """The library raises bare Exception, or a Rust panic, for tokenizers that contradict themselves: FormatError."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(origin, where, f"the tokenizer is broken: {error}") from error
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise FormatError(origin, where, f"the tokenizer is broken: {panic}") from panic


def state_of(part: Any) -> dict[str, Any] | None:
    """A normalizer, decoder … as ``tokenizer.json`` writes it."""
    return None if part is None else json.loads(part.__getstate__())


def check_growth(part: dict[str, Any] | None, origin: str, where: str) -> None:
    """Refuse replacements that multiply: forty that each double would make 2^40 characters of one."""
    if part is not None and (factor := _growth(part)) > MAX_GROWTH:
        raise FormatError(origin, where, f"makes texts {factor:.0f} times longer; allowed: {MAX_GROWTH} times")


def _growth(part: dict[str, Any]) -> float:
    match part:
        case {"type": "Sequence", "normalizers": list(steps)} | {"type": "Sequence", "decoders": list(steps)}:
            return math.prod(map(_growth, steps))
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return max(1.0, len(new) / len(old))
        case {"type": "Replace", "content": str(new)}:  # a regular expression may match between any two characters
            return 1.0 + len(new)
    return 1.0


def framing(before: dict[str, int], after: dict[str, int]) -> processors.TemplateProcessing:
    """A post-processor that puts tokens (text → id) before and after each text."""
    # named by place, not by text: the library's template language gives ':' and '$' in a name a meaning
    first = {f"before{n}": pair for n, pair in enumerate(before.items())}
    last = {f"after{n}": pair for n, pair in enumerate(after.items())}
    special = [{"id": name, "ids": [token_id], "tokens": [text]} for name, (text, token_id) in (first | last).items()]
    single = [*first, "$A", *last]
    return processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{name}:1" for name in first), "$B:1", *(f"{name}:1" for name in last)],
        special_tokens=special,
    )


def plain_twin(backend: tokenizers.Tokenizer, origin: str, unknown_id: int | None) -> tokenizers.Tokenizer:
    """A second tokenizer over the same model that takes control tokens in the text as text."""
    added = backend.get_added_tokens_decoder()
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer = backend.normalizer
    plain.pre_tokenizer = backend.pre_tokenizer
    plain.post_processor = backend.post_processor
    plain.add_tokens([token for _, token in sorted(added.items())])
    if plain.get_added_tokens_decoder().keys() != added.keys():  # ids with holes: only the JSON form keeps them
        plain = tokenizers.Tokenizer.from_str(backend.to_str())
    plain.encode_special_tokens = True
    # Not matched as an added token, a control token can still be a piece of the model's vocabulary that plain text
    # leads to: a whole word with ignore_merges, a merge's result, any piece of a Unigram model (the unknown one, too)
    unigram = isinstance(backend.model, models.Unigram)
    controls = {n: token.content for n, token in added.items() if token.special and (unigram or n != unknown_id)}
    with library_errors(origin, "encode"):
        leaks = unigram or any(n in plain.encode(text, add_special_tokens=False).ids for n, text in controls.items())
    return _without(plain, frozenset(controls.values())) if leaks else plain


def _without(plain: tokenizers.Tokenizer, controls: frozenset[str]) -> tokenizers.Tokenizer:
    """The same tokenizer with `controls` renamed to what no text spells, ids unchanged."""
    data = json.loads(plain.to_str())
    hidden = {text: f"\ufdd0{secrets.token_hex(16)}" for text in controls}
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(token, token): n for token, n in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & controls]
    for token in data["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    plain = tokenizers.Tokenizer.from_str(json.dumps(data))
    plain.encode_special_tokens = True
    return plain
