"""Anthropic's Messages API with Anthropic's own client, over real HTTP, on the tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import anthropic
import httpx
import pytest

from fakes.tiny_llm import CHATML, serving, tiny_app, tiny_folder, tiny_store
from tokenmill.core.errors import UsageError
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.llm import LLM, Piece, Stats
from tokenmill.serve.anthropic import error_body, fields
from tokenmill.serve.anthropic.answers import Answer, server_sent
from tokenmill.serve.anthropic.prompt import template_messages, thinking_of
from tokenmill.serve.errors import HTTPError
from tokenmill.serve.tools import ChoiceReader, ToolUse
from tokenmill.serve.worker import Ticket
from tokenmill.store import Store

ASKED = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0}
LOOK = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
TOOLS = [
    {"name": "look", "description": "d", "input_schema": LOOK},
    {"name": "wait", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
# knows tools and thinking; shows a call the way that it is written, and results with their tool's name
TOOLED = (
    "{% if tools %}TOOLS {{ tools | tojson }} <tool_call>\n{% endif %}"
    + CHATML.replace("{{ message.content }}", "{{ message.name }}{{ message.content }}{{ message.tool_calls }}")
    + "{% if enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("anthropic")
    store = tiny_store(root)
    folder = tiny_folder(root / "tooled", chat_template=TOOLED, context=1024)
    store.create("tooled", f"FROM {folder}\nPARAMETER stop zzz", root)
    return store


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    with serving(tiny_app(store.root, store=store)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="not checked here", max_retries=0)


@pytest.fixture(scope="module")
def llm(store: Store) -> LLM:
    return LLM("tooled", store=store)


def ask(client: anthropic.Anthropic, **more: Any) -> anthropic.types.Message:
    return client.messages.create(**{"model": "tiny", "max_tokens": 8, "messages": ASKED, "extra_body": GREEDY, **more})


def streamed(client: anthropic.Anthropic, **more: Any) -> tuple[list[str], anthropic.types.Message]:
    asked = {"model": "tiny", "max_tokens": 8, "messages": ASKED, "extra_body": GREEDY, **more}
    raw = client.messages.create(**asked, stream=True)
    kinds = [event.type for event in raw]
    with client.messages.stream(**asked) as stream:
        return kinds, stream.get_final_message()


def blocks(message: anthropic.types.Message) -> list[Any]:
    """Contents without the ids that are new each time."""
    keys = ("type", "text", "thinking", "name", "input")
    return [{key: getattr(block, key) for key in keys if hasattr(block, key)} for block in message.content]


def test_a_streamed_message_is_the_whole_one(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    kinds, final = streamed(client)
    assert blocks(final) == blocks(whole)
    assert (whole.type, whole.role, whole.stop_reason, final.stop_reason) == (
        "message",
        "assistant",
        *["max_tokens"] * 2,
    )
    assert whole.id.startswith("msg_")
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert final.usage.output_tokens == whole.usage.output_tokens == 8


def test_the_cache_is_told_of(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "the cat sat on the mat and the dog sat on the log"}]
    first = ask(client, messages=messages).usage
    second = ask(client, messages=messages).usage
    count = client.messages.count_tokens(model="tiny", messages=messages).input_tokens
    assert second.cache_read_input_tokens
    for usage in (first, second):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count


def test_a_billing_line_does_not_reach_the_model(client: anthropic.Anthropic) -> None:
    def counted(*texts: str) -> int:
        system = [{"type": "text", "text": text} for text in texts]
        return client.messages.count_tokens(model="tiny", messages=ASKED, system=system).input_tokens

    header = "x-anthropic-billing-header: cc_version=1.2; cch=a1b2c;"
    assert counted(header, "be kind") == counted("be kind") == counted(f"{header}\nbe kind")
    assert counted(header) == client.messages.count_tokens(model="tiny", messages=ASKED).input_tokens
    assert counted("be kind", header) > counted("be kind")  # elsewhere it is only text


def test_which_stop_text_ended_it(client: anthropic.Anthropic) -> None:
    full = ask(client, max_tokens=12).content[0].text
    stop = full[3:5]
    for message in (ask(client, stop_sequences=["no such", stop]), streamed(client, stop_sequences=[stop])[1]):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        assert "".join(block["text"] for block in blocks(message)) == full[: full.index(stop)]


def test_the_assistants_words_are_continued(client: anthropic.Anthropic) -> None:
    started = [*ASKED, {"role": "assistant", "content": "the cat"}]
    plain = client.messages.count_tokens(model="tiny", messages=ASKED).input_tokens
    assert plain < client.messages.count_tokens(model="tiny", messages=started).input_tokens < plain + 8
    assert ask(client, messages=started).stop_reason == "max_tokens"


@pytest.mark.parametrize(
    "choice", [{"type": "any"}, {"type": "tool", "name": "look"}, {"type": "tool", "name": "wait"}]
)
def test_a_tool_that_must_be_used_is_used(client: anthropic.Anthropic, choice: dict[str, Any]) -> None:
    asked = {"model": "tooled", "tools": TOOLS, "tool_choice": choice, "max_tokens": 120}
    whole, (kinds, final) = ask(client, **asked), streamed(client, **asked)
    assert whole.stop_reason == final.stop_reason == "tool_use"
    assert blocks(whole) == blocks(final)
    [call] = whole.content
    assert call.type == "tool_use"
    assert call.id.startswith("toolu_")
    assert call.name == choice.get("name", call.name)
    assert call.input in ([{}] if call.name == "wait" else [{"n": 1}, {"n": 2}])
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_a_schema_holds_the_answer(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = ask(client, max_tokens=60, extra_body={**GREEDY, "output_config": config})
    assert json.loads(message.content[0].text) == {"a": 1}


@pytest.mark.parametrize(
    ("more", "error", "what"),
    [
        ({"model": "nope"}, "not_found_error", "nope"),
        ({"model": "/etc"}, "invalid_request_error", "path"),
        ({"max_tokens": 0}, "invalid_request_error", "max_tokens"),
        ({"messages": []}, "invalid_request_error", "messages"),
        ({"bogus": 1}, "invalid_request_error", "bogus"),
        ({"tools": TOOLS}, "invalid_request_error", "no place for tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "invalid_request_error", "tools.0"),
        (
            {"model": "tooled", "tool_choice": {"type": "tool", "name": "x"}, "tools": TOOLS},
            "invalid_request_error",
            "x",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "invalid_request_error", "does not think"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "invalid_request_error",
            "image",
        ),
        ({"messages": [{"role": "user", "content": "cat " * 900}]}, "invalid_request_error", "512"),
        ({"stop_sequences": [""]}, "invalid_request_error", "stop_sequences"),
    ],
)
def test_mistakes_are_told_in_anthropics_shape(url: str, more: dict[str, Any], error: str, what: str) -> None:
    answer = httpx.post(f"{url}/v1/messages", json={"model": "tiny", "max_tokens": 4, "messages": ASKED, **more})
    assert answer.status_code == (404 if error == "not_found_error" else 400)
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", error)
    assert what in told["error"]["message"]


def test_every_status_has_its_type() -> None:
    kinds = {
        status: error_body(HTTPError(status, "x"))["error"]["type"] for status in (400, 401, 403, 413, 429, 500, 503)
    }
    assert list(kinds.values()) == [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]


def test_turns_become_what_templates_know() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"z": 1, "a": 2}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no"}],
                },
                {"type": "text", "text": "c"},
            ],
        },
        {"role": "msg", "content": "d"},
        {"role": "system", "content": "late"},
    ]
    body = fields.Count.model_validate({"model": "m", "system": "early", "messages": messages})
    function = {"name": "f", "arguments": {"z": 1, "a": 2}}
    assert template_messages(body) == [
        {"role": "system", "content": "early\n\nlate"},
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "b",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "Error: no", "name": "f", "tool_call_id": "1"},
        {"role": "user", "content": "c"},
        {"role": "user", "content": "d"},
    ]


@pytest.mark.parametrize(
    ("role", "block", "what"),
    [
        ("user", {"type": "tool_result", "tool_use_id": "9"}, "9"),
        ("user", {"type": "thinking", "thinking": "x"}, "thinking"),
        ("assistant", {"type": "tool_result", "tool_use_id": "9"}, "user"),
    ],
)
def test_blocks_out_of_place_are_refused(role: str, block: dict[str, Any], what: str) -> None:
    body = fields.Count.model_validate({"model": "m", "messages": [{"role": role, "content": [block]}]})
    with pytest.raises(UsageError, match=what):
        template_messages(body)


def test_thinking_is_off_unless_asked_for(llm: LLM) -> None:
    def asked(**more: Any) -> Any:
        return thinking_of(llm, fields.Count.model_validate({"model": "m", "messages": ASKED, **more}))

    assert asked() is False
    assert asked(thinking={"type": "disabled"}) is False
    assert asked(thinking={"type": "adaptive"}) is True
    assert asked(thinking={"type": "enabled", "budget_tokens": 2000}, output_config={"effort": "low"}) == "low"


class Script:
    """A ticket whose pieces are known before."""

    def __init__(self, *pieces: Piece | Exception) -> None:
        self.pieces, self.cancelled = list(pieces), False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


def scripted(llm: LLM, *pieces: Piece | Exception) -> tuple[Answer, Script]:
    tools = [{"type": "function", "function": {"name": "look"}}]
    script, reader = Script(*pieces), ChoiceReader(llm, [5], SamplingParams(), ToolUse(tools))
    return Answer("m", reader, cast(Ticket, script), 3, []), script


def test_thinking_text_and_calls_are_blocks_of_their_own(llm: LLM) -> None:
    calls = ['{"name": "look", "arguments": {"n": 1}}', '{"name": "look", "arguments": {}}']
    text = "<think>hm</think>\n\nSo " + "\n".join(f"<tool_call>{call}</tool_call>" for call in calls)
    for size in (1, 4, len(text)):
        cut = [Piece(text[at : at + size]) for at in range(0, len(text), size)]
        answer, script = scripted(llm, *cut, Piece("", finish_reason="stop", stats=Stats(3, 1, 9)))
        message = asyncio.run(answer.whole())
        assert script.cancelled
        shown = [(block["type"], block.get(block["type"], block.get("input"))) for block in message["content"]]
        assert shown == [("thinking", "hm"), ("text", "So"), ("tool_use", {"n": 1}), ("tool_use", {})]
        assert message["stop_reason"] == "tool_use"
        assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (2, 1)


def test_a_failure_in_the_middle_is_an_event(llm: LLM) -> None:
    async def events(answer: Answer) -> list[str]:
        return [event async for event in server_sent(answer.events())]

    answer, script = scripted(llm, Piece("ab"), UsageError("too deep"))
    last = asyncio.run(events(answer))[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["message"] == "too deep"
    assert script.cancelled
    answer, _ = scripted(llm, RuntimeError("/secret/path"))
    assert "secret" not in "".join(asyncio.run(events(answer)))
