"""Guided generation: whatever a random model picks from the masks fits the schema, expression or grammar it is held to.

The tokenizer is a byte-level BPE trained here; the "model" draws uniformly among the allowed tokens, and after a while
prefers those that close something, so that texts end. Validity is judged by json and re and by `fits`, a small
validator written for these schemas, never by the library under test.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import TokenmillError, UsageError
from tokenmill.text.grammar import Guide, GuideFactory, parse_schema, read_format, unpack_bitmask
from tokenmill.text.tokenizer import Tokenizer

CORPUS = [
    '{"name": "value", "list": [1, 2, 3], "true": false, "null": null}',
    "Zürich 日本 2026-01-31",
    "yes no maybe",
] * 9
CLOSING = {ord('"'), ord("}"), ord("]")}


def train() -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS, trainer)
    return Tokenizer(backend, origin="test", names={"eos_token": "<|im_end|>"})


TOKENIZER = train()
PADDED = TOKENIZER.vocab_size + 45  # a model's embedding is often wider than its tokenizer
FACTORY = GuideFactory(TOKENIZER, PADDED)


def sample(guide: Guide, seed: int, steps: int = 1500) -> str | None:
    """A text of the random model held to `guide`; None when it did not end within `steps`."""
    rng = random.Random(seed)
    pieces: list[bytes] = []
    for step in range(steps):
        allowed = [int(token_id) for token_id in np.flatnonzero(guide.mask())]
        assert allowed, "a guide that has not ended allows something"
        assert max(allowed) < TOKENIZER.vocab_size, "the padding of the embedding is never allowed"
        ends = [token_id for token_id in allowed if token_id in TOKENIZER.eos_token_ids]
        assert bool(ends) == guide.complete
        if ends and (len(ends) == len(allowed) or rng.random() < 0.3):
            guide.accept(ends[0])
            assert guide.stopped
            return b"".join(pieces).decode()
        allowed = [token_id for token_id in allowed if token_id not in ends]
        assert not TOKENIZER.special_ids.intersection(allowed), "control tokens are no text"
        if step > 25:
            allowed = [i for i in allowed if TOKENIZER.token_bytes(i)[-1] in CLOSING] or allowed
        pieces.append(TOKENIZER.token_bytes(chosen := rng.choice(allowed)))
        guide.accept(chosen)
    return None


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema that these tests use."""
    if "$ref" in schema:
        target: Any = root
        for key in schema["$ref"].removeprefix("#").split("/")[1:]:
            target = target[key]
        return fits(value, target, root)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not any(
            isinstance(value, kinds[name]) if name in kinds else number and (name == "number" or value == int(value))
            for name in names
        ):
            return False
    checks = [
        "enum" not in schema or value in schema["enum"],
        "const" not in schema or value == schema["const"],
        "anyOf" not in schema or any(fits(value, choice, root) for choice in schema["anyOf"]),
        all(fits(value, part, root) for part in schema.get("allOf", ())),
    ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks += [schema.get("minimum", value) <= value <= schema.get("maximum", value)]
        checks += [value % schema.get("multipleOf", value or 1) == 0]
    if isinstance(value, str):
        checks += [schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))]
        checks += [bool(re.search(schema.get("pattern", ""), value))]
    if isinstance(value, list):
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))]
        checks += [all(fits(item, schema.get("items", {}), root) for item in value)]
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", {})
        checks += [set(schema.get("required", ())) <= set(value)]
        for key, item in value.items():
            rule = properties.get(key, extra)
            checks += [rule is not False and fits(item, rule if isinstance(rule, dict) else {}, root)]
    return all(checks)


