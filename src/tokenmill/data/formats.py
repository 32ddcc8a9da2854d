"""What a row means: plain text, a prompt with its completion, or a conversation with tools.

Recognised by keys, the most telling first: ``messages``; ``conversations`` (ShareGPT); ``chosen`` and ``rejected``
(preferences); ``instruction`` (Alpaca); ``prompt`` with ``completion``; ``text``. Rows that compare answers are known
and refused here: ``preferences.py`` reads them, for the objectives that can use them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.config.parts import Format

Message = dict[str, Any]

_SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
    "developer": "developer",
}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class RowError(ValueError):
    """A row is not what its keys promise; the text says what is wrong."""


class PreferenceError(RowError):
    """Rows of a kind that the objective cannot use at all: one of them is enough to stop."""


@dataclass(frozen=True)
class Text:
    """A document of which everything is learned."""

    text: str


@dataclass(frozen=True)
class Completion:
    """A prompt that is read and a completion that is learned, both as they stand."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation in OpenAI's shape."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    context: int = 0
    """Messages that are only read, whoever says them: the prompt of an answer that is compared."""


Document = Text | Completion | Chat


def parse_row(row: Mapping[str, Any], *, format: Format = "auto", text_field: str = "text") -> Document:
    """The document in a row; RowError says what is wrong with it."""
    kind = recognise(row, text_field) if format == "auto" else format
    if kind == "messages":
        return _messages(row)
    if kind == "sharegpt":
        return _sharegpt(row)
    if kind == "alpaca":
        return _alpaca(row)
    if kind == "completion":
        return _completion(row)
    return Text(_text(row, text_field))


def recognise(row: Mapping[str, Any], text_field: str = "text") -> Format:
    """What a row is by its keys."""
    if "chosen" in row and "rejected" in row:
        raise PreferenceError(
            "a preference pair (chosen, rejected): these train the preference recipes (dpo, orpo, reward …), not this "
            "one; keep the chosen side alone to learn from it"
        )
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        if "label" in row:
            raise PreferenceError(
                "a labelled completion (prompt, completion, label): these train a preference recipe, kto, not this "
                "one; keep the rows with a true label, without it, to learn from them"
            )
        return "completion"
    if text_field in row:
        return "text"
    raise RowError(
        f"keys {', '.join(map(str, row)) or '(none)'} say nothing; a row has text, prompt and completion, messages, "
        "instruction and output, or conversations (data.text_field names another key for text)"
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise RowError(f"{key} is missing")
    if not isinstance(row[key], str):
        raise RowError(f"{key} must be text, not {type(row[key]).__name__}")
    return row[key]


def _completion(row: Mapping[str, Any]) -> Document:
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):  # TRL's conversational kind
        return _messages({"messages": [*row["prompt"], *row["completion"]], "tools": row.get("tools")})
    return Completion(_text(row, "prompt"), _text(row, "completion"))


def _alpaca(row: Mapping[str, Any]) -> Chat:
    extra = row.get("input") or ""
    if not isinstance(extra, str):
        raise RowError(f"input must be text, not {type(extra).__name__}")
    question = _text(row, "instruction") + (f"\n\n{extra}" if extra else "")
    messages: list[Message] = [{"role": "user", "content": question}]
    if isinstance(row.get("system"), str) and row["system"]:
        messages.insert(0, {"role": "system", "content": row["system"]})
    return Chat([*messages, {"role": "assistant", "content": _text(row, "output")}])


def _sharegpt(row: Mapping[str, Any]) -> Chat:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError("conversations must be a list of {from, value}, and not empty")
    messages: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for number, turn in enumerate(turns):
        where = f"conversations[{number}]"
        if not isinstance(turn, Mapping):
            raise RowError(f"{where} must be an object")
        if "role" in turn and "from" not in turn:
            messages.append(parse_message(turn, where))
            continue
        speaker = turn.get("from")
        if speaker not in _SPEAKERS:
            raise RowError(f"{where}.from: {speaker!r} is not one of {', '.join(_SPEAKERS)}")
        if not isinstance(turn.get("value"), str):
            raise RowError(f"{where}.value must be text")
        message: Message = {"role": _SPEAKERS[speaker], "content": turn["value"]}
        if speaker in ("function_call", "tool_call"):
            message = {"role": "assistant", "content": "", "tool_calls": [_call(turn["value"], f"{where}.value")]}
        messages.append(message)
    return Chat(messages, parse_tools(row.get("tools")))


def _messages(row: Mapping[str, Any]) -> Chat:
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise RowError("messages must be a list of messages, and not empty")
    return Chat([parse_message(one, f"messages[{i}]") for i, one in enumerate(given)], parse_tools(row.get("tools")))


def parse_message(given: Any, where: str) -> Message:
    """A message of OpenAI's shape, with tool calls as templates want them; RowError says what is wrong with it."""
    if not isinstance(given, Mapping):
        raise RowError(f"{where} must be an object with role and content")
    role, content = given.get("role"), given.get("content")
    if role not in _ROLES:
        raise RowError(f"{where}.role: {role!r} is not one of {', '.join(_ROLES)}")
    if not isinstance(content, str | list) and not (content is None and given.get("tool_calls")):
        raise RowError(f"{where}.content must be text or a list of parts, not {type(content).__name__}")
    message = {key: value for key, value in given.items() if value is not None}
    if "tool_calls" in message:
        if not isinstance(message["tool_calls"], list):
            raise RowError(f"{where}.tool_calls must be a list")
        message["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message["tool_calls"])
        ]
        message.setdefault("content", "")
    return message


def _call(given: Any, where: str) -> dict[str, Any]:
    """A tool call with its arguments as a mapping, which is what templates print; OpenAI writes them as text."""
    if isinstance(given, str):
        given = _json(given, where)
    if not isinstance(given, Mapping):
        raise RowError(f"{where} must be a tool call")
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{where}: a tool call has a function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{where}.arguments")
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return call | ({"id": given["id"]} if "id" in given else {})


def parse_tools(given: Any) -> Sequence[Mapping[str, Any]] | None:
    """The functions that a conversation may call; None without any."""
    if isinstance(given, str) and given.strip():
        given = _json(given, "tools")
    if not given:
        return None
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise RowError("tools must be a list of JSON schemas of functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in given]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} is not JSON: {error}") from error
