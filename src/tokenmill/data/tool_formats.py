"""Conversations with tool calls in every spelling: OpenAI's, Anthropic's blocks, Hermes' tags, Llama 3's JSON.

All are read into one form (a :class:`Chat` with OpenAI's messages, arguments as mappings) and written from it. What was
written is read back before it is given out: a conversation that a spelling cannot hold (words before a call for Llama
3, an answer that only looks like a call) is refused, never changed. Not kept, because not every spelling has them: ids
of calls (where there are none they are numbered), the order of results, which becomes that of their calls, white space
beside calls, and how JSON text was set.

Sources: the API references of OpenAI and Anthropic, the chat templates of Qwen 2.5 and Llama 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from tokenmill.data.formats import Chat, Message, RowError, parse_row
from tokenmill.data.tool_spellings import READERS, WRITERS
from tokenmill.text.tool_calls import MARKS
from tokenmill.text.tool_prompt import split_hermes_tools, split_llama3_tools

Spelling = Literal["openai", "anthropic", "hermes", "llama3"]
SPELLINGS: tuple[Spelling, ...] = get_args(Spelling)
_COLUMNS = ("messages", "tools", "system", "conversations")
_NOTHING = {"type": "object", "properties": {}}


def convert_tools(row: Mapping[str, Any], to: Spelling, source: Spelling | None = None) -> dict[str, Any]:
    """A row in another spelling; other columns stay. RowError says what is wrong with it, or what cannot be held."""
    carried = {key: value for key, value in row.items() if key not in _COLUMNS}
    return carried | write_tools(read_tools(row, source), to)


def read_tools(row: Mapping[str, Any], spelling: Spelling | None = None) -> Chat:
    """The conversation in a row; without a spelling the row's own marks tell it. RowError says what is wrong."""
    if "conversations" in row:  # ShareGPT: calls are turns of their own, or tags in what the assistant says
        chat = parse_row(row, format="sharegpt")
        assert isinstance(chat, Chat)
        row = {"messages": list(chat.messages), "tools": chat.tools}
    if not isinstance(row.get("messages"), list) or not row["messages"]:
        raise RowError("messages must be a list of messages, and not empty")
    for number, message in enumerate(row["messages"]):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RowError(f"messages[{number}] must be an object with role and content")
    return _settled(*READERS[spelling or spelling_of(row)](row))


def write_tools(chat: Chat, to: Spelling) -> dict[str, Any]:
    """The row of a conversation; RowError where this spelling cannot hold it."""
    settled = _settled(chat.messages, chat.tools)
    row = WRITERS[to](settled.messages, settled.tools or [])
    try:
        again = read_tools(row, to)
    except RowError as error:
        raise RowError(f"{to} cannot hold this conversation: {error}") from error
    if _without_ids(again) != _without_ids(settled):
        raise RowError(f"{to} cannot hold this conversation: {_difference(settled, again)}")
    return row


def spelling_of(row: Mapping[str, Any]) -> Spelling:
    """Which spelling a row has; OpenAI's where nothing tells another."""
    messages = row["messages"]
    blocks = [b for m in messages if isinstance(m.get("content"), list) for b in m["content"] if isinstance(b, Mapping)]
    tools = row.get("tools") if isinstance(row.get("tools"), list) else []
    if any(message.get("tool_calls") for message in messages):
        return "openai"
    if (
        isinstance(row.get("system"), str)
        or any(block.get("type") in ("tool_use", "tool_result") for block in blocks)
        or any(isinstance(tool, Mapping) and "input_schema" in tool for tool in tools or ())
    ):
        return "anthropic"
    texts = [(message["role"], message["content"]) for message in messages if isinstance(message.get("content"), str)]
    if any(role == "ipython" or (role == "user" and split_llama3_tools(text)) for role, text in texts):
        return "llama3"
    if any((role == "system" and split_hermes_tools(text)) or MARKS["hermes"] in text for role, text in texts):
        return "hermes"
    return "openai"


# --- one form


def _settled(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> Chat:
    """Ids on every call and result, results in the order of their calls, no white space beside calls."""
    settled: list[Message] = []
    waiting: list[str] = []
    taken = {call["id"] for message in messages for call in message.get("tool_calls", ()) if call.get("id")}
    free = (name for name in (f"call_{n}" for n in range(1 << 30)) if name not in taken)
    for number, message in enumerate(messages):
        message = dict(message)
        if message["role"] == "tool":
            message.setdefault("tool_call_id", waiting[0] if waiting else None)
            if message["tool_call_id"] not in waiting:
                raise RowError(f"messages[{number}]: a result of no call that waits for one")
            waiting.remove(message["tool_call_id"])
        elif waiting and message["role"] == "assistant":
            raise RowError(f"messages[{number}]: the assistant goes on while {len(waiting)} calls have no result")
        if calls := message.get("tool_calls"):
            calls = [call if call.get("id") else {"id": next(free), **call} for call in calls]
            message |= {"content": message["content"].strip(), "tool_calls": calls}
            waiting = [call["id"] for call in calls]
            if len(set(waiting)) < len(waiting):
                raise RowError(f"messages[{number}]: two calls have the same id")
        elif message["role"] != "tool":
            waiting = []
        settled.append(message)
    return Chat(_results_in_order(settled), [_settled_tool(tool) for tool in tools] if tools else None)


def _results_in_order(messages: list[Message]) -> list[Message]:
    order: dict[str, int] = {}
    placed: list[tuple[int, int, Message]] = []
    turn = 0
    for message in messages:
        if message["role"] != "tool":
            turn += 1
            order = {call["id"]: n for n, call in enumerate(message.get("tool_calls", ()), 1)}
        placed.append((turn, order[message["tool_call_id"]] if message["role"] == "tool" else 0, message))
    return [message for *_, message in sorted(placed, key=lambda one: one[:2])]


def _settled_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("tools: each is a function with a name")
    rest = {key: value for key, value in function.items() if key != "name"}
    return {
        "type": "function",
        "function": {"name": function["name"], **rest, "parameters": rest.get("parameters") or _NOTHING},
    }


def _without_ids(chat: Chat) -> tuple[list[Message], Any]:
    """For comparison: calls and results numbered anew, and no names beside results, which the ids say."""
    names: dict[str, str] = {}
    messages = []
    for message in chat.messages:
        kept = {key: value for key, value in message.items() if key != "name" or message["role"] != "tool"}
        if "tool_calls" in kept:
            for call in kept["tool_calls"]:
                names[call["id"]] = f"{len(names)}"
            kept["tool_calls"] = [{**call, "id": names[call["id"]]} for call in kept["tool_calls"]]
        if "tool_call_id" in kept:
            kept["tool_call_id"] = names[kept["tool_call_id"]]
        messages.append(kept)
    return messages, chat.tools


def _difference(wanted: Chat, found: Chat) -> str:
    ours, theirs = _without_ids(wanted), _without_ids(found)
    if ours[1] != theirs[1]:
        return "its tools read back otherwise"
    place = next((n for n, (a, b) in enumerate(zip(ours[0], theirs[0], strict=False)) if a != b), len(theirs[0]))
    return (
        f"messages[{place}] ({ours[0][place]['role']}) reads back otherwise" if place < len(ours[0]) else "it is longer"
    )
