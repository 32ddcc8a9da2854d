"""Rows of one format as rows of another: every format of docs/training.md, and ChatGPT exports.

From any format that holds the same: a question with its answer is a completion, an Alpaca row, a conversation; a
preference pair gives its chosen side, or two labelled completions. What a format cannot hold is refused, never cut off:
Alpaca has one question and one answer, a text has no roles. Columns that belong to no format stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tokenmill.config.parts import Part
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate import chatgpt
from tokenmill.data.curate.read import contents
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.formats import Chat, Completion, Message, RowError, Text, parse_row, recognise

To = Literal["text", "completion", "messages", "alpaca", "sharegpt", "preference", "labelled"]
From = Literal[
    "auto", "text", "completion", "messages", "alpaca", "sharegpt", "preference", "labelled", "chatgpt"
]  # fmt: skip

_COLUMNS = (
    "text", "prompt", "completion", "messages", "tools", "instruction", "input", "output", "system", "conversations",
    "chosen", "rejected", "label", "mapping", "current_node",
)  # fmt: skip
"""What belongs to the formats; other columns are carried over."""

Row = dict[str, Any]


class ConvertOptions(Part):
    """Rows of one format as rows of another."""

    to: To
    """``text`` {text} · ``completion`` {prompt, completion} · ``messages`` {messages, tools} · ``alpaca`` {instruction,
    input, output} · ``sharegpt`` {conversations} · ``preference`` {prompt, chosen, rejected} · ``labelled`` {prompt,
    completion, label}"""
    source: From = "auto"
    """What the rows are; ``auto`` recognises each by its keys, ChatGPT exports too."""
    invalid: Literal["drop", "error"] = "drop"
    """A row that cannot be read or that the format cannot hold: dropped and counted, or the run stops and names it."""


def build(options: ConvertOptions, context: Context) -> Convert:
    """The step ``convert``; nothing in it is random."""
    return Convert(options)


class Convert:
    """The step. A row that becomes several (a pair, two labelled completions) has ``~2`` behind the second's id."""

    def __init__(self, options: ConvertOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        """The rows in the wanted format."""
        kept = []
        for document in documents:
            try:
                row = document.meta if document.derived else {"text": document.text, **document.meta}
                found = convert_row(row, self.options.to, self.options.source)
            except RowError as error:
                if self.options.invalid == "error":
                    raise ConfigError(f"convert: {document.id}: {error}") from error
                tally.drop(document, "unconvertible")
                continue
            if not found:
                tally.drop(document, "label_false")
            tally.keep(len(found))
            kept += [_document(document, number, one) for number, one in enumerate(found, 1)]
        return kept


def _document(origin: Document, number: int, row: Row) -> Document:
    name = origin.id if number == 1 else f"{origin.id}~{number}"
    text = row.pop("text", None)
    return Document(name, "\n".join(contents(row)) if text is None else text, row, text is None)


def convert_row(row: Mapping[str, Any], to: To, source: From = "auto") -> list[Row]:
    """The rows in format `to` that hold what `row` holds: one, two for a pair as labelled completions, none for a
    labelled completion whose label is false. RowError says what is wrong with the row, or what cannot be held."""
    carried = {key: value for key, value in row.items() if key not in _COLUMNS}
    kind = kind_of_row(row) if source == "auto" else source
    if kind == to:
        return [carried | one for one in [_same(row, kind)]]
    if kind == "preference":
        return [carried | one for one in _from_preference(row, to)]
    if kind == "labelled":
        return [carried | one for one in _from_labelled(row, to)]
    if to in ("preference", "labelled"):
        raise RowError(f"{kind} rows do not say which answers are better, which {to} rows have to")
    if kind == "chatgpt":
        if not chatgpt.is_export(row):
            raise RowError("mapping is missing: no conversation of a ChatGPT export")
        return [carried | _written(chatgpt.conversation(row), to)]
    if kind == "text" and to != "text":
        raise RowError(f"a plain text has no question and answer to make {to} of")
    return [carried | _written(parse_row(row, format=kind), to)]


def kind_of_row(row: Mapping[str, Any]) -> Any:
    """Which format a row is, by its keys; RowError if none."""
    if chatgpt.is_export(row):
        return "chatgpt"
    if "chosen" in row and "rejected" in row:
        return "preference"
    if "prompt" in row and "completion" in row and "label" in row and "messages" not in row:
        return "labelled"
    return recognise(row)


def _same(row: Mapping[str, Any], kind: Any) -> Row:
    """A row that is in the wanted format already, checked."""
    if kind == "preference":
        _sides(row)
    elif kind == "labelled":
        _label(row)
    else:
        parse_row(row, format=kind)
    return {key: value for key, value in row.items() if key in _COLUMNS}


# --- rows that compare answers


def _from_preference(row: Mapping[str, Any], to: To) -> list[Row]:
    prompt, chosen, rejected = _sides(row)
    if to == "labelled":
        return [{"prompt": prompt, "completion": side, "label": side is chosen} for side in (chosen, rejected)]
    return [_written(_answered(prompt, chosen, row), to)]


def _from_labelled(row: Mapping[str, Any], to: To) -> list[Row]:
    if to == "preference":
        raise RowError("a labelled completion is one answer; a preference pair needs two to the same prompt")
    return [_written(_answered(row["prompt"], row["completion"], row), to)] if _label(row) else []


def _answered(prompt: Any, answer: Any, row: Mapping[str, Any]) -> Completion | Chat:
    found = parse_row({"prompt": prompt, "completion": answer, "tools": row.get("tools")}, format="completion")
    assert isinstance(found, Completion | Chat)
    return found


def _label(row: Mapping[str, Any]) -> bool:
    _answered(row.get("prompt"), row.get("completion"), row)
    if not isinstance(row.get("label"), bool):
        raise RowError(f"label must be true or false, not {row.get('label')!r}")
    return bool(row["label"])


def _sides(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected), all texts or all lists of messages. Without a prompt the two conversations' common
    beginning is it."""
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        if same is None:
            same = min(len(chosen), len(rejected))
        if prompt is None:
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        elif chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if prompt is None:
        raise RowError("prompt is missing")
    if not chosen or not rejected:
        raise RowError("chosen and rejected must both hold an answer")
    for side in (chosen, rejected):
        _answered(prompt, side, row)
    return prompt, chosen, rejected


# --- writing


def _written(document: Text | Completion | Chat, to: To) -> Row:
    if isinstance(document, Text):
        return {"text": document.text}
    if to == "text":
        if isinstance(document, Completion):
            return {"text": document.prompt + document.completion}
        raise RowError("a conversation is no plain text before a chat template has written it; train on messages")
    if to == "completion" and isinstance(document, Completion):
        return {"prompt": document.prompt, "completion": document.completion}
    chat = document if isinstance(document, Chat) else _as_chat(document)
    if to == "messages":
        return {"messages": list(chat.messages)} | ({"tools": list(chat.tools)} if chat.tools else {})
    if to == "sharegpt":
        return {"conversations": _turns(chat.messages)} | ({"tools": json.dumps(chat.tools)} if chat.tools else {})
    return _alpaca(chat) if to == "alpaca" else _completion(chat)


def _as_chat(document: Completion) -> Chat:
    question = {"role": "user", "content": document.prompt}
    return Chat([question, {"role": "assistant", "content": document.completion}])


def _completion(chat: Chat) -> Row:
    """Prompt and completion: texts for a question with its answer, else lists of messages."""
    last = chat.messages[-1]
    if last["role"] != "assistant":
        raise RowError(f"the last message is the {last['role']}'s; a completion is what the assistant says")
    if [message["role"] for message in chat.messages] == ["user", "assistant"] and not chat.tools:
        question, answer = chat.messages[0]["content"], last.get("content")
        if isinstance(question, str) and isinstance(answer, str) and not last.get("tool_calls"):
            return {"prompt": question, "completion": answer}
    row: Row = {"prompt": list(chat.messages[:-1]), "completion": [last]}
    return row | ({"tools": list(chat.tools)} if chat.tools else {})


def _alpaca(chat: Chat) -> Row:
    roles = [message["role"] for message in chat.messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]) or chat.tools:
        raise RowError(f"alpaca holds one question and one answer, without tools, not {', '.join(roles)}")
    said = [message.get("content") for message in chat.messages]
    if not all(isinstance(one, str) for one in said) or chat.messages[-1].get("tool_calls"):
        raise RowError("alpaca holds texts, no pictures and no tool calls")
    row = {"instruction": said[-2], "input": "", "output": said[-1]}
    return row | ({"system": said[0]} if len(said) == 3 else {})


_SPEAKERS = {"user": "human", "assistant": "gpt", "tool": "tool", "function": "tool"}


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """ShareGPT's turns; a tool call is a turn of its own, with the call as JSON."""
    turns: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        content, calls = message.get("content") or "", message.get("tool_calls") or []
        if not isinstance(content, str):
            raise RowError(f"messages[{number}].content has parts that are no text, which sharegpt cannot hold")
        if content or not calls:
            turns.append({"from": _SPEAKERS.get(message["role"], str(message["role"])), "value": content})
        for call in calls:
            turns.append({"from": "function_call", "value": json.dumps(call["function"], ensure_ascii=False)})
    return turns
