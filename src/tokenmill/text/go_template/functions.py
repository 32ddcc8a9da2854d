"""The functions a template may call: Go's own, less those for HTML and for calling methods, and the ones Ollama adds.

``and`` and ``or`` stop at the first argument that decides and are therefore done by the renderer. Every function here
takes the evaluated arguments and either returns a value or raises TemplateError.
Source: text/template/funcs.go of Go, `funcs` in Ollama's template/template.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

from tokenmill.core.errors import TemplateError
from tokenmill.text.go_template.printf import sprint, sprintf, sprintln
from tokenmill.text.go_template.values import JsonList, Record, go_json, is_true, length_of, type_of

LAZY = frozenset({"and", "or"})


def _comparable(left: Any, right: Any) -> bool:
    return type_of(left) == type_of(right) and isinstance(left, bool | int | float | str)


def _nil(value: Any) -> bool:
    """Ollama hands over a list that has nothing in it as a nil slice."""
    return value is None or (isinstance(value, list | dict) and not value)


def _equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return _nil(left) == _nil(right)
    if not _comparable(left, right):
        raise TemplateError(f"cannot compare a {type_of(left)} with a {type_of(right)}")
    return bool(left == right)


def _less(left: Any, right: Any) -> bool:
    if not _comparable(left, right) or isinstance(left, bool):
        raise TemplateError(f"no order between a {type_of(left)} and a {type_of(right)}")
    if isinstance(left, str):  # Go orders by bytes
        return left.encode(errors="surrogateescape") < right.encode(errors="surrogateescape")
    return bool(left < right)


def _eq(first: Any, *others: Any) -> bool:
    return any(_equal(first, other) for other in others)


def _le(left: Any, right: Any) -> bool:
    return _less(left, right) or _equal(left, right)


def _len(value: Any) -> int:
    if isinstance(value, str):
        return length_of(value)
    if isinstance(value, list | dict):
        return len(value)
    raise TemplateError(f"a {type_of(value)} has no length")


def _position(value: Any, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TemplateError(f"a {type_of(value)} is not an index")
    if not 0 <= value <= end:
        raise TemplateError(f"index {value} is out of range, the length is {end}")
    return value


def _index(item: Any, *keys: Any) -> Any:
    if item is None:
        raise TemplateError("cannot index nil")
    for key in keys:
        match item:
            case list():
                item = item[_position(key, len(item) - 1)]
            case str():
                item = item.encode(errors="surrogateescape")[_position(key, length_of(item) - 1)]
            case dict() if isinstance(key, str):
                item = item.get(key)
            case _:
                raise TemplateError(f"cannot index a {type_of(item)} by a {type_of(key)}")
    return item


def _slice(item: Any, *bounds: Any) -> Any:
    whole: Sequence[Any]
    if isinstance(item, str):
        whole = item.encode(errors="surrogateescape")
    elif isinstance(item, list):
        whole = item
    else:
        raise TemplateError(f"cannot slice a {type_of(item)}")
    places = [_position(bound, len(whole)) for bound in bounds]
    if len(places) > 2 and (isinstance(item, str) or places[1] > places[2]):
        raise TemplateError("bad third bound of a slice")
    start, end = (*places[:2], *(0, len(whole))[len(places[:2]) :])
    if start > end:
        raise TemplateError(f"slice from {start} to {end}")
    part = whole[start:end]
    if isinstance(part, bytes):
        return part.decode(errors="surrogateescape")
    return JsonList(part) if isinstance(item, JsonList) else part


def _printf(*arguments: Any) -> str:
    if not arguments or not isinstance(arguments[0], str):
        raise TemplateError("printf needs a format string first")
    return sprintf(arguments[0], arguments[1:])


_TYPESCRIPT = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


def _typescript(value: Any) -> str:
    """The TypeScript type of one tool parameter, as Ollama's templates for gpt-oss write it."""
    if not isinstance(value, Record) or value.type_name != "ToolProperty":
        return "any"
    if value.fields["AnyOf"]:
        return " | ".join(_typescript(choice) for choice in value.fields["AnyOf"])
    names = value.fields["Type"]
    names = [names] if isinstance(names, str) else names
    return " | ".join(_TYPESCRIPT.get(name, "any") for name in names) or "any"


# name: (function, fewest arguments, most)
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, float]] = {
    "not": (lambda value: not is_true(value), 1, 1),
    "eq": (_eq, 2, float("inf")),
    "ne": (lambda left, right: not _equal(left, right), 2, 2),
    "lt": (_less, 2, 2),
    "le": (_le, 2, 2),
    "gt": (lambda left, right: not _le(left, right), 2, 2),
    "ge": (lambda left, right: not _less(left, right), 2, 2),
    "len": (_len, 1, 1),
    "index": (_index, 1, float("inf")),
    "slice": (_slice, 1, 4),
    "print": (lambda *values: sprint(values), 0, float("inf")),
    "println": (lambda *values: sprintln(values), 0, float("inf")),
    "printf": (_printf, 1, float("inf")),
    "json": (go_json, 1, 1),
    "toJson": (go_json, 1, 1),
    "toTypeScriptType": (_typescript, 1, 1),
}
_DAYS = {"currentDate": 0, "yesterdayDate": -1}  # their format argument is accepted and unused in Ollama; refused here
NAMES = frozenset(_FUNCTIONS) | LAZY | frozenset(_DAYS)


def call(name: str, arguments: Sequence[Any], today: date) -> Any:
    """Calls the function `name`, one of NAMES less LAZY. Raises TemplateError, also for a wrong count of arguments."""
    if name in _DAYS:
        if arguments:
            raise TemplateError(f"{name} takes no arguments, dates are always written YYYY-MM-DD")
        return (today + timedelta(days=_DAYS[name])).isoformat()
    function, fewest, most = _FUNCTIONS[name]
    if not fewest <= len(arguments) <= most:
        allowed = (
            f"{fewest}" if fewest == most else f"at least {fewest}" if most == float("inf") else f"{fewest} to {most}"
        )
        raise TemplateError(f"{name} takes {allowed} arguments, got {len(arguments)}")
    return function(*arguments)
