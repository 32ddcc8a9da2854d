"""A request's system text, messages and tools as chat templates know them.

Claude Code begins its system text with a line ``x-anthropic-billing-header: …`` that differs from request to request.
It says nothing to a model, and would keep every later token out of the prefix cache, so it is left out.
"""

from __future__ import annotations

import re
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.llm import LLM
from tokenmill.serve.anthropic import fields
from tokenmill.serve.prompting import Thinking, capabilities, chat_ids, template_of
from tokenmill.serve.tools import ToolUse, tool_use

_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n*", re.IGNORECASE)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def tools_of(llm: LLM, body: fields.Count) -> ToolUse:
    """The tools, and what the choice among them holds the answer to."""
    choice = body.tool_choice or fields.ToolChoice(type="auto")
    if (choice.type == "tool") != (choice.name is not None):
        raise UsageError('tool_choice: a name goes with the type "tool", and only with it')
    wanted = choice.name if choice.name is not None else _CHOICES[choice.type]
    asked = body.output_config.format if body.output_config else None
    tools = [tool.for_template() for tool in body.tools or []]
    parallel = False if choice.disable_parallel_tool_use else None
    return tool_use(llm, tools, wanted, parallel=parallel, format=asked.format_schema if asked else None)


def thinking_of(llm: LLM, body: fields.Count) -> Thinking:
    """Whether the model is to think, as templates take it. Off unless it is asked for, as in Anthropic's API."""
    can = "thinking" in capabilities(template_of(llm))
    asked = body.thinking.type if body.thinking else "disabled"
    if asked == "enabled" and not can:
        raise UsageError(f"thinking: {llm.name} does not think before it answers; leave it out")
    if asked == "disabled" or not can:
        return False if can else None
    effort = body.output_config.effort if body.output_config else None
    return effort or True


def prompt_ids(llm: LLM, body: fields.Count, use: ToolUse) -> list[int]:
    """The token ids of the prompt. Slow for a long one: call it in a thread."""
    return chat_ids(llm, template_messages(body), use.tools or None, think=thinking_of(llm, body))


def template_messages(body: fields.Count) -> list[dict[str, Any]]:
    """One message a turn; each tool result is a message of its own, as templates want it."""
    system = [system_text(body.system)] if body.system is not None else []
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(body.messages):
        if message.role == "system":
            system += ["".join(block.text for block in message.blocks if isinstance(block, fields.Text))]
        elif message.role == "assistant":
            messages.append(_assistant(message, names))
        else:
            messages += _user(message, names, number)
    whole = "\n\n".join(text for text in system if text)
    return [{"role": "system", "content": whole}, *messages] if whole else messages


def system_text(system: str | list[fields.Text]) -> str:
    """The system's blocks as one text, without the billing line."""
    blocks = [system] if isinstance(system, str) else [block.text for block in system]
    if blocks:
        blocks[0] = _BILLING.sub("", blocks[0], count=1) if _BILLING.match(blocks[0]) else blocks[0]
    return "\n\n".join(block for block in blocks if block)


def _assistant(message: fields.Message, names: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = {"role": "assistant", "content": ""}
    calls = []
    for block in message.blocks:
        if isinstance(block, fields.Text):
            told["content"] += block.text
        elif isinstance(block, fields.Thought):
            told["reasoning_content"] = told.get("reasoning_content", "") + block.thinking
        elif isinstance(block, fields.ToolUse):
            names[block.id] = block.name
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, fields.ToolResult):
            raise UsageError("messages: a tool_result belongs to a message of the user")
    return told | ({"tool_calls": calls} if calls else {})


def _user(message: fields.Message, names: dict[str, str], number: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, fields.ToolResult):
            if block.tool_use_id not in names:
                raise UsageError(f"messages.{number}: no earlier tool_use has the id {block.tool_use_id!r:.80}")
            name = names[block.tool_use_id]
            messages.append({"role": "tool", "content": block.text, "name": name, "tool_call_id": block.tool_use_id})
        elif not isinstance(block, fields.Text):
            raise UsageError(f"messages.{number}: a block of type {block.type} belongs to a message of the assistant")
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += f"\n{block.text}"
        else:
            messages.append({"role": "user", "content": block.text})
    return messages
