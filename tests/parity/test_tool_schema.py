"""Functions are told to a model as transformers tells them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from transformers.utils import get_json_schema

from tokenmill.tools.schema import function_schema


def weather(city: str, days: int = 3, unit: Literal["c", "f"] = "c") -> str:
    """
    Tells the weather.

    In two paragraphs.

    Args:
        city: Where, such as
            "Oslo, Norway".
        days: How many.
        unit: Which one.

    Returns:
        Words.
    """
    return city


def shapes(points: list[list[float]], how: dict[str, bool], kind: str, either: int | str) -> None:
    """Draws.

    Args:
        points: Pairs.
        how: Options.
        kind: What. (choices: ["line", "dot"])
        either: One of both.
    """


def nothing() -> int:
    """Nothing at all."""
    return 0


@pytest.mark.parametrize("function", [weather, shapes, nothing])
def test_schemas_are_those_of_transformers(function: Callable[..., Any]) -> None:
    theirs = get_json_schema(function)
    theirs["function"].pop("return", None)
    assert function_schema(function) == theirs
