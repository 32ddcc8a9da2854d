"""What a Go template computes with, in Python's types, and how Go writes it: ``%v`` and JSON.

str, int, float, bool and None stand for themselves; a list is a slice; a dict is a map (read and ranged over in the
order of its keys, a missing key is nil). `Record` is a Go struct: a field it lacks is an error. `JsonMap` and
`JsonList` print as JSON, as Ollama's tools and tool-call arguments do. Lengths and slices of strings count UTF-8 bytes;
a string cut inside a character holds surrogate escapes until the output is assembled.
Source: packages fmt and encoding/json of Go; convertToolsForTemplate in Ollama's template/template.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tokenmill.core.errors import TemplateError

MAX_DATA_DEPTH = 40  # of messages and tools; JSON Schema nests deeper than conversations do
MAX_TEXT = 8_000_000  # characters of one string or of all output; a million tokens of context are about half of that
_QUOTE = json.JSONEncoder(ensure_ascii=False).encode


class Record:
    """A Go struct: named fields and, for JSON, `as_json` (a plain value) where that differs from the fields."""

    __slots__ = ("as_json", "fields", "type_name")

    def __init__(self, type_name: str, fields: Mapping[str, Any], as_json: Any = None) -> None:
        self.type_name = type_name
        self.fields = dict(fields)
        self.as_json = self.fields if as_json is None else as_json


class JsonMap(dict[str, Any]):
    """A map that prints as JSON, keys sorted."""


class JsonList(list[Any]):
    """A slice that prints as JSON."""


class OrderedFields(dict[str, Any]):
    """The JSON object of a struct: its keys stay in the order they were declared."""


def clean(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 can hold, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def plain(value: Any, what: str, depth: int = 0) -> Any:
    """`value` checked and copied: JSON's types only, nested at most MAX_DATA_DEPTH deep. Raises TemplateError."""
    if depth > MAX_DATA_DEPTH:
        raise TemplateError(f"{what} is nested deeper than {MAX_DATA_DEPTH} levels")
    match value:
        case None | bool() | float():
            return value
        case int() if value.bit_length() <= 256:
            return value
        case str():
            return clean(value)
        case list() | tuple():
            return [plain(item, what, depth + 1) for item in value]
        case Mapping() if all(isinstance(key, str) for key in value):
            return {clean(key): plain(item, what, depth + 1) for key, item in value.items()}
    raise TemplateError(f"{what} holds a {type(value).__name__}; JSON values are allowed")


def joined(pieces: Iterable[str]) -> str:
    """All pieces as one string, given up as soon as it passes MAX_TEXT."""
    taken: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_TEXT:
            raise TemplateError(f"makes a string of more than {MAX_TEXT} characters")
        taken.append(piece)
    return "".join(taken)


def type_of(value: Any) -> str:
    """The name Go's error messages would use."""
    match value:
        case None:
            return "nil"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case list():
            return "slice"
        case dict():
            return "map"
        case Record():
            return value.type_name
    return type(value).__name__


def is_true(value: Any) -> bool:
    """Go's truth: false, 0, nil and whatever is empty are false; a struct is always true."""
    return True if isinstance(value, Record) else bool(value)


def length_of(text: str) -> int:
    """UTF-8 bytes, as Go counts."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))


def go_json(value: Any) -> str:
    """As encoding/json writes it: no spaces, map keys sorted, ``<>&`` escaped."""
    pieces: list[str] = []
    _write_json(value, pieces)
    return "".join(pieces)


def _write_json(value: Any, pieces: list[str]) -> None:
    match value:
        case str():
            pieces.append(_json_string(value))
        case None | bool():
            pieces.append({None: "null", True: "true", False: "false"}[value])
        case int():
            pieces.append(str(value))
        case float():
            pieces.append(_json_float(value))
        case list():
            pieces.append("[")
            for index, item in enumerate(value):
                pieces.append("," if index else "")
                _write_json(item, pieces)
            pieces.append("]")
        case dict():
            items = value.items() if isinstance(value, OrderedFields) else sorted(value.items())
            pieces.append("{")
            for index, (key, item) in enumerate(items):
                pieces.append(f"{',' if index else ''}{_json_string(key)}:")
                _write_json(item, pieces)
            pieces.append("}")
        case Record():
            _write_json(OrderedFields(value.fields) if value.as_json is value.fields else value.as_json, pieces)


def _json_string(text: str) -> str:
    if not text.isascii():
        text = text.encode(errors="surrogateescape").decode(errors="replace")
    quoted = _QUOTE(text)
    for character in "<>&\u2028\u2029":
        if character in quoted:
            quoted = quoted.replace(character, f"\\u{ord(character):04x}")
    return quoted


def _json_float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        raise TemplateError(f"JSON has no number {value}")
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}".replace("e-0", "e-")
    return _positional(value)


def _positional(value: float) -> str:
    """Shortest digits that read back as `value`, never with an exponent."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def go_float(value: float) -> str:
    """%v of a float64: shortest digits, an exponent below 1e-4 and from 1e6 on."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    if value and not 1e-4 <= abs(value) < 1e6:
        digits = format(Decimal(repr(value)).normalize(), "e")
        mantissa, _, exponent = digits.partition("e")
        return f"{mantissa}e{int(exponent):+03d}"
    return _positional(value)


def go_format(value: Any) -> str:
    """%v: how print, printf and an action write a value."""
    match value:
        case str():
            return value
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return go_float(value)
        case JsonMap() | JsonList() | Record():
            return go_json(value)
        case list():
            return f"[{' '.join(go_format(item) for item in value)}]"
        case dict():
            return f"map[{' '.join(f'{key}:{go_format(item)}' for key, item in sorted(value.items()))}]"
    raise TemplateError(f"cannot print a {type_of(value)}")
