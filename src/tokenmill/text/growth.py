"""Sizes of results before they exist: the operators, string methods and filters that can make much out of little.

Each function here takes the budget of the rendering and either does what Python or Jinja does, or refuses beforehand.
See `sandbox` for the rest of the walls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial, wraps
from string import Formatter
from typing import Any

from jinja2 import filters, pass_eval_context
from jinja2.nodes import EvalContext

from tokenmill.text.budget import CURRENT, MAX_INT_BITS, Budget, LimitError

MAX_WIDTH = 1000
"""Of a printed field (``%80s``, ``{:>80}``, ``|center(80)``), an indent, a separator; of digits after the point."""

REFUSED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_REFUSED_METHODS = frozenset({"encode", "translate", "maketrans", "striptags", "to_bytes", "from_bytes"})
_SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000"


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Raise LimitError if ``left operator right`` would be too large."""
    if operator == "%" and isinstance(left, str):
        _check_printf(budget, left, right)
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        size = len(left) + len(right)
        budget.allow(size if isinstance(left, str) else 0, 0 if isinstance(left, str) else size)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                chars, items = budget.weigh(value)
                budget.allow(chars * max(times, 0), 0 if isinstance(value, str) else items * max(times, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise LimitError("it makes a huge number")


_PRINTF = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?")


def _check_printf(budget: Budget, template: str, values: Any) -> None:
    fields = 0
    for match in _PRINTF.finditer(template):
        fields += 1
        for number in match.groups(default=""):
            _check_width(number)
    budget.allow(len(template) + fields * (budget.weigh(values)[0] + MAX_WIDTH if fields else 0))


def _check_width(number: str | int) -> None:
    if number == "*" or (number != "" and (len(str(number)) > 6 or int(number) > MAX_WIDTH)):
        raise LimitError(f"it prints a field wider than {MAX_WIDTH}")


def _format(budget: Budget, method: Callable[..., str], text: str, *args: Any, **kwargs: Any) -> str:
    fields, values = 0, budget.weigh([args, kwargs])[0]
    for _, name, spec, _ in Formatter().parse(text):
        fields += name is not None
        if spec and "{" in spec:
            raise LimitError("it computes the width of a field")
        for number in re.findall(r"\d+", spec or ""):
            _check_width(number)
    budget.allow(len(text) + fields * (values + MAX_WIDTH))
    return method(*args, **kwargs)


def bounded_method(budget: Budget, method: Any) -> Callable[..., Any] | None:
    """A stand-in for a method of a text (or number) that could grow; None for whatever else is called."""
    original = getattr(method, "__wrapped__", method)  # the sandbox wraps str.format
    owner, name = getattr(original, "__self__", None), getattr(original, "__name__", "")
    if not isinstance(owner, (str, int, float, bytes)):
        return None
    if name in _REFUSED_METHODS or isinstance(owner, bytes):
        raise LimitError(f"the method {name!r} is not for chat templates")
    if isinstance(owner, str) and name in ("format", "format_map"):
        return partial(_format, budget, method, owner)
    check = _METHODS.get(name) if isinstance(owner, str) else None
    return None if check is None else partial(check, budget, owner, method)


def _padded(budget: Budget, text: str, method: Callable[..., str], width: int, *fill: str) -> str:
    budget.allow(int(width))
    return method(width, *fill)


def _tabs(budget: Budget, text: str, method: Callable[..., str], tabsize: int = 8) -> str:
    budget.allow(len(text) + text.count("\t") * int(tabsize))
    return method(tabsize)


def _replace(budget: Budget, text: str, method: Callable[..., str], old: str, new: str, *count: int) -> str:
    budget.allow(len(text) + text.count(old) * max(len(new) - len(old), 0))
    return method(old, new, *count)


def _join(budget: Budget, text: str, method: Callable[..., str], parts: Iterable[str]) -> str:
    parts = _listed(budget, parts)
    budget.allow(sum(len(part) for part in parts if isinstance(part, str)) + len(text) * len(parts))
    return method(parts)


def _split(budget: Budget, text: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    separator = args[0] if args else kwargs.get("sep")
    if len(text) > budget.items:
        found = text.count(separator) if isinstance(separator, str) and separator else sum(map(text.count, _SPACES))
        budget.allow(0, found)
    return method(*args, **kwargs)


_METHODS: dict[str, Callable[..., Any]] = {
    "ljust": _padded,
    "rjust": _padded,
    "center": _padded,
    "zfill": _padded,
    "expandtabs": _tabs,
    "replace": _replace,
    "join": _join,
    "split": _split,
    "rsplit": _split,
    "splitlines": _split,
}


def _listed(budget: Budget, values: Iterable[Any]) -> list[Any]:
    """`values` as a list, each element counted while it comes."""
    listed: list[Any] = []
    chars = 0
    for value in budget.ticking(values):
        listed.append(value)
        chars += budget.weigh(value)[0]
        budget.allow(chars, len(listed))
    return listed


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter: plain JSON, no HTML escapes, json.dumps' own options."""
    budget = CURRENT.get()
    chars, items = budget.weigh(value)
    for part in (indent, *(separators or ())):
        if part is not None:
            _check_width(len(part) if isinstance(part, str) else part)
    padding = (len(indent) if isinstance(indent, str) else indent or 0) + sum(map(len, separators or ()))
    budget.allow(chars + items * padding)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _center(value: str, width: int = 80) -> str:
    CURRENT.get().allow(int(width))
    return filters.do_center(value, width)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    budget = CURRENT.get()
    _check_width(len(width) if isinstance(width, str) else width)
    lines = len(str(s).splitlines()) + 1 if len(s) < budget.items else s.count("\n") + 2
    budget.allow(len(s) + lines * (len(width) if isinstance(width, str) else width))
    return filters.do_indent(s, width, first, blank)


@pass_eval_context
def _replace_filter(eval_ctx: EvalContext, s: str, old: str, new: str, count: int | None = None) -> str:
    budget = CURRENT.get()
    text, old, new = str(budget.take(s)), str(budget.take(old)), str(budget.take(new))
    budget.allow(len(text) + text.count(old) * max(len(new) - len(old), 0))
    return budget.take(filters.do_replace(eval_ctx, s, old, new, count))


@pass_eval_context
def _join_filter(eval_ctx: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    budget = CURRENT.get()
    parts = _listed(budget, value)
    budget.allow(sum(budget.weigh(part)[0] for part in parts) + len(str(d)) * len(parts))
    return budget.take(filters.do_join(eval_ctx, parts, d, attribute))


def _format_filter(value: str, *args: Any, **kwargs: Any) -> str:
    budget = CURRENT.get()
    _check_printf(budget, str(value), kwargs or args)
    return budget.take(filters.do_format(value, *args, **kwargs))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    _check_width(abs(precision))
    return filters.do_round(value, precision, method)


def _batch(value: Iterable[Any], linecount: int, fill_with: Any = None) -> Iterable[list[Any]]:
    CURRENT.get().allow(0, int(linecount))
    return filters.do_batch(CURRENT.get().ticking(value), linecount, fill_with)


def _slice(value: Any, slices: int, fill_with: Any = None) -> Iterable[list[Any]]:
    CURRENT.get().allow(0, int(slices))
    return CURRENT.get().ticking(filters.sync_do_slice(_listed(CURRENT.get(), value), slices, fill_with))


def _walking(function: Callable[..., Any], position: int) -> Callable[..., Any]:
    """A filter that makes a list of its input, or walks all of it before it answers: the input counted first."""

    @wraps(function)
    def walk(*args: Any, **kwargs: Any) -> Any:
        if len(args) > position and not isinstance(args[position], (dict, list, tuple)):
            args = (*args[:position], _listed(CURRENT.get(), args[position]), *args[position + 1 :])
        return function(*args, **kwargs)

    return walk


def _sum_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def add(environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):  # sum(start=[]) is quadratic
            raise LimitError("sum adds numbers only")
        return function(environment, CURRENT.get().ticking(iterable), attribute, start)

    return add


FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": tojson,
    "center": _center,
    "indent": _indent,
    "replace": _replace_filter,
    "join": _join_filter,
    "format": _format_filter,
    "round": _round,
    "batch": _batch,
    "slice": _slice,
    "sum": _sum_filter(filters.sync_do_sum),
    # the number: how many arguments Jinja puts before the value (none, or the environment)
    "list": _walking(filters.sync_do_list, 0),
    "sort": _walking(filters.do_sort, 1),
    "unique": _walking(filters.sync_do_unique, 1),
    "groupby": _walking(filters.sync_do_groupby, 1),
    "min": _walking(filters.do_min, 1),
    "max": _walking(filters.do_max, 1),
}
"""What replaces Jinja's own filters of these names."""
