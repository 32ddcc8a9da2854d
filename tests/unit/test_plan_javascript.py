"""The formulas of the planner's page: the JavaScript made from Python computes the same; no formula, no JavaScript."""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import quickjs
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import awkward_formulas as awkward
from tokenmill.core.errors import FormatError
from tokenmill.plan import laws, money, rates
from tokenmill.plan.page.transpile import javascript


def module_of(code: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.setattr(inspect, "getsource", lambda module: code)
    return types.ModuleType("planted")


def context(*modules: types.ModuleType) -> quickjs.Context:
    made = quickjs.Context()
    made.eval(javascript(modules))
    return made


def formulas() -> Iterator[Any]:
    for module in (rates, money, laws):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and name != "best_parameters_served":  # a search: see below
                yield pytest.param(module, function, id=name)


@pytest.fixture(scope="module")
def page() -> quickjs.Context:
    return context(rates, money, laws)


def number_for(name: str) -> st.SearchStrategy[float]:
    if name in ("alpha", "beta", "batch"):  # exponents
        return st.floats(0.01, 40)
    return st.one_of(st.floats(1e-6, 1e15), st.floats(0.01, 0.99), st.integers(1, 64).map(float), st.just(0.0))


@pytest.mark.parametrize(("module", "function"), list(formulas()))
@settings(max_examples=6, deadline=None, database=None)
@given(data=st.data())
def test_every_formula_is_the_same(
    page: quickjs.Context, module: types.ModuleType, function: Callable[..., float], data: st.DataObject
) -> None:
    """Each formula on arguments of all magnitudes, and on the awkward ones: none, one, fractions."""
    arguments = [data.draw(number_for(name)) for name in inspect.signature(function).parameters]
    try:
        expected: float | None = function(*arguments)
    except ZeroDivisionError:
        expected = None
    except OverflowError:  # JavaScript has an infinity there and goes on
        return
    call = f"{function.__name__}({', '.join(map(json.dumps, arguments))})"
    try:
        found: float | None = page.eval(call)
    except quickjs.JSException:
        found = None
    if expected is None:
        assert found is None or not math.isfinite(found)
    elif isinstance(expected, complex):  # Python's root of a negative number
        assert found is not None
        assert math.isnan(found)
    elif not math.isfinite(expected):
        assert found is None or not math.isfinite(found)
    else:
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("served", [0.0, 1e12, 1e14])
def test_the_search_is_the_same(page: quickjs.Context, served: float) -> None:
    arguments = (2.2, served, 7e9, 1.8172, 482.01, 2085.43, 0.3478, 0.3658)
    assert page.eval(f"best_parameters_served({', '.join(map(repr, arguments))})") == pytest.approx(
        laws.best_parameters_served(*arguments), rel=1e-6
    )


def test_where_the_languages_differ_pythons_meaning_holds() -> None:
    python, made = vars(awkward), context(awkward)
    for a in (-7, -2.5, 1, 2, 10, 11.0, 700):
        for name in ("cut", "minus_power", "power_of_minus", "chain", "named", "read", "rest"):
            assert made.eval(f"{name}({a})") == pytest.approx(python[name](a)), (name, a)
        for b in (-4, 3, 10):
            for name in ("rest", "down", "swap", "either"):
                assert made.eval(f"{name}({a}, {b})") == pytest.approx(python[name](a, b)), (name, a, b)
    assert made.eval("total(1000)") == python["total"](1000)
    assert made.eval("tower(2, 9)") == python["tower"](2, 9)
    assert json.loads(made.eval("JSON.stringify(table(8))")) == python["table"](8)
    with pytest.raises(quickjs.JSException, match="division by zero"):
        made.eval("rest(1, 0)")


@pytest.mark.parametrize(
    "body",
    [
        "return open(a)",
        "return a.real",
        "return unknown(a)",
        "return later",
        "return [x for x in range(3)]",
        "return a @ a",
        "return a if a is None else 0",
        "import os",
        "for x in [1, 2]: pass",
        "for x in range(0, 9, 2): pass",
        "with a: pass",
        "raise ValueError",
        "return f(1, 2)",
        "return f(b=1)",
        "return f()",
        "return f'{a}'",
        "return a & 1",
        "return round(a)",
        "a.b = 1",
        "return {a: 1}",
    ],
)
def test_what_is_no_formula_is_refused(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = module_of(f"def f(a):\n    {body}\n", monkeypatch)
    with pytest.raises(FormatError, match=r"planted: line \d"):
        javascript([planted])


@pytest.mark.parametrize(
    "code", ["class A: pass", "def f(*a): return 1", "def f(a): return 1\ndef f(b): return 2", "print(1)", "A = open"]
)
def test_what_is_no_module_of_formulas_is_refused(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = module_of(code, monkeypatch)
    with pytest.raises(FormatError):
        javascript([planted])


def test_a_name_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="twice"):
        javascript([rates, rates])


def test_words_cannot_end_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = module_of('def f(a): return {"</script>": a}', monkeypatch)
    assert "</script>" not in javascript([planted])
