"""What is wrong with a conversation with tools: tools that are none, calls that no tool on offer takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.data.formats import Chat
from tokenmill.text.json_schema import Schema

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")


def tool_problems(chat: Chat) -> list[str]:
    """Each problem with its place; empty where every call has a tool on offer, with arguments that fit its schema.

    ``chat`` is one that :func:`tokenmill.data.tool_formats.read_tools` gave: calls and results match already.
    """
    schemas, problems = _schemas(chat.tools or ())
    for number, message in enumerate(chat.messages):
        for place, call in enumerate(message.get("tool_calls", ())):
            where = f"messages[{number}].tool_calls[{place}]"
            problems += [f"{where}: {one}" for one in call_problems(call["function"], schemas)]
    waiting = {call["id"] for message in chat.messages for call in message.get("tool_calls", ())}
    waiting -= {message.get("tool_call_id") for message in chat.messages}
    if waiting and not chat.messages[-1].get("tool_calls"):
        problems.append(f"{len(waiting)} calls have no result although the conversation goes on")
    return problems


def call_problems(function: Mapping[str, Any], schemas: Mapping[str, Schema]) -> Iterator[str]:
    """What is wrong with one call ``{name, arguments}``."""
    name, arguments = function["name"], function["arguments"]
    if name not in schemas:
        yield f"there is no tool {name!r}{did_you_mean(name, schemas)}"
    elif not isinstance(arguments, Mapping):
        yield "arguments are no object"
    else:
        yield from (f"arguments of {name}: {problem}" for problem in schemas[name].problems(arguments))


def _schemas(tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Schema], list[str]]:
    schemas: dict[str, Schema] = {}
    problems: list[str] = []
    for number, tool in enumerate(tools):
        name = tool["function"]["name"]
        if not _NAME.fullmatch(name):
            problems.append(f"tools[{number}]: {name!r} is no name of a function")
        if name in schemas:
            problems.append(f"tools[{number}]: {name!r} is there twice")
        try:
            schemas[name] = Schema(tool["function"].get("parameters") or {})
        except ConfigError as error:
            problems.append(f"tools[{number}]: parameters: {error}")
    return schemas, problems
