"""Conversations with tool calls made from tool schemas: a request, the tools on offer, and the calls that answer it.

Arguments are drawn from the schemas. The request is a template of the tool's (``requests``: texts with ``{argument}``)
or a plain sentence that names every argument; a model may put it in its own words (:func:`reworded`), which counts only
if every value still stands in it. Rows train (``messages``, ``tools``) and measure (``prompt``, ``tools``, ``calls``:
the task kind ``tools`` of ``eval tasks``). Some rows ask for nothing that a tool does: there the right answer has no
call.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.core.endpoint import Answer
from tokenmill.core.errors import ConfigError, MissingFileError
from tokenmill.data.formats import RowError, parse_tools
from tokenmill.data.tool_values import draw_arguments

Row = dict[str, Any]
Ask = Callable[[Sequence[Mapping[str, Any]]], list[Answer]]
SMALL_TALK = (
    ("Thank you, that was all.", "You're welcome!"),
    ("Hello!", "Hello! What can I do for you?"),
    ("Who are you?", "I am an assistant. I can answer questions and use tools."),
    ("What is two plus two?", "Two plus two is four."),
    ("Write a line about the sea.", "The sea keeps what the rivers bring."),
    ("Say good night.", "Good night!"),
    ("What colour is the sky?", "By day and without clouds the sky is blue."),
    ("Do you like music?", "I do not hear it, but I like to talk about it."),
)
"""Requests that no tool is needed for, with answers."""
_REWORD = (
    "A user talks to an assistant that can call functions. Write the user's message, in one or two natural sentences, "
    "after which the assistant makes exactly this call. Every argument's value must stand in the message as it is "
    "written here. Write nothing but the message.\n\nFunction: {name}: {description}\nArguments: {arguments}"
)


@dataclass(frozen=True)
class ToolSource:
    """A tool, and how people ask for it."""

    tool: Mapping[str, Any]
    """In OpenAI's shape."""
    requests: list[str] = field(default_factory=list)

    @property
    def function(self) -> Mapping[str, Any]:
        """Name, description, parameters."""
        function: Mapping[str, Any] = self.tool["function"]
        return function


@dataclass(frozen=True)
class MakeOptions:
    """How many rows, and what they are like."""

    rows: int = 100
    seed: int = 0
    offered: int = 4
    """Tools on offer in a row at most, the right one among them."""
    parallel: float = 0.0
    """Share of rows that ask for two things at once."""
    no_call: float = 0.1
    """Share of rows that no tool is needed for."""


