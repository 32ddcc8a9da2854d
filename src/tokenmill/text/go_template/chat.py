"""Conversations through a Go template, as Ollama's server does it.

A template that mentions ``.Messages`` gets the whole list at once. An older one (``.System``, ``.Prompt``,
``.Response``) is applied round by round, and in the last round everything after ``.Response`` is cut away, because
generation continues there. Where Ollama would silently drop something (tools or tool results that an old template has
no place for), this refuses. Tools and tool calls are laid out as Ollama lays them out, so that the prompt is the same
byte for byte; what its structures do not hold (``minimum``, ``additionalProperties`` …) is kept behind the known keys.
Source: Execute, collate and convertToolsForTemplate in Ollama's template/template.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.core.errors import TemplateError, did_you_mean
from tokenmill.text.go_template.values import JsonList, JsonMap, OrderedFields, Record, plain

_MESSAGE_KEYS = {
    "role": "Role",
    "content": "Content",
    "thinking": "Thinking",
    "reasoning_content": "Thinking",
    "tool_name": "ToolName",
    "name": "ToolName",
    "tool_call_id": "ToolCallID",
}


def collate(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Record]]:
    """All system texts joined, and the messages with neighbours of the same role (tool results excepted) merged."""
    system: list[str] = []
    collated: list[Record] = []
    for index, message in enumerate(messages):
        record = _message(message, index)
        if record.fields["Role"] == "system":
            system.append(record.fields["Content"])
        former = collated[-1].fields if collated else None
        if former is None or former["Role"] != record.fields["Role"] or former["Role"] == "tool":
            collated.append(record)
            continue
        for name in ("Content", "Thinking"):
            former[name] = "\n\n".join(text for text in (former[name], record.fields[name]) if text)
        former["ToolCalls"] = former["ToolCalls"] + record.fields["ToolCalls"]
    return "\n\n".join(system), collated


def _message(message: Mapping[str, Any], index: int) -> Record:
    what = f"message {index}"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TemplateError(f"{what}: an object with a role is needed, got {str(message)[:60]!r}")
    fields: dict[str, Any] = dict.fromkeys(("Role", "Content", "Thinking", "ToolName", "ToolCallID"), "")
    fields |= {"Images": [], "ToolCalls": []}
    for key, value in message.items():
        if key == "tool_calls":
            fields["ToolCalls"] = _tool_calls(value, what)
        elif key in _MESSAGE_KEYS:
            if value is not None and not (key == "content" and isinstance(value, list)) and not isinstance(value, str):
                raise TemplateError(f"{what}: {key} must be a text, got {type(value).__name__}")
            fields[_MESSAGE_KEYS[key]] = _text(plain(value, what), what) or fields[_MESSAGE_KEYS[key]]
        elif value:
            hint = did_you_mean(str(key), [*_MESSAGE_KEYS, "tool_calls"])
            raise TemplateError(f"{what}: this template engine has no place for {str(key)!r}{hint}")
    fields["Role"] = fields["Role"].lower()
    return Record("Message", fields)


def _text(content: Any, what: str) -> str:
    """A text, nothing, or OpenAI's list of parts as far as those are texts."""
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"{what}: content may hold text parts only, found {kind!r}")
    return "".join(part["text"] for part in content)


def _tool_calls(calls: Any, what: str) -> list[Record]:
    if not isinstance(calls, list | tuple | None):
        raise TemplateError(f"{what}: tool_calls must be a list")
    return [_tool_call(call, index, what) for index, call in enumerate(calls or ())]


