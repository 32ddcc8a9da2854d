"""Tool conversations made from schemas, and checks of calls: what is drawn fits, faults are found, rows train and
measure."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.cli.app import main
from tokenmill.core.endpoint import Answer
from tokenmill.core.errors import ConfigError
from tokenmill.data.tool_checks import tool_problems
from tokenmill.data.tool_formats import SPELLINGS, convert_tools, read_tools
from tokenmill.data.tool_make import MakeOptions, holds_values, make_rows, read_tool_file, reworded
from tokenmill.data.tool_values import draw_arguments
from tokenmill.evals.tasks.task import load_task
from tokenmill.text.json_schema import Schema

TOOLS = Path(__file__).parents[2] / "examples" / "tools.yaml"

leaves: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"type": "integer", "minimum": -3, "maximum": 3},
        {"type": "integer", "multipleOf": 5},
        {"type": "number", "minimum": 0.0, "maximum": 0.5},
        {"type": ["null", "boolean"]},
        {"enum": ["a", 2, None]},
        {"const": {"x": 1}},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": "^[A-Z]{2}$", "examples": ["CH", "NO"]},
        {"type": "string"},
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"$ref": "#/$defs/day"},
    ]
)
schemas = st.recursive(
    leaves,
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "minItems": st.integers(0, 2)})
        | st.builds(
            lambda parts: {
                "type": "object",
                "properties": parts,
                "required": list(parts)[:1],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["city", "user_name", "n"]), inner, max_size=3),
        )
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["a", "city", "start_date"]), schemas, max_size=3), st.randoms())
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_fits_its_schema(properties: dict[str, Any], draw: Any) -> None:
    days = {"day": {"enum": ["Monday", "Tuesday"]}}
    schema = {"type": "object", "properties": properties, "required": list(properties)[:2], "$defs": days}
    arguments = draw_arguments(schema, draw)
    assert Schema(schema).problems(arguments) == []
    assert set(list(properties)[:2]) <= set(arguments)


def test_a_schema_that_cannot_be_met_is_refused() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^[0-9]{9}$"}}, "required": ["x"]}
    with pytest.raises(ConfigError, match="give its strings examples"):
        draw_arguments(schema, random.Random(0))
    with pytest.raises(ConfigError, match="no JSON schema"):
        draw_arguments({"type": "object", "properties": {"x": {"$ref": "#/y"}}, "required": ["x"]}, random.Random(0))


def test_rows_follow_from_the_seed_and_say_what_they_ask() -> None:
    tools = read_tool_file(TOOLS)
    rows = make_rows(tools, MakeOptions(rows=80, seed=3, parallel=0.2, no_call=0.1))
    assert make_rows(tools, MakeOptions(rows=20, seed=3, parallel=0.2, no_call=0.1)) == rows[:20]
    assert make_rows(tools, MakeOptions(rows=20, seed=4, parallel=0.2, no_call=0.1)) != rows[:20]
    kinds = {count: [row for row in rows if len(row["calls"]) == count] for count in (0, 1, 2)}
    assert 2 <= len(kinds[0]) <= 20
    assert 4 <= len(kinds[2]) <= 30
    for row in rows:
        assert tool_problems(read_tools(row)) == []
        assert 1 <= len(row["tools"]) <= 4
        assert all(holds_values(row["prompt"], call["arguments"]) for call in row["calls"])
        assert "{" not in row["prompt"]
        for spelling in SPELLINGS:
            again = read_tools(convert_tools(row, spelling))
            assert [call["function"] for m in again.messages for call in m.get("tool_calls", ())] == row["calls"]


def test_a_model_rewords_only_what_it_keeps_whole() -> None:
    tools = read_tool_file(TOOLS)
    rows = make_rows(tools, MakeOptions(rows=12, seed=1, no_call=0.2))

    def ask(bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
        said = [body["messages"][0]["content"].partition("Arguments: ")[2] for body in bodies]
        return [
            Answer("" if n % 3 == 0 else f'"So: {text}"', "length" if n % 3 == 1 else "stop")
            for n, text in enumerate(said)
        ]

    made = reworded(rows, tools, "m", ask)
    asked = [(new, old) for new, old in zip(made, rows, strict=True) if old["calls"]]
    assert len(asked) < len(rows)
    for number, (new, old) in enumerate(asked):
        assert new["calls"] == old["calls"]
        assert new["messages"][1:] == old["messages"][1:]
        assert (new["prompt"].startswith("So: ")) == (number % 3 == 2)
        assert new["messages"][0]["content"] == new["prompt"]


def test_faults_in_calls_are_found() -> None:
    row = make_rows(read_tool_file(TOOLS), MakeOptions(rows=1, no_call=0.0))[0]
    (call,) = row["calls"]

    def problems(**change: Any) -> list[str]:
        broken = json.loads(json.dumps(row))
        broken["messages"][1]["tool_calls"][0]["function"].update(change)
        return tool_problems(read_tools(broken))

    assert problems() == []
    name = call["name"]
    assert f"did you mean {name!r}" in problems(name=f"{name}s")[0]
    assert "is not of type" in problems(arguments={**call["arguments"], "amount": "many"})[0]
    assert "is a required property" in problems(arguments={})[0]
    assert "arguments are no object" in problems(arguments=[1])[0]
    twice = {**row, "tools": [row["tools"][0], row["tools"][0]]}
    assert any("is there twice" in problem for problem in tool_problems(read_tools(twice)))
    wrong = {**row, "tools": [{"type": "function", "function": {"name": "a b", "parameters": {"type": "thing"}}}]}
    found = tool_problems(read_tools(wrong))
    assert any("no name of a function" in problem for problem in found)
    assert any("no JSON schema" in problem for problem in found)
    more = {**row, "messages": [*row["messages"], {"role": "user", "content": "Go on"}]}
    assert tool_problems(read_tools(more)) == ["1 calls have no result although the conversation goes on"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[]", "a list of JSON schemas"),
        ("{}", "a list of JSON schemas"),
        ("[{description: x}]", "a tool has a name"),
        ("[{name: a}, {name: a}]", "same name"),
        ("[{name: a, requests: x}]", "a list of texts"),
        ("[", "line 1"),
    ],
)
def test_files_that_hold_no_tools(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "tools.yaml").write_text(text)
    with pytest.raises(ConfigError, match=part):
        read_tool_file(tmp_path / "tools.yaml")


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made, converted there and back, checked; the rows are a task as they are."""
    made, hermes, back = (str(tmp_path / name) for name in ("made.jsonl", "hermes.jsonl", "back.jsonl"))
    assert main(["data", "tools", "make", str(TOOLS), "--rows", "6", "--out", made, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 6
    assert load_task(made).config.kind == "tools"
    assert main(["data", "tools", "convert", made, hermes, "--to", "hermes"]) == 0
    assert main(["data", "tools", "convert", hermes, back, "--to", "openai"]) == 0
    rows = [[json.loads(line) for line in Path(name).read_text().splitlines()] for name in (made, back)]
    assert [read_tools(row) for row in rows[0]] == [read_tools(row) for row in rows[1]]
    assert main(["data", "tools", "check", hermes]) == 0
    assert main(["data", "tools", "convert", made, hermes, "--to", "xml"]) == 2
    capsys.readouterr()
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": [{"role": "tool", "content": "x"}]}))
    assert main(["data", "tools", "check", str(tmp_path / "bad.jsonl"), "--json"]) == 1
    assert "no call that waits" in json.loads(capsys.readouterr().out)["problems"][0]
    assert main(["data", "tools", "convert", str(tmp_path / "bad.jsonl"), back, "--to", "hermes"]) == 1
    assert (
        main(["data", "tools", "convert", str(tmp_path / "bad.jsonl"), back, "--to", "hermes", "--invalid", "drop"])
        == 0
    )
