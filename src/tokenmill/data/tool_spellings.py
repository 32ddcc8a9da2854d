"""How each spelling of tool calls is read and written, for :mod:`tokenmill.data.tool_formats`, which checks what comes
of it. Messages in between are OpenAI's, with arguments as mappings; calls may lack ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tokenmill.data.formats import Message, RowError, parse_message, parse_tools
from tokenmill.text.tool_calls import MARKS, ToolCall, ToolCallParser
from tokenmill.text.tool_prompt import (
    split_hermes_tools,
    split_llama3_tools,
    with_hermes_tools,
    with_llama3_tools,
)

Tools = Sequence[Mapping[str, Any]]
Reader = Callable[[Mapping[str, Any]], tuple[list[Message], Tools | None]]
Writer = Callable[[Sequence[Message], Tools], dict[str, Any]]
_RESPONSE = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)


def _text(content: Any, where: str) -> str:
    """A text, or parts that are all text."""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(part, str) for part in parts):
            return "\n".join(map(str, parts))
    if not isinstance(content, str):
        raise RowError(f"{where}.content: only text can be converted")
    return content


def _call(call: ToolCall, call_id: str | None = None) -> dict[str, Any]:
    made = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return made if call_id is None else {"id": call_id, **made}


# --- OpenAI


def _read_openai(row: Mapping[str, Any]) -> tuple[list[Message], Any]:
    messages = []
    for number, given in enumerate(row["messages"]):
        message = parse_message(given, f"messages[{number}]")
        messages.append({**message, "content": _text(message["content"], f"messages[{number}]")})
    return messages, parse_tools(row.get("tools"))


def _write_openai(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    written = []
    for message in messages:
        if calls := message.get("tool_calls"):
            spelled = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in calls
            ]
            message = {**message, "content": message["content"] or None, "tool_calls": spelled}
        written.append(message)
    return {"messages": written} | ({"tools": list(tools)} if tools else {})


# --- Anthropic


def _read_anthropic(row: Mapping[str, Any]) -> tuple[list[Message], Any]:
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row["system"], "system")})
    for number, given in enumerate(row["messages"]):
        where, content = f"messages[{number}]", given.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if given["role"] not in ("user", "assistant") or not isinstance(blocks, list):
            raise RowError(f"{where} must be the user's or the assistant's, with text or blocks as content")
        read = _user_blocks if given["role"] == "user" else _assistant_blocks
        messages += read(blocks, where)
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) and "name" in tool for tool in tools):
        raise RowError("tools must be a list of {name, description, input_schema}")
    functions = [{("parameters" if key == "input_schema" else key): tool[key] for key in tool} for tool in tools]
    return messages, parse_tools(functions)


def _user_blocks(blocks: list[Any], where: str) -> list[Message]:
    messages: list[Message] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            result = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
            error = {"is_error": True} if block.get("is_error") else {}
            messages.append({**result, "content": _text(block.get("content", ""), where), **error})
        elif kind == "text" and messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += f"\n{block['text']}"
        elif kind == "text":
            messages.append({"role": "user", "content": block["text"]})
        else:
            raise RowError(f"{where}: a block of type {kind!r} of the user cannot be converted")
    return messages


def _assistant_blocks(blocks: list[Any], where: str) -> list[Message]:
    text = ""
    calls: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and not calls:
            text += block["text"]
        elif kind == "tool_use" and isinstance(block.get("name"), str) and isinstance(block.get("input"), Mapping):
            calls.append(_call(ToolCall(block["name"], dict(block["input"])), block.get("id")))
        else:
            behind = " behind a call" if kind == "text" else ""
            raise RowError(f"{where}: a block of type {kind!r}{behind} of the assistant cannot be converted")
    return [{"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})]


def _write_anthropic(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    written: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for message in messages[system is not None :]:
        if message["role"] == "tool":
            error = {"is_error": True} if message.get("is_error") else {}
            block = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
                **error,
            }
            if not results:
                written.append({"role": "user", "content": results})
            results.append(block)
            continue
        if results and message["role"] == "user":  # turns alternate: what the user says goes with the results
            results.append({"type": "text", "text": message["content"]})
            results = []
            continue
        results = []
        calls = [
            {
                "type": "tool_use",
                "id": call["id"],
                "name": call["function"]["name"],
                "input": call["function"]["arguments"],
            }
            for call in message.get("tool_calls", ())
        ]
        said = [{"type": "text", "text": message["content"]}] if message["content"] else []
        written.append({"role": message["role"], "content": [*said, *calls] if calls else message["content"]})
    functions = [tool["function"] for tool in tools]
    spelled = [{("input_schema" if key == "parameters" else key): one[key] for key in one} for one in functions]
    row: dict[str, Any] = {} if system is None else {"system": system}
    return row | {"messages": written} | ({"tools": spelled} if spelled else {})


# --- Hermes and Llama 3: calls are text


def _read_hermes(row: Mapping[str, Any]) -> tuple[list[Message], Any]:
    messages: list[Message] = []
    tools = list(parse_tools(row.get("tools")) or ())
    for number, given in enumerate(row["messages"]):
        role, text = given["role"], _text(given.get("content"), f"messages[{number}]")
        if role == "system" and (found := split_hermes_tools(text)) is not None:
            text = found[0]
            tools += parse_tools(found[1]) or ()
            if not text:
                continue
        elif role == "system" and "<tools>" in text:
            raise RowError(f"messages[{number}]: tells of tools in words that are not known here")
        elif role in ("user", "tool") and (results := _responses(text)) is not None:
            messages += [{"role": "tool", "content": result} for result in results]
            continue
        messages.append(_said("hermes", text, tools) if role == "assistant" else {"role": role, "content": text})
    return messages, tools or None


def _write_hermes(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    written: list[dict[str, Any]] = []
    if tools or system is not None:
        told = with_hermes_tools(system or "", tools) if tools else system
        written.append({"role": "system", "content": told})
    behind_result = False
    for message in messages[system is not None :]:
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if behind_result:
                written[-1]["content"] += f"\n{result}"
            else:
                written.append({"role": "tool", "content": result})
        else:
            calls = [
                f"{MARKS['hermes']}\n{_json(_function(c, 'arguments'))}\n</tool_call>"
                for c in message.get("tool_calls", ())
            ]
            said = [message["content"]] if message["content"] or not calls else []
            written.append({"role": message["role"], "content": "\n".join([*said, *calls])})
        behind_result = message["role"] == "tool"
    return {"messages": written}


def _read_llama3(row: Mapping[str, Any]) -> tuple[list[Message], Any]:
    messages: list[Message] = []
    tools = list(parse_tools(row.get("tools")) or ())
    for number, given in enumerate(row["messages"]):
        role, text = given["role"], _text(given.get("content"), f"messages[{number}]")
        if role == "user" and not tools and (found := split_llama3_tools(text)) is not None:
            text = found[0]
            tools += parse_tools(found[1]) or ()
        if role in ("ipython", "tool"):
            messages.append({"role": "tool", "content": text})
        else:
            messages.append(_said("llama3", text, tools) if role == "assistant" else {"role": role, "content": text})
    return messages, tools or None


def _write_llama3(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    written: list[dict[str, Any]] = []
    told = not tools
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "user" and not told:
            text, told = with_llama3_tools(text, tools), True
        if calls := message.get("tool_calls"):
            text += "; ".join(_json(_function(call, "parameters")) for call in calls)
        written.append({"role": "ipython" if role == "tool" else role, "content": text})
    return {"messages": written}


def _said(spelling: Literal["hermes", "llama3"], text: str, tools: Sequence[Mapping[str, Any]]) -> Message:
    """The assistant's words and calls in a text."""
    parser = ToolCallParser((spelling,), tools)
    events = [*parser.push(text), *parser.flush()]
    calls = [event for event in events if isinstance(event, ToolCall)]
    if not calls:
        return {"role": "assistant", "content": text}
    first = events.index(calls[0])
    if any(isinstance(event, str) and event.strip() for event in events[first:]):
        raise RowError("the assistant says something behind a call, which no other spelling can hold")
    words = "".join(event for event in events[:first] if isinstance(event, str))
    return {"role": "assistant", "content": words, "tool_calls": [_call(call) for call in calls]}


def _responses(text: str) -> list[str] | None:
    """The results in a message that is nothing but results."""
    found, place = [], 0
    while place < len(text):
        match = _RESPONSE.match(text, place)
        if match is None:
            return None
        found.append(match[1])
        place = match.end()
    return found or None


def _function(call: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"name": call["function"]["name"], key: call["function"]["arguments"]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


READERS: dict[str, Reader] = {
    "openai": _read_openai,
    "anthropic": _read_anthropic,
    "hermes": _read_hermes,
    "llama3": _read_llama3,
}
WRITERS: dict[str, Writer] = {
    "openai": _write_openai,
    "anthropic": _write_anthropic,
    "hermes": _write_hermes,
    "llama3": _write_llama3,
}