def _tool_call(call: Any, index: int, what: str) -> Record:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TemplateError(f"{what}: tool call {index} names no function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise TemplateError(f"{what}: the arguments of tool call {index} are not JSON") from None
    arguments = plain(arguments, what)
    if not isinstance(arguments, dict):
        raise TemplateError(f"{what}: the arguments of tool call {index} are not an object")
    place = function.get("index")
    called = {
        "Index": place if isinstance(place, int) else index,
        "Name": plain(function["name"], what),
        "Arguments": JsonMap(arguments),
    }
    identity = call.get("id")
    return Record(
        "ToolCall",
        {
            "ID": plain(identity, what) if isinstance(identity, str) else "",
            "Function": Record("ToolCallFunction", called),
        },
    )


def tools_for_template(tools: Sequence[Mapping[str, Any]]) -> JsonList:
    """OpenAI-style tool definitions as the structures that templates walk."""
    return JsonList(_tool(plain(tool, f"tool {index}"), index) for index, tool in enumerate(tools))


def _ordered(source: Mapping[str, Any], first: Mapping[str, Any], optional: Sequence[str]) -> OrderedFields:
    """`first` in its order, without the `optional` keys that are empty, then whatever else `source` has."""
    known = {key: value for key, value in first.items() if value or key not in optional}
    return OrderedFields(known | {key: value for key, value in source.items() if key not in first})


def _tool(tool: Any, index: int) -> Record:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TemplateError(f'tool {index}: {{"type": "function", "function": {{"name": …}}}} is needed')
    what = f"tool {function['name']!r}"
    parameters = _parameters(_object(function.get("parameters"), what), what)
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise TemplateError(f"{what}: its description must be a text")
    named = {"name": function["name"], "description": description, "parameters": parameters.as_json}
    inner = _ordered(function, named, ())
    kind = tool.get("type") or "function"
    outer = _ordered(tool, {"type": kind, "items": tool.get("items"), "function": inner}, ("items",))
    fields = {"Name": function["name"], "Description": description, "Parameters": parameters}
    return Record(
        "Tool",
        {"Type": kind, "Items": tool.get("items"), "Function": Record("ToolFunction", fields, inner)},
        outer,
    )


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TemplateError(f"{what}: an object of JSON Schema is needed, got {type(value).__name__}")
    return value


def _parameters(schema: dict[str, Any], what: str) -> Record:
    given = _object(schema.get("properties"), what)
    # Ollama keeps the parameters themselves in a Go map, so templates and JSON see them sorted
    properties = {name: _property(_object(given[name], what), what) for name in sorted(given)}
    fields = {
        "Type": schema.get("type") or "object",
        "Defs": schema.get("$defs"),
        "Items": schema.get("items"),
        "Required": schema.get("required") or [],
        "Properties": JsonMap(properties),
    }
    names = ("type", "$defs", "items", "required", "properties")
    first = dict(zip(names, fields.values(), strict=True)) | {"properties": _as_json(properties)}
    return Record("ToolParameters", fields, _ordered(schema, first, ("$defs", "items", "required")))


def _as_json(properties: Mapping[str, Record]) -> OrderedFields:
    return OrderedFields({name: record.as_json for name, record in properties.items()})


def _property(schema: dict[str, Any], what: str) -> Record:
    choices = schema.get("anyOf") or []
    if not isinstance(choices, list):
        raise TemplateError(f"{what}: anyOf must be a list")
    kind = schema.get("type") or []
    nested = {
        name: _property(_object(value, what), what) for name, value in _object(schema.get("properties"), what).items()
    }
    fields: dict[str, Any] = {
        "AnyOf": [_property(_object(choice, what), what) for choice in choices],
        "Type": kind[0] if isinstance(kind, list) and len(kind) == 1 else kind or "",
        "Items": schema.get("items"),
        "Description": schema.get("description") or "",
        "Enum": schema.get("enum") or [],
        "Properties": JsonMap(nested),
        "Required": schema.get("required") or [],
    }
    names = ("anyOf", "type", "items", "description", "enum", "properties", "required")
    first = dict(zip(names, fields.values(), strict=True)) | {
        "anyOf": [choice.as_json for choice in fields["AnyOf"]],
        "properties": _as_json(nested),
    }
    return Record("ToolProperty", fields, _ordered(schema, first, names))
