"""Go's Sprint, Sprintln and Sprintf for the values a template has.

Sprintf knows the verbs ``v s d q t x X c e f g %`` with the flags ``+ - 0`` and space, a width and a precision. What Go
would print as a complaint into the prompt (``%!d(string=hi)``, ``%!s(MISSING)``) is an error here, and so are widths
past MAX_WIDTH: a template must not be able to ask for a gigabyte of spaces.
Source: https://pkg.go.dev/fmt, "Printing".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenmill.core.errors import TemplateError
from tokenmill.text.go_template.values import JsonList, JsonMap, Record, go_float, go_format, joined, type_of

MAX_WIDTH = 1000
_VERB = re.compile(r"%(?P<flags>[-+ 0]*)(?P<width>[0-9]*)(?:(?P<dot>\.)(?P<precision>[0-9]*))?(?P<verb>.?)", re.DOTALL)
_NAMED = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v", '"': '"', "\\": "\\"}


def sprint(values: Sequence[Any]) -> str:
    """A space between two operands when neither is a string."""

    def pieces() -> Iterator[str]:
        for index, value in enumerate(values):
            if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
                yield " "
            yield go_format(value)

    return joined(pieces())


def sprintln(values: Sequence[Any]) -> str:
    """A space between any two operands, and a line feed."""
    ends = [" "] * (len(values) - 1) + ["\n"]
    return joined(go_format(value) + end for value, end in zip(values, ends, strict=True)) if values else "\n"


def sprintf(pattern: str, values: Sequence[Any]) -> str:
    """Raises TemplateError where Go would write a complaint into the text."""
    return joined(_printf_pieces(pattern, values))


def _printf_pieces(pattern: str, values: Sequence[Any]) -> Iterator[str]:
    last = used = 0
    for match in _VERB.finditer(pattern):
        yield pattern[last : match.start()]
        last = match.end()
        if match["verb"] == "%":
            yield "%"
            continue
        if used == len(values):
            raise TemplateError(f"printf {match.group()!r}: no value is left for this verb, {used} given")
        yield _one(match, values[used])
        used += 1
    if used < len(values):
        raise TemplateError(f"printf {pattern[:40]!r}: {len(values)} values for {used} verbs")
    yield pattern[last:]


def _bounded(digits: str, spec: str) -> int:
    if len(digits) > 4 or int(digits or "0") > MAX_WIDTH:
        raise TemplateError(f"printf {spec[:20]!r}: width and precision go up to {MAX_WIDTH}")
    return int(digits or "0")


def _one(match: re.Match[str], value: Any) -> str:
    spec, flags, verb = match.group(), match["flags"], match["verb"]
    width = _bounded(match["width"], spec)
    precision = _bounded(match["precision"] or "", spec) if match["dot"] else None
    text = _converted(verb, value, precision, spec)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and verb not in "cq"
    if is_number and not text.startswith("-"):
        text = ("+" if "+" in flags else " " if " " in flags else "") + text
    if width and isinstance(value, list | dict | Record):
        raise TemplateError(f"printf {spec!r}: no width for a {type_of(value)}")
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags and is_number and text[:1] in ("-", "+", " "):
        return text[0] + text[1:].rjust(width - 1, "0")
    return text.rjust(width, "0" if "0" in flags else " ")


def _converted(verb: str, value: Any, precision: int | None, spec: str) -> str:
    if verb not in tuple("vsdqtxXcefg"):
        raise TemplateError(f"printf {spec!r}: this verb is not known; known are %v %s %d %q %t %x %X %c %e %f %g %%")
    match verb, value:
        case "v", bool() | None:
            return go_format(value)
        case "v" | "s", str():
            return value if precision is None else value[:precision]
        case "v" | "g", float():
            return go_float(value) if precision is None else _general(value, precision)
        case ("v", _) if precision is None:
            return go_format(value)
        case ("s", Record() | JsonMap() | JsonList()) if precision is None:
            return go_format(value)
        case ("s", list()) if precision is None and all(isinstance(item, str) for item in value):
            return go_format(value)
        case ("t", bool()) if precision is None:
            return go_format(value)
        case ("d" | "x" | "X" | "c", int()) if not isinstance(value, bool) and precision is None:
            return _integer(verb, value)
        case ("x" | "X", str()) if precision is None:
            return value.encode(errors="surrogateescape").hex() if verb == "x" else value.encode().hex().upper()
        case ("q", str()) if precision is None:
            return _quoted(value)
        case "e" | "f", float():
            return f"{value:.{6 if precision is None else precision}{verb}}"
    raise TemplateError(f"printf {spec!r} cannot write a {type_of(value)}")


def _integer(verb: str, value: int) -> str:
    if verb == "c":
        return chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value <= 0xDFFF else "\ufffd"
    return format(value, verb)


def _general(value: float, precision: int) -> str:
    return f"{value:.{precision or 1}g}"


def _quoted(text: str) -> str:
    """strconv.Quote: what does not print becomes an escape."""
    pieces = ['"']
    for character in text:
        point = ord(character)
        if character in _NAMED:
            pieces.append(f"\\{_NAMED[character]}")
        elif character.isprintable():
            pieces.append(character)
        elif 0xDC80 <= point <= 0xDCFF:  # a byte of a string cut inside a character
            pieces.append(f"\\x{point - 0xDC00:02x}")
        else:
            pieces.append(
                f"\\x{point:02x}" if point < 0x80 else f"\\u{point:04x}" if point < 2**16 else f"\\U{point:08x}"
            )
    return "".join([*pieces, '"'])
