"""A function as a model is told of it: JSON schema from its signature, words from its docstring.

The form is OpenAI's, the docstring Google's (``Args:``), as transformers' ``get_json_schema`` reads it; the same schema
comes out (``tests/unit/test_tools.py``), but for a parameter that may be None, whose type says so in JSON schema's own
way, and for what a function returns, which no template prints. Standard library alone: it runs in the tools' process.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}
_SECTION = re.compile(r"\n\s*(Args|Arguments|Returns?|Yields|Raises|Examples?|Notes?)\s*:\s*(?:\n|$)")
_PARAMETER = re.compile(r"^(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(\[.*?\])\)\s*$", re.DOTALL | re.IGNORECASE)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises:
        TypeError: no docstring, a parameter without a type or of one that JSON has not, ``*args``.
    """
    name = function.__name__
    words, described = _docstring(inspect.getdoc(function) or "")
    if not words:
        raise TypeError(f"{name} has no docstring: the model would not know what it is for")
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{name}: {parameter} cannot be given by name, as models give arguments")
        if parameter.name not in hints:
            raise TypeError(f"{name}: parameter {parameter.name} has no type")
        schema = _schema(hints[parameter.name], f"{name}: parameter {parameter.name}")
        if text := described.get(parameter.name):
            if choices := _CHOICES.search(text):
                schema["enum"], text = json.loads(choices[1]), text[: choices.start()].strip()
            schema["description"] = text
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    return {"type": "function", "function": {"name": name, "description": words, "parameters": parameters}}


def _schema(kind: Any, where: str) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if origin is Literal:
        kinds = list(dict.fromkeys(_TYPES[type(value)] for value in arguments))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        parts = [_schema(part, where) for part in arguments]
        if all(part.keys() == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    if origin is dict and arguments[0] is str:
        values = _schema(arguments[1], where)
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    raise TypeError(f"{where} has type {kind}; JSON has str, int, float, bool, None, list, dict, Literal and unions")


def _docstring(text: str) -> tuple[str, Mapping[str, str]]:
    """What stands before the first section, and the parameters' descriptions."""
    parts = _SECTION.split(f"\n{text}\n")
    described: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title.startswith("Arg"):
            described |= _parameters(inspect.cleandoc(f"\n{body}"))
    return parts[0].strip(), described


def _parameters(body: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in body.splitlines():
        match = _PARAMETER.match(line)  # a description goes on in lines that are set in
        if match:
            name = match[1]
            found[name] = match[2].strip()
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
