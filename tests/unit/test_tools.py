"""Tools that a model calls: bounded by the clock, never the end of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenmill.config.tools import ToolsConfig
from tokenmill.core.errors import ConfigError
from tokenmill.text.tool_calls import ToolCall
from tokenmill.tools.box import HANGS, ToolBox
from tokenmill.tools.calculator import calculator
from tokenmill.tools.schema import function_schema


def test_what_a_model_could_not_call_is_refused() -> None:
    def untyped(a):  # type: ignore[no-untyped-def]
        """Words."""

    def silent(a: int) -> None: ...

    def many(*a: int) -> None:
        """Words."""

    def odd(a: set[int]) -> None:
        """Words."""

    def optional(a: int | None = None) -> None:
        """Words."""

    for function, words in ((untyped, "no type"), (silent, "no docstring"), (many, "by name"), (odd, "JSON has")):
        with pytest.raises(TypeError, match=words):
            function_schema(function)
    assert function_schema(optional)["function"]["parameters"]["properties"]["a"] == {"type": ["integer", "null"]}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [("2 * (3 + 4.5)", "15"), ("7 / 2", "3.5"), ("2^10 =", "1024"), ("sqrt(16) - max(1, 2)", "2"), ("-3 % 5", "2")],
)
def test_the_calculator(asked: str, answer: str) -> None:
    assert calculator(asked) == answer


@pytest.mark.parametrize(
    "attack",
    ["9**9**9", "__import__('os')", "(1).__class__", "(" * 400, "1e308 * 10", "round(5, -10**900)", "[0] * 9",
     "'a' * 9", "x", "2 ** 5000", "1 +"],
)  # fmt: skip
def test_the_calculator_holds(attack: str) -> None:
    with pytest.raises((ValueError, ArithmeticError)):
        calculator(attack)


FILE = '''
import asyncio, os, sys, time

def add(a: int, b: int = 1) -> int:
    """Adds."""
    print("this is no answer")
    return a + b

async def later(word: str) -> dict:
    """Says it later."""
    await asyncio.sleep(0)
    return {"word": word}

def fail(how: str) -> float:
    """Fails."""
    if how == "hang":
        time.sleep(60)
    if how == "exit":
        os._exit(3)
    if how == "leave":
        sys.exit()
    if how == "nan":
        return float("nan")
    if how == "deep nan":
        return {"a": [1.0, float("inf")]}
    if how == "long":
        return "x" * 10_000_000
    raise KeyError("boom")
'''


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolBox]:
    file = tmp_path_factory.mktemp("tools") / "mine.py"
    file.write_text(FILE)
    use = [f"{file}:{name}" for name in ("add", "later", "fail")]
    box = ToolBox(ToolsConfig(use=[*use, "calculator"], timeout_s=60.0, concurrency=2))
    yield box
    box.close()


def run(box: ToolBox, *calls: tuple[str, dict[str, Any]]) -> list[tuple[str, str]]:
    every = ["add", "later", "fail", "calculator"]
    found = box.run([ToolCall(name, arguments) for name, arguments in calls], [every] * len(calls))
    return [(result.kind, result.text) for result in found]


def test_calls_are_answered_in_order(box: ToolBox) -> None:
    calls = [("add", {"a": n}) for n in range(9)]
    assert run(box, *calls) == [("done", str(n + 1)) for n in range(9)]
    assert run(box, ("later", {"word": "ä"}), ("calculator", {"expression": "1+1"})) == [
        ("done", '{"word": "ä"}'),
        ("done", "2"),
    ]


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("raise", "failed", "KeyError"),
        ("exit", "failed", "status 3"),
        ("leave", "failed", "status 0"),
        ("nan", "failed", "nan"),
        ("deep nan", "failed", "infinity"),
    ],
)
def test_what_fails_is_told_and_the_next_call_is_well(box: ToolBox, how: str, kind: str, words: str) -> None:
    (first, text), after = run(box, ("fail", {"how": how}), ("add", {"a": 1}))
    assert first == kind
    assert words in json.loads(text)["error"]
    assert after == ("done", "2")


def test_a_result_without_end_is_cut(box: ToolBox) -> None:
    assert len(run(box, ("fail", {"how": "long"}))[0][1]) == 1 << 18


@pytest.mark.parametrize(
    "call",
    [
        ("subtract", {}),
        ("add", {}),
        ("add", {"a": "one"}),
        ("add", {"a": 1, "c": 2}),
        ("add", {"a": float("nan")}),
        ("later", {"word": "\ud800", "\ud800": 1}),
        ("\ud800", {}),
    ],
)
def test_what_cannot_be_called_is_told(box: ToolBox, call: tuple[str, dict[str, Any]]) -> None:
    [(kind, text)] = run(box, call)
    assert kind == "invalid"
    assert json.loads(text)["error"]


def test_a_tool_that_hangs_is_ended_and_not_waited_for_every_time(
    box: ToolBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr(box, "config", box.config.model_copy(update={"timeout_s": 0.1}))
        results = run(box, *[("fail", {"how": "hang"})] * (HANGS + 9))
    assert [kind for kind, _ in results] == ["timed_out"] * (HANGS + 9)
    assert "no answer in 0.1 s" in results[0][1]
    assert sum("not tried" in text for _, text in results) >= 8
    assert run(box, ("fail", {"how": "raise"}))[0][0] == "failed"  # tried again in the next round


def test_a_program_runs_in_the_sandbox() -> None:
    box = ToolBox(ToolsConfig(use=["python"], timeout_s=60.0))
    programs = ("print(6 * 7)", "1/0", "open('/etc/passwd')", "import socket; socket.socket()", "x = 1")
    found = box.run([ToolCall("python", {"code": code}) for code in programs], [["python"]] * len(programs))
    assert [one.kind for one in found] == ["done", "failed", "failed", "failed", "done"]
    assert found[0].text == "42"
    assert "ZeroDivisionError" in found[1].text
    assert "printed nothing" in found[4].text


def test_tools_that_are_not_there_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(a): ...\ndef calculator(a: int):\n    'Words.'\n")
    for use, words in (
        (["calculater"], "did you mean 'calculator'"),
        ([f"{file}:g"], "has no function g"),
        ([f"{file}:f"], "no docstring"),
        (["no_such_module:f"], "no_such_module"),
        (["calculator", f"{file}:calculator"], "two are called 'calculator'"),
    ):
        with pytest.raises(ConfigError, match=words):
            ToolBox(ToolsConfig(use=use))
