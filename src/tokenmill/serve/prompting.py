"""What a model's chat template can do, and prompts with what a protocol adds: thinking, another template, prefill.

Goes beyond :meth:`LLM.prompt_ids` where Ollama's and Anthropic's requests do. A conversation that ends with the
assistant's words is continued, as both protocols promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenmill.core.errors import UsageError
from tokenmill.llm import LLM
from tokenmill.text.go_template import GoTemplate, looks_like_go
from tokenmill.text.thinking import OPEN, writes_thinking

Thinking = bool | str | None


def template_of(llm: LLM, template: str | None = None) -> str | None:
    """The chat template's source: the request's own, the Modelfile's, or the model's (all, if it has several)."""
    chosen = template if template is not None else llm.files.template
    return chosen if chosen is not None else "\n".join(llm.tokenizer.chat_templates.values()) or None


def capabilities(template: str | None) -> list[str]:
    """Ollama's words for what a model with this template can do."""
    found = ["completion"]
    if template is None:
        return found
    fields = GoTemplate(template).fields if looks_like_go(template) else frozenset()
    if "tools" in template if not fields else "Tools" in fields:
        found.append("tools")
    if "Suffix" in fields:
        found.append("insert")
    if writes_thinking(template):
        found.append("thinking")
    return found


def chat_ids(
    llm: LLM,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    think: Thinking = None,
    template: str | None = None,
) -> list[int]:
    """The token ids of a conversation. Slow for a long one: call it in a thread. Raises UsageError, TemplateError."""
    if not messages:
        raise UsageError("messages: none of them says anything; give at least one with a text")
    if llm.files.system and not any(message["role"] == "system" for message in messages):
        messages = [{"role": "system", "content": llm.files.system}, *messages]
    template = template if template is not None else llm.files.template
    if template is not None and looks_like_go(template):
        return llm.tokenizer.encode(GoTemplate(template).render_chat(messages, tools, think=think))
    continued = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    variables: dict[str, Any] = {} if think is None else {"enable_thinking": bool(think)}
    if isinstance(think, str):
        variables["reasoning_effort"] = think
    return llm.tokenizer.encode_chat(
        messages,
        tools=tools,
        chat_template=template,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **variables,
    )


def ends_in_thinking(llm: LLM, ids: Sequence[int]) -> bool:
    """Whether the prompt's template has opened the thinking already."""
    return llm.tokenizer.decode(ids[-16:], skip_special_tokens=False).rstrip().endswith(OPEN)