def read_tool_file(path: Path) -> list[ToolSource]:
    """The tools of a JSON or YAML file: a list in OpenAI's, Anthropic's or the bare function's shape, each with
    ``requests`` beside if it has any. ConfigError says what is wrong."""
    import yaml

    if not path.is_file():
        raise MissingFileError(f"there is no file of tools at {path}")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(given, list) or not given or not all(isinstance(tool, dict) for tool in given):
            raise RowError("a file of tools is a list of JSON schemas of functions")
        found = [_source(dict(tool)) for tool in given]
    except (yaml.YAMLError, RowError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    names = [one.function["name"] for one in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two tools have the same name")
    return found


def _source(tool: dict[str, Any]) -> ToolSource:
    requests = tool.pop("requests", [])
    if not isinstance(requests, list) or not all(isinstance(one, str) and one for one in requests):
        raise RowError("requests is a list of texts")
    if "input_schema" in tool:
        tool["parameters"] = tool.pop("input_schema")
    (parsed,) = parse_tools([tool]) or ()
    if not isinstance(parsed["function"], Mapping) or not isinstance(parsed["function"].get("name"), str):
        raise RowError("a tool has a name")
    return ToolSource(parsed, requests)


def make_rows(tools: Sequence[ToolSource], options: MakeOptions) -> list[Row]:
    """Rows by the seed. Each has a seed of its own, so that more rows leave the first ones as they are."""
    return [_row(tools, options, number) for number in range(options.rows)]


def _row(tools: Sequence[ToolSource], options: MakeOptions, number: int) -> Row:
    draw = random.Random(f"{options.seed} {number}")
    chosen: list[ToolSource]
    calls: list[Row]
    if draw.random() < options.no_call:
        prompt, said = draw.choice(SMALL_TALK)
        chosen, calls = [], []
        answer: Row = {"role": "assistant", "content": said}
    else:
        count = 2 if draw.random() < options.parallel else 1
        chosen = [draw.choice(tools) for _ in range(count)]
        drawn = [draw_arguments(one.function.get("parameters") or {"type": "object"}, draw) for one in chosen]
        calls = [
            {"name": one.function["name"], "arguments": arguments} for one, arguments in zip(chosen, drawn, strict=True)
        ]
        prompt = " ".join(request_for(one, arguments, draw) for one, arguments in zip(chosen, drawn, strict=True))
        answer = {"role": "assistant", "content": "", "tool_calls": [_call(call, n) for n, call in enumerate(calls)]}
    offered = _offered(tools, chosen, options.offered, draw)
    messages = [{"role": "user", "content": prompt}, answer]
    return {"id": f"{options.seed}-{number}", "messages": messages, "tools": offered, "prompt": prompt, "calls": calls}


def _offered(
    tools: Sequence[ToolSource], chosen: Sequence[ToolSource], most: int, draw: random.Random
) -> list[Mapping[str, Any]]:
    needed = list({one.function["name"]: one for one in chosen}.values())
    others = [one for one in tools if one not in needed]
    more = draw.randint(0 if needed else 1, max(0 if needed else 1, min(most - len(needed), len(others))))
    offered = needed + draw.sample(others, min(more, len(others)))
    draw.shuffle(offered)
    return [one.tool for one in offered]


def _call(call: Row, number: int) -> Row:
    return {"id": f"call_{number}", "type": "function", "function": call}


def request_for(source: ToolSource, arguments: Mapping[str, Any], draw: random.Random) -> str:
    """What a user may say for this call: a template all of whose arguments are there, and all arguments in it."""
    shown = {name: _shown(value) for name, value in arguments.items()}
    fitting = [text for text in source.requests if _names(text) == set(shown)]
    if fitting:
        text = draw.choice(fitting)
        for name, value in shown.items():
            text = text.replace(f"{{{name}}}", value)
        return text
    about = str(source.function.get("description") or source.function["name"].replace("_", " ")).strip().rstrip(".")
    listed = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in shown.items())
    return f"{about}; {listed}." if listed else f"{about}, please."


def _names(template: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", template))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def reworded(rows: Sequence[Row], tools: Sequence[ToolSource], model: str, ask: Ask, seed: int = 0) -> list[Row]:
    """The rows with requests in a model's words. A row whose request lost a value, or that the model did not finish,
    stays as it was; so do rows without a call or with two."""
    about = {one.function["name"]: one.function for one in tools}
    places = [place for place, row in enumerate(rows) if len(row["calls"]) == 1]
    answers = ask([_question(rows[place]["calls"][0], about, model, seed) for place in places])
    made = list(rows)
    for place, answer in zip(places, answers, strict=True):
        text = answer.text.strip().strip('"')
        if answer.finish_reason == "stop" and holds_values(text, rows[place]["calls"][0]["arguments"]):
            turn = {"role": "user", "content": text}
            made[place] = {**rows[place], "messages": [turn, *rows[place]["messages"][1:]], "prompt": text}
    return made


def holds_values(text: str, arguments: Any) -> bool:
    """Whether every text and number of the arguments stands in the text."""
    if isinstance(arguments, Mapping):
        return all(holds_values(text, value) for value in arguments.values())
    if isinstance(arguments, list):
        return all(holds_values(text, value) for value in arguments)
    return isinstance(arguments, bool) or arguments is None or _shown(arguments).lower() in text.lower()


def _question(call: Row, about: Mapping[str, Mapping[str, Any]], model: str, seed: int) -> Row:
    function = about[call["name"]]
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    asked = _REWORD.format(name=call["name"], description=function.get("description", ""), arguments=arguments)
    messages = [{"role": "user", "content": asked}]
    return {"model": model, "messages": messages, "temperature": 0.8, "top_p": 0.95, "max_tokens": 96, "seed": seed}
