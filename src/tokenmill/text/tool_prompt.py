"""Tools told in words, for models whose chat template has no place for them: Hermes' section of the system message, in
the words that Qwen's templates use, and Llama 3's beginning of the first user message. Both can be read back.

Sources: the chat templates of Qwen 2.5 and Llama 3.1, the data set hermes-function-calling-v1 (another wording of the
same section, which is read and not written).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Tools = Sequence[Mapping[str, Any]]

_HERMES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n{}\n</tools>\n\nFor each function call, return a json "
    "object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
_HERMES_SECTION = re.compile(
    r"(?:\A|\n\n)" + re.escape(_HERMES.format("@")).replace("@", r"(.*?)") + r"\s*\Z", re.DOTALL
)
_OTHER_WORDING = re.compile(
    r"\AYou are a function[- ]calling AI model\b.*?<tools>\s*([\[{].*?)\s*</tools>.*</tool_call>\s*", re.DOTALL
)
_LLAMA3 = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"  # without a space, as the template has it
)


def has_place_for_tools(template: str | None) -> bool:
    """Whether a chat template (Jinja or Go) writes tools and calls; others leave them out without a word."""
    return template is not None and ("tools" in template.lower() or "tool_calls" in template)


def with_hermes_tools(system: str, tools: Tools) -> str:
    """A system message that tells of tools behind what it says."""
    section = _HERMES.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    return f"{system}\n\n{section}" if system else section


def split_hermes_tools(system: str) -> tuple[str, list[Any]] | None:
    """What a system message says besides its tools, and the tools; None if it tells of none in a known wording."""
    if found := _HERMES_SECTION.search(system):
        tools, rest = _values(found[1]), system[: found.start()]
    elif found := _OTHER_WORDING.search(system):
        tools, rest = _values(found[1]), system[found.end() :]
    else:
        return None
    return None if tools is None else (rest, tools)


def with_llama3_tools(user: str, tools: Tools) -> str:
    """A first user message with tools before what it says."""
    return _LLAMA3 + "".join(json.dumps(tool, indent=4, ensure_ascii=False) + "\n\n" for tool in tools) + user


def split_llama3_tools(user: str) -> tuple[str, list[Any]] | None:
    """What a user message says besides its tools, and the tools; None if it does not begin with them."""
    if not user.startswith(_LLAMA3):
        return None
    decoder, place, tools = json.JSONDecoder(), len(_LLAMA3), []
    while user.startswith("{", place):
        try:
            tool, end = decoder.raw_decode(user, place)
        except (ValueError, RecursionError):
            break
        if not user.startswith("\n\n", end):
            break
        tools.append(tool)
        place = end + 2
    return (user[place:], tools) if tools else None


def tell_tools(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[Mapping[str, Any]]:
    """A conversation whose system message tells of the tools, Hermes' way."""
    system, rest = "", list(messages)
    if rest and rest[0].get("role") == "system":
        system, rest = str(rest[0]["content"]), rest[1:]
    return [{"role": "system", "content": with_hermes_tools(system, tools)}, *rest]


def _values(text: str) -> list[Any] | None:
    """JSON values one after the other, or one list of them; None if it is something else."""
    decoder, place, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        found += value if isinstance(value, list) else [value]
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
    return found
