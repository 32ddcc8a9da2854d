"""The part of Go's text/template that Ollama's Modelfiles use, so that a TEMPLATE is honoured without Go.

`GoTemplate` parses and runs one; `render_chat` turns a conversation into a prompt as Ollama does; `looks_like_go` tells
such a template from a Jinja one. Supported: trimming, comments, fields, variables, if/else/with/range/break/continue,
define/template/block, pipelines, and the functions in functions.py. Refused, by name and line: unknown functions and
fields, method calls, HTML escaping. Bounded: source, nesting, steps and output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from tokenmill.core.errors import TemplateError
from tokenmill.text.go_template import functions
from tokenmill.text.go_template.chat import collate, tools_for_template
from tokenmill.text.go_template.nodes import Action, Command, Field, Pipe, cut_after_response, fields_of
from tokenmill.text.go_template.parser import Parser
from tokenmill.text.go_template.render import Renderer
from tokenmill.text.go_template.values import JsonList, Record, clean, plain

__all__ = ["GoTemplate", "looks_like_go", "render_chat"]

MAX_SOURCE = 200_000  # characters; Ollama's longest template has about 10,000
_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_GO_WORDS = re.compile(
    r"\s*(?:(?:if|else if|range|with)\s+[.$(a-z]|(?:else|end|break|continue)\s*$|/\*|(?:define|template|block)\s+`)"
)
_GO_FIELD = re.compile(r"(?:^|[\s(|])(?:\.[A-Z]\w*|\$\w*)(?=[\s).|]|$)")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|`[^`]*`")
_JINJA_BLOCK = re.compile(r"\{%[-+]?\s*[a-z]+")


class GoTemplate:
    """One TEMPLATE, parsed. `fields` are the names it mentions ("Messages", "Tools", "Suffix" …)."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError with the line of whatever cannot be understood."""
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"Go template of {len(source)} characters; at most {MAX_SOURCE} are allowed")
        self.source = source
        self._templates = Parser(clean(source), functions.NAMES).parse()
        self.fields = frozenset(name for nodes in self._templates.values() for name in fields_of(nodes))
        if not self.fields & {"Messages", "Response"}:  # as Ollama does: the answer goes to the end
            response = Action(Pipe((Command((Field(("Response",)),), 1),)), 1)
            self._templates[""] = (*self._templates[""], response)

    def render(
        self,
        *,
        system: str = "",
        prompt: str = "",
        response: str = "",
        suffix: str = "",
        messages: Sequence[Mapping[str, Any]] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | str | None = None,
        today: date | None = None,
    ) -> str:
        """The template run once over exactly this. Raises TemplateError.

        `suffix` is for filling in the middle. `think` is Ollama's request field: a switch or a level.
        `today` is what ``currentDate`` says (default: this day).
        """
        return self._run(
            today,
            cut=False,
            System=plain(system, "system"),
            Prompt=plain(prompt, "prompt"),
            Response=plain(response, "response"),
            Suffix=plain(suffix, "suffix"),
            Messages=collate(messages or ())[1],
            Tools=tools_for_template(tools or ()),
            **_thinking(think),
        )

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        think: bool | str | None = None,
        today: date | None = None,
    ) -> str:
        """The prompt for `messages`. An assistant's message at the end is continued, as in Ollama.

        `add_generation_prompt=False` asks for a finished conversation, which only an old template
        (.Prompt and .Response) that ends with an assistant's message can give. Raises TemplateError.
        """
        if tools and not {"Tools", "Messages"} <= self.fields:
            raise TemplateError("this model's template has no place for tools (.Tools and .Messages)")
        system, collated = collate(messages)
        if not collated:
            raise TemplateError("a conversation needs at least one message")
        finished = not add_generation_prompt
        if finished and ("Messages" in self.fields or collated[-1].fields["Role"] != "assistant"):
            raise TemplateError(
                "a Go template always ends where the assistant is to continue; add_generation_prompt=False is possible "
                "only with a template of .Prompt and .Response and an assistant's message at the end"
            )
        thinking = _thinking(think)
        if "Messages" not in self.fields:
            return self._rounds(collated, finished, thinking, today)
        return self._run(
            today,
            cut=False,
            System=system,
            Prompt="",
            Response="",
            Suffix="",
            Messages=collated,
            Tools=tools_for_template(tools or ()),
            **thinking,
        )

    def _rounds(self, messages: list[Record], finished: bool, thinking: dict[str, Any], today: date | None) -> str:
        """System, prompt and response of each round through the template, the last one cut at the response."""
        rounds: list[dict[str, str]] = [dict.fromkeys(("System", "Prompt", "Response"), "")]
        for message in messages:
            role = message.fields["Role"]
            if role not in ("system", "user", "assistant") or message.fields["ToolCalls"]:
                what = "tool calls" if message.fields["ToolCalls"] else f"messages of the role {role!r}"
                raise TemplateError(f"this model's template has no place for {what} (it does not mention .Messages)")
            current = rounds[-1]
            if current["Response"] or (role != "assistant" and current["Prompt"]):
                current = dict.fromkeys(current, "")
                rounds.append(current)
            current[{"system": "System", "user": "Prompt", "assistant": "Response"}[role]] = message.fields["Content"]
        texts = []
        for values in rounds:
            cut = values is rounds[-1] and not finished
            texts.append(self._run(today, cut=cut, **values, Suffix="", Messages=[], Tools=JsonList(), **thinking))
        return "".join(texts)

    def _run(self, today: date | None, *, cut: bool, **data: Any) -> str:
        templates = cut_after_response(self._templates) if cut else self._templates
        return Renderer(templates, Record("the template's data", data), today or date.today()).run()


def _thinking(think: bool | str | None) -> dict[str, Any]:
    level = think if isinstance(think, str) else "medium" if think else ""
    return {"Think": bool(think), "ThinkLevel": level, "IsThinkSet": think is not None}


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt that the TEMPLATE `source` makes of a conversation. Raises TemplateError."""
    return GoTemplate(source).render_chat(messages, tools, add_generation_prompt)


def looks_like_go(source: str) -> bool:
    """Whether `source` is a Go template rather than a Jinja one: by its actions, never by guessing from the prose."""
    if _JINJA_BLOCK.search(source):
        return False
    actions = [_QUOTED.sub(" ` ", match.group(1)) for match in _ACTION.finditer(source)]
    return any(_GO_WORDS.match(action) or _GO_FIELD.search(action) for action in actions)