TREE = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "flat": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {"b": {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 3}},
                "required": ["b"],
                "additionalProperties": False,
            }
        },
        "required": ["a"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["é", "日本", 'quo"te', "back\\slash", "new\nline", 1.5, None, True, [1, {"k": 2}]]},
    "const": {"const": {"b": 1, "a": [True, None]}},
    "integers": {"type": "array", "items": {"type": "integer", "minimum": -12, "maximum": 345}, "maxItems": 6},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1.5, "maximum": 2.25}, "maxItems": 6},
    "multiple": {"type": "array", "items": {"type": "integer", "multipleOf": 7}, "maxItems": 4},
    "length": {"type": "string", "minLength": 3, "maxLength": 5},
    "pattern": {"type": "string", "pattern": '^[a-zé"]{2,6}(-[0-9]{1,3})?$'},
    "unicode keys": {"type": "object", "properties": {"größe": {"type": "null"}, "日": {"type": "null"}}},
    "any of": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "array", "items": {"type": "boolean"}}]},
    "types": {"type": ["string", "null", "boolean"]},
    "extra": {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "additionalProperties": {"type": "integer", "minimum": 0},
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 5, "maximum": 60}, "b": {"const": "x"}}},
        ]
    },
    "recursive": {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_hold(name: str) -> None:
    schema = SCHEMAS[name]
    texts = [sample(FACTORY.json_schema(schema), seed) for seed in range(12)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 8
    for text in ended:
        assert fits(json.loads(text), schema, schema), text
    assert len(set(ended)) > 1 or name == "const"


def test_the_validator_of_this_file_can_say_no() -> None:
    for name, wrong in {
        "flat": {"name": "x"},
        "nested": {"a": {"b": []}},
        "enum": "e",
        "integers": [400],
        "numbers": [2.5],
        "multiple": [8],
        "length": "ab",
        "pattern": "ab-",
        "any of": "abcde",
        "extra": {"z": -1},
        "all of": {"a": 61},
        "recursive": {"v": True, "next": {}},
    }.items():
        assert not fits(wrong, SCHEMAS[name], SCHEMAS[name]), name


PATTERNS = [
    "^a$",
    "yes|no|maybe",
    "[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "(?i)Paris|R[oó]m[ae]",
    "a?b*c{2,4}",
    "[^a-z\n]{1,8}",
    r"\d{1,3}(\.\d+)?",
    "日{1,3}|(é|ü)+!",
    "(ab|cd){2}(ef)?",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regular_expressions_match_the_whole_text(pattern: str) -> None:
    texts = [sample(FACTORY.regex(pattern), seed) for seed in range(15)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 10
    assert all(re.fullmatch(pattern, text) for text in ended)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.integers(0, 1000))
def test_choices(options: list[str], seed: int) -> None:
    assert sample(FACTORY.choice(options), seed) in options


def test_every_choice_can_be_had() -> None:
    options = ["yes", "yesterday", "no", "", '"', "\\n", "\n", "😀"]
    assert {sample(FACTORY.choice(options), seed) for seed in range(300)} == set(options)


def test_grammars() -> None:
    texts = {sample(FACTORY.lark('start: "a" inner "b"\ninner: /[0-9]+/ | "(" inner ")"'), seed) for seed in range(20)}
    assert all(text is None or re.fullmatch(r"a\(*[0-9]+\)*b", text) for text in texts)
    assert any(texts)
    gbnf = 'root ::= item ("," item)*\nitem ::= [a-c]{1,2} | "[" root "]"'
    texts = {sample(FACTORY.gbnf(gbnf), seed) for seed in range(20)}
    assert all(text is None or re.fullmatch(r"[a-c,\[\]]+", text) for text in texts)
    assert any(texts)


def test_formats() -> None:
    assert FACTORY.from_format(None) is None
    assert FACTORY.from_format("") is None
    for value in ("json", {"type": "object"}, '{"type": "object"}'):
        guide = FACTORY.from_format(value)
        assert guide is not None
        assert any(isinstance(json.loads(text), dict) for seed in range(5) if (text := sample(guide.copy(), seed)))


def test_format_argument(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"const": "é"}', encoding="utf-8")
    assert read_format(f"@{file}") == {"const": "é"}
    assert read_format("json") == "json"
    assert read_format('{"const": 1}') == {"const": 1}
    for wrong in ("@", f"@{file}.no", f"@{tmp_path}", "jsom", "[1]", "7"):
        with pytest.raises(UsageError):
            read_format(wrong)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError):
        read_format(f"@{file}")
    file.write_text(" " * 70_000 + "{}")
    with pytest.raises(UsageError, match="at most"):
        read_format(f"@{file}")


def test_requests_cannot_read_files() -> None:
    with pytest.raises(UsageError, match="neither"):
        FACTORY.from_format("@/etc/hostname")
    with pytest.raises(UsageError, match="does not fetch"):
        FACTORY.json_schema({"$ref": "file:///etc/hostname"})


# the interface that the sampler uses


def test_bitmask_and_mask_agree_and_old_bits_are_cleared() -> None:
    guide = FACTORY.choice(["yes", "no"])
    bitmask = np.full(guide.num_words, -1, dtype=np.int32)
    guide.fill_bitmask(bitmask)
    by_hand = [bool((int(bitmask[i // 32]) >> (i % 32)) & 1) for i in range(PADDED)]
    assert by_hand == guide.mask().tolist() == unpack_bitmask(bitmask[None], PADDED)[0].tolist()
    assert {TOKENIZER.token_bytes(i) for i in np.flatnonzero(by_hand)} <= {b"y", b"ye", b"yes", b"n", b"no"}
    assert guide.num_words * 32 >= PADDED > (guide.num_words - 1) * 32
    for wrong in (bitmask[:-1], bitmask.astype(np.int64), np.zeros(2 * guide.num_words, np.int32)[::2]):
        with pytest.raises(ValueError, match="bitmask must be"):
            guide.fill_bitmask(wrong)


def test_a_model_narrower_than_its_tokenizer() -> None:
    width = 200
    guide = GuideFactory(TOKENIZER, width).regex(".*")
    assert guide.mask().shape == (width,)
    assert guide.mask()[3:].sum() > 100


def test_end_is_allowed_only_where_the_text_may_end() -> None:
    guide = FACTORY.regex("ab?")
    end = TOKENIZER.eos_token_id
    a, b = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
    assert end is not None
    assert not guide.mask()[end]
    assert not guide.complete
    guide.accept(a)
    assert guide.mask()[end]
    assert guide.complete
    assert not guide.stopped
    other = guide.copy()
    guide.accept(b)
    assert guide.stopped
    assert set(np.flatnonzero(guide.mask())) == TOKENIZER.eos_token_ids
    assert not other.stopped, "a copy goes its own way"


@pytest.mark.parametrize("token", [-1, 10**9, PADDED - 1, TOKENIZER.encode("b")[0], TOKENIZER.eos_token_id])
def test_a_token_that_does_not_fit_is_refused_for_good(token: int) -> None:
    guide = FACTORY.regex("a+")
    with pytest.raises(UsageError, match="cannot follow"):
        guide.accept(token)
    if 0 <= token < PADDED:
        with pytest.raises(UsageError):
            guide.mask()


def test_white_space_is_bounded() -> None:
    guide = FACTORY.json_schema(SCHEMAS["nested"])
    pieces = b""
    while not guide.stopped:
        allowed = [int(i) for i in np.flatnonzero(guide.mask())]
        blank = [i for i in allowed if TOKENIZER.token_bytes(i).strip() == b"" and i not in TOKENIZER.special_ids]
        chosen = (blank or allowed)[0]
        pieces += TOKENIZER.token_bytes(chosen)
        guide.accept(chosen)
        assert len(pieces) < 1000
    json.loads(pieces)
    assert not re.search(rb"\s{23}", pieces)


def test_without_an_end_token_nothing_can_be_guided() -> None:
    class Endless:
        vocab_size = TOKENIZER.vocab_size
        special_ids: frozenset[int] = frozenset()
        eos_token_ids: frozenset[int] = frozenset()
        token_bytes = TOKENIZER.token_bytes
        encode = TOKENIZER.encode

    with pytest.raises(UsageError, match="no end token"):
        GuideFactory(Endless()).regex("a")


def test_compiled_once() -> None:
    factory = GuideFactory(TOKENIZER)
    for _ in range(3):
        assert sample(factory.choice(["yes"]), 0) == "yes"
    assert factory._compile.cache_info().misses == 1


# refusals and attacks


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "strin"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"if": {}, "then": {}}, "then"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "oneOf"),
        ({"type": "string", "format": "zzz"}, "zzz"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "string", "pattern": "[^\\s\\S]"}, "empty"),
        ({"$ref": "https://example.org/schema"}, "does not fetch"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"anyOf": [{"$ref": "#"}]}, "no text fits"),
        ({"enum": []}, "empty"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        (False, "is an object"),
        ([], "is an object"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        ({"const": "\ud800"}, "surrogate"),
    ],
)
def test_schema_refused_with_the_reason(schema: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        FACTORY.json_schema(schema)


def test_schema_cannot_loosen_the_white_space() -> None:
    guide = FACTORY.json_schema({"type": "object", "x-guidance": {"whitespace_pattern": "[ ]*"}})
    guide.accept(TOKENIZER.encode("{")[0])
    space = TOKENIZER.encode(" ")[0]
    guide.accept(space)
    with pytest.raises(UsageError):
        guide.accept(space)


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "[b-a]", r"\bfoo\b", "x" * 70_000, "[^\\s\\S]", "\ud800"])
def test_regular_expression_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        FACTORY.regex(pattern)


def test_other_refusals() -> None:
    for options in ([], "abc", [1], ["a"] * 3000):
        with pytest.raises(UsageError):
            FACTORY.choice(options)  # type: ignore[arg-type]
    for lark in ("start: start", "start: nope", "star: /a/", 'start: "a', "start: <[0-100000]>", "", "\x00"):
        with pytest.raises(UsageError, match="grammar"):
            FACTORY.lark(lark)
    with pytest.raises(UsageError, match="not"):
        FACTORY.lark('start: %json {"x-guidance": {"lenient": true}, "not": {}}')
    for gbnf in ("root", "root ::= (", "root ::= nope", 'root ::= "a', "root ::= " + "(" * 9000, "::=", "a ::= [", ""):
        with pytest.raises(UsageError, match=r"(?i)grammar"):
            FACTORY.gbnf(gbnf)
    with pytest.raises(UsageError, match="neither"):
        parse_schema('{"a": ' * 10_000)


def chain(count: int, step: Any) -> dict[str, Any]:
    """A schema whose definitions refer to the next one each."""
    definitions = {f"d{i}": step({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": definitions | {f"d{count}": {"type": "string"}}}


def nest(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def fields(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(count)}}


def circle() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


SCHEMA_ATTACKS: dict[str, Any] = {
    "deep": nest(5000),
    "circle": circle(),
    "wide": fields(9000),
    "wide enough": fields(450),
    "long": {"const": "x" * 70_000},
    "many": {"enum": list(range(70_000))},
    "many enough": {"enum": [f"v{i}" for i in range(5000)]},
    "products": {"allOf": [{"anyOf": [{"minLength": i}, {"maxLength": 99 + i}]} for i in range(20)], "type": "string"},
    "merges": {
        "anyOf": [{"allOf": [{"$ref": "#/$defs/b"}, {"properties": {f"x{i}": {"const": i}}}]} for i in range(50)],
        "$defs": {"b": fields(200)},
    },
    "doubling references": chain(40, lambda ref: {"allOf": [ref, ref]}),
    "doubling choices": chain(40, lambda ref: {"anyOf": [ref, {"type": "array", "items": ref}]}),
    "doubling products": chain(
        14, lambda ref: {"allOf": [{"anyOf": [ref, {"minimum": 1}]}, {"anyOf": [ref, {"maximum": 2}]}]}
    ),
    "endless object": {
        "type": "object",
        "properties": {"a": {"$ref": "#"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "shortest of a thousand million": {"type": "string", "minLength": 10**9},
    "a hundred million items": {"type": "array", "minItems": 10**8},
    "pattern": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "patterns": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i + 12}}}"} for i in range(6)]},
}
REGEX_ATTACKS = [
    "(a{1000}){1000}",
    "a{1000000000}",
    "((a{1,100}){1,100}){1,100}",
    "(a|b)*a(a|b){200}",
    "(.*a.*b.*c){20}",
    "(x+x+)+y",
    r"(\w{1,300}\s){1,300}",
    r"[^a]*(a|.*b){50}",
    "(" * 30_000 + "a" + ")" * 30_000,
    "|".join(f"abc{i}" for i in range(8000)),
]
GRAMMAR_ATTACKS = [
    'start: "a"{1000000000}',
    "start: C\nA: /a/\nB: A{1000}\nC: B{1000}",
    "start: x x x x\nx: y y y y y y\ny: z z z z z z z z\nz: w w w w w w w w\nw: /a/?",
    "start: a0\na900: /x/?\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(900)),
    "start: start start | /a/",
]


def survives(make: Any) -> None:
    """Compiling and forty steps either work or are refused; a timeout of the test says so when they hang."""
    with contextlib.suppress(UsageError):
        guide = make()
        rng = random.Random(0)
        for _ in range(40):
            allowed = [i for i in np.flatnonzero(guide.mask()) if i not in TOKENIZER.eos_token_ids]
            if not allowed:
                break
            guide.accept(int(rng.choice(allowed)))


@pytest.mark.parametrize("name", SCHEMA_ATTACKS)
@pytest.mark.timeout(60)
def test_schema_attack(name: str) -> None:
    survives(lambda: FACTORY.json_schema(SCHEMA_ATTACKS[name]))


@pytest.mark.parametrize("pattern", REGEX_ATTACKS, ids=range(len(REGEX_ATTACKS)))
@pytest.mark.timeout(60)
def test_regex_attack(pattern: str) -> None:
    survives(lambda: FACTORY.regex(pattern))


@pytest.mark.parametrize("text", GRAMMAR_ATTACKS, ids=range(len(GRAMMAR_ATTACKS)))
@pytest.mark.timeout(60)
def test_grammar_attack(text: str) -> None:
    survives(lambda: FACTORY.lark(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = ["type", "properties", "items", "anyOf", "allOf", "enum", "const", "required", "additionalProperties"]
KEYWORDS += ["minimum", "pattern", "$ref", "format"]
VALUES = JSON | st.sampled_from(["object", "array", "string", "integer", "number", "null", "#", "a+", "date"])
SCHEMA_LIKE = st.recursive(
    st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS),
        VALUES | inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    ),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(SCHEMA_LIKE, st.integers(0, 99))
def test_any_schema_works_or_is_refused(schema: dict[str, Any], seed: int) -> None:
    try:
        text = sample(
            GuideFactory(TOKENIZER).json_schema(schema) if seed == 0 else FACTORY.json_schema(schema), seed, 80
        )
    except UsageError:
        return
    if text is not None:
        json.loads(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.sampled_from(["regex", "lark", "gbnf", "from_format"]))
def test_any_text_works_or_is_refused(text: str, method: str) -> None:
    with contextlib.suppress(TokenmillError):
        getattr(FACTORY, method)(text)
