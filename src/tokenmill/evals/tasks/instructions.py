"""Demands on an answer that a program can check, in the manner of IFEval (Zhou et al. 2023).

A row's ``checks`` is a list of ``{"check": NAME, …}``; unknown names and arguments are refused. Strict takes the answer
as it is; loose forgives, as IFEval does, a first or last line around the answer and asterisks in it: any of the eight
readings that meets the demand will do.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenmill.core.errors import ConfigError, did_you_mean

Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}
_WORD = re.compile("\\w+(?:['\u2019-]\\w+)*")
_SENTENCE = re.compile(r"[^.!?]*[^.!?\s][^.!?]*(?:[.!?]+|$)")


def _check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def _within(count: int, at_least: int | None, at_most: int | None, exactly: int | None) -> bool:
    return (
        (at_least is None or count >= at_least)
        and (at_most is None or count <= at_most)
        and (exactly is None or count == exactly)
    )


@_check
def words(text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> bool:
    """So many words."""
    return _within(len(_WORD.findall(text)), at_least, at_most, exactly)


@_check
def sentences(
    text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> bool:
    """So many sentences, each ended by a full stop, a question mark or an exclamation mark."""
    return _within(len(_SENTENCE.findall(text)), at_least, at_most, exactly)


@_check
def paragraphs(
    text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> bool:
    """So many paragraphs, a blank line between them."""
    return _within(len([p for p in re.split(r"\n\s*\n", text) if p.strip()]), at_least, at_most, exactly)


@_check
def lines(text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> bool:
    """So many lines that are not blank."""
    return _within(len([line for line in text.splitlines() if line.strip()]), at_least, at_most, exactly)


@_check
def bullets(text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> bool:
    """So many list points that begin with ``-`` or ``*``."""
    return _within(len(re.findall(r"^\s*[-*]\s+\S", text, re.MULTILINE)), at_least, at_most, exactly)


@_check
def numbered(text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> bool:
    """A list numbered from 1 without a gap, of so many points."""
    numbers = [int(n) for n in re.findall(r"^\s*(\d+)[.)]\s+\S", text, re.MULTILINE)]
    return numbers == list(range(1, len(numbers) + 1)) and _within(len(numbers), at_least, at_most, exactly)


@_check
def has(text: str, *, all_of: Sequence[str]) -> bool:
    """Each of these stands in it, as whole words, whatever the case."""
    return all(_count(text, one) > 0 for one in all_of)


@_check
def lacks(text: str, *, all_of: Sequence[str]) -> bool:
    """None of these stands in it, as whole words, whatever the case."""
    return all(_count(text, one) == 0 for one in all_of)


@_check
def frequency(
    text: str, *, word: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> bool:
    """A word stands in it so often."""
    return _within(_count(text, word), at_least, at_most, exactly)


@_check
def starts_with(text: str, *, text_: str) -> bool:
    """It begins so, letter by letter."""
    return text.lstrip().startswith(text_)


@_check
def ends_with(text: str, *, text_: str) -> bool:
    """It ends so, letter by letter."""
    return text.rstrip().endswith(text_)


@_check
def upper_case(text: str) -> bool:
    """All letters are capitals."""
    return text.isupper()


@_check
def lower_case(text: str) -> bool:
    """No letter is a capital."""
    return text.islower()


@_check
def no_commas(text: str) -> bool:
    """It has no comma."""
    return "," not in text and text.strip() != ""


@_check
def quoted(text: str) -> bool:
    """All of it stands in double quotation marks."""
    bare = text.strip()
    return len(bare) > 2 and bare[0] == bare[-1] == '"'


@_check
def titled(text: str) -> bool:
    """It has a title in ``<<double angular brackets>>``."""
    return re.search(r"<<[^\n<>]*\w[^\n<>]*>>", text) is not None


@_check
def placeholders(
    text: str, *, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> bool:
    """So many placeholders in square brackets, such as ``[name]``."""
    return _within(len(re.findall(r"\[[^\[\]\n]+\]", text)), at_least, at_most, exactly)


@_check
def parts(text: str, *, separator: str, exactly: int) -> bool:
    """So many parts that are not blank, with a separator between them."""
    split = text.split(separator)
    return len(split) == exactly and all(part.strip() for part in split)


@_check
def matches(text: str, *, pattern: str) -> bool:
    """All of it (but white space around it) matches a regular expression."""
    return re.fullmatch(pattern, text.strip(), re.DOTALL) is not None


@_check
def one_of(text: str, *, answers: Sequence[str]) -> bool:
    """It is one of these and nothing else, but for a full stop."""
    return text.strip().rstrip(".") in answers


@_check
def is_json(text: str, *, keys: Sequence[str] | None = None, items: int | None = None) -> bool:
    """It is JSON and nothing else: an object with exactly these keys, a list of so many items. A fence of three
    backticks around it is allowed."""
    bare = re.fullmatch(r"\s*```(?:json)?\n(.*?)\n?```\s*", text, re.DOTALL)
    try:
        value = json.loads(bare[1] if bare else text)
    except (ValueError, RecursionError):
        return False
    if keys is not None and (not isinstance(value, dict) or set(value) != set(keys)):
        return False
    return items is None or (isinstance(value, list) and len(value) == items)


def _count(text: str, phrase: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE))


def read_checks(row: str, given: Any) -> list[tuple[str, dict[str, Any]]]:
    """A row's demands, each proven to be one; ConfigError otherwise."""
    if not isinstance(given, list) or not given:
        raise ConfigError(f"row {row}: checks is a list of demands, such as [{{'check': 'words', 'at_most': 20}}]")
    return [_read_check(row, one) for one in given]


def _read_check(row: str, given: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(given, Mapping) or not isinstance(given.get("check"), str):
        raise ConfigError(f"row {row}: {given!r} is no demand: it needs a check")
    name = given["check"]
    if name not in CHECKS:
        raise ConfigError(f"row {row}: no check {name!r}{did_you_mean(name, CHECKS)}; there are {', '.join(CHECKS)}")
    arguments = {("text_" if key == "text" else key): value for key, value in given.items() if key != "check"}
    try:
        bound = inspect.signature(CHECKS[name]).bind("", **arguments)
    except TypeError as error:
        raise ConfigError(f"row {row}: check {name}: {error}") from None
    limits = [key for key in ("at_least", "at_most", "exactly") if key in inspect.signature(CHECKS[name]).parameters]
    if len(limits) == 3 and not any(key in arguments for key in limits):
        raise ConfigError(f"row {row}: check {name} needs one of {', '.join(limits)}")
    return name, bound.kwargs


def met(name: str, arguments: Mapping[str, Any], text: str, *, loose: bool = False) -> bool:
    """Whether an answer meets a demand. An empty answer meets none."""
    readings = _readings(text) if loose else [text]
    return any(one.strip() != "" and CHECKS[name](one, **arguments) for one in readings)


def _readings(text: str) -> list[str]:
    """IFEval's eight: with and without first line, last line, asterisks."""
    rows = text.strip().split("\n")
    cut = [rows, rows[1:], rows[:-1], rows[1:-1]]
    plain = ["\n".join(one).strip() for one in cut]
    return [*plain, *(one.replace("*", "") for one in plain)]
