"""Conversations with tools in four spellings: every way there and back, what cannot be held, faults; the words that
tell of tools are those of the templates that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.data.formats import Chat, RowError
from tokenmill.data.tool_formats import SPELLINGS, Spelling, convert_tools, read_tools, spelling_of, write_tools
from tokenmill.text.chat_template import ChatTemplate
from tokenmill.text.tool_prompt import split_hermes_tools, tell_tools

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a place, é.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK: dict[str, Any] = {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": one} for one in (WEATHER, CLOCK)]


def call(name: str, arguments: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
arguments = st.dictionaries(texts, values, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> Chat:
    """Turns of a user, calls with their results, words of the assistant."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(texts)})
    number = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(texts)})
        for _ in range(draw(st.integers(0, 2))):
            calls = []
            for _ in range(draw(st.integers(1, 3))):
                name = draw(st.sampled_from(["get_weather", "clock"]))
                calls.append(call(name, draw(arguments), f"call_{number}"))
                number += 1
            said = draw(st.just("") | texts)
            messages.append({"role": "assistant", "content": said, "tool_calls": calls})
            for one in calls:
                messages.append({"role": "tool", "tool_call_id": one["id"], "content": draw(texts)})
        messages.append({"role": "assistant", "content": draw(texts)})
    return Chat(messages, TOOLS)


@given(conversations())
@settings(max_examples=15, deadline=None)
def test_every_way_there_and_back(chat: Chat) -> None:
    """Whatever a spelling takes reads back as it was, and from there in every other spelling that takes it too.
    OpenAI's and Anthropic's take everything."""
    settled = read_tools(write_tools(chat, "openai"))
    held: dict[Spelling, dict[str, Any]] = {}
    for spelling in SPELLINGS:
        try:
            held[spelling] = write_tools(chat, spelling)
        except RowError:
            assert spelling in ("hermes", "llama3")
    for spelling, row in held.items():
        assert spelling_of(json.loads(json.dumps(row))) == spelling or not any("tool_calls" in m for m in chat.messages)
        assert read_tools(row, spelling) == settled
        for other, theirs in held.items():
            assert convert_tools(row, other, spelling) == theirs


PLAIN = Chat(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Bern and Rome?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [call("get_weather", {"city": "Bern"}, "call_0"), call("clock", {}, "call_1")],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "4 °C"},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"time": "12:00"}'},
        {"role": "assistant", "content": "4 °C, at noon."},
        {"role": "user", "content": "Thanks"},
    ],
    TOOLS,
)


def test_each_spelling_is_that_of_its_owner() -> None:
    openai = write_tools(PLAIN, "openai")["messages"]
    assert openai[2]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Bern"}'}
    anthropic = write_tools(PLAIN, "anthropic")
    assert anthropic["system"] == "Be brief."
    assert anthropic["tools"][0]["input_schema"] == WEATHER["parameters"]
    assert anthropic["messages"][1]["content"][1] == {
        "type": "tool_use", "id": "call_0", "name": "get_weather", "input": {"city": "Bern"},
    }  # fmt: skip
    assert [block["type"] for block in anthropic["messages"][2]["content"]] == ["tool_result", "tool_result"]
    hermes = write_tools(PLAIN, "hermes")["messages"]
    assert hermes[2]["content"].startswith(
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n'
    )
    assert hermes[3]["content"].count("<tool_response>\n") == 2
    with pytest.raises(RowError, match="llama3 cannot hold"):
        write_tools(PLAIN, "llama3")  # words before a call
    silent = [{**message, "content": ""} if "tool_calls" in message else message for message in PLAIN.messages]
    llama3 = write_tools(Chat(silent, TOOLS), "llama3")["messages"]
    assert (
        llama3[2]["content"]
        == '{"name": "get_weather", "parameters": {"city": "Bern"}}; {"name": "clock", "parameters": {}}'
    )
    assert [message["role"] for message in llama3[3:5]] == ["ipython", "ipython"]


def test_hermes_words_are_those_of_qwens_template() -> None:
    """A template that tells of tools by itself writes the same prompt as a row in which they are told."""
    template = ChatTemplate((TEMPLATES / "qwen2.5.jinja").read_text())
    asked = list(PLAIN.messages[:2])
    by_template = template.render(asked, tools=TOOLS, add_generation_prompt=True)
    told = template.render(tell_tools(asked, TOOLS), add_generation_prompt=True)
    assert json.dumps(WEATHER, ensure_ascii=False) in told
    assert told == by_template


def test_llama3_words_are_those_of_its_template() -> None:
    template = ChatTemplate((TEMPLATES / "llama3.1.jinja").read_text())
    asked = [{"role": "user", "content": "What time is it?"}]
    by_template = template.render(asked, tools=TOOLS, add_generation_prompt=True, variables={"bos_token": ""})
    told = write_tools(Chat([*asked, {"role": "assistant", "content": "x"}], TOOLS), "llama3")["messages"][0]["content"]
    assert told in by_template


def test_the_other_wording_of_hermes_is_read() -> None:
    system = (
        "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML "
        f"tags. You may call one or more functions.\n<tools>\n{json.dumps(TOOLS)}\n</tools>\nFor each function call "
        "return a json object with function name and arguments within <tool_call> </tool_call> tags with the "
        "following schema:\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>\n"
    )
    assert split_hermes_tools(system) == ("", TOOLS)
    turns = [{"from": "system", "value": system}, {"from": "human", "value": "time?"}]
    turns += [{"from": "gpt", "value": '<tool_call>\n{"arguments": {}, "name": "clock"}\n</tool_call>'}]
    turns += [{"from": "tool", "value": '<tool_response>\n{"name": "clock", "content": "noon"}\n</tool_response>'}]
    chat = read_tools({"conversations": turns, "id": "7"})
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.tools == TOOLS
    assert convert_tools({"conversations": turns, "id": "7"}, "anthropic")["id"] == "7"


def user(*more: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}, *more]}


CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call("clock", {}, "a")]}


THOUGHT = {"role": "assistant", "content": [{"type": "thinking", "thinking": "…"}]}
BEHIND = [{"type": "tool_use", "id": "a", "name": "clock", "input": {}}, {"type": "text", "text": "behind"}]
TAGGED = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({}, "not empty"),
        ({"messages": ["x"]}, "must be an object"),
        (user({"role": "tool", "content": "y", "tool_call_id": "a"}), "no call that waits"),
        (user(CALLED, {"role": "tool", "content": "y", "tool_call_id": "b"}), "no call that waits"),
        (user(CALLED, {"role": "assistant", "content": "y"}), "1 calls have no result"),
        (user({**CALLED, "tool_calls": CALLED["tool_calls"] * 2}), "the same id"),
        (user(THOUGHT) | {"system": "s"}, "'thinking'"),
        (user({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "only text"),
        (user({"role": "assistant", "content": BEHIND}), "behind a call"),
        (user({"role": "assistant", "content": f"{TAGGED} and"}), "behind a call"),
        ({"messages": [{"role": "system", "content": "Some <tools> here <tool_call>"}]}, "not known here"),
    ],
)
def test_faults_are_told(row: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError, match=part):
        read_tools(row)


def test_what_looks_like_a_call_is_no_words() -> None:
    chat = Chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": TAGGED}], TOOLS)
    assert read_tools(write_tools(chat, "anthropic")) == chat
    with pytest.raises(RowError, match="hermes cannot hold"):
        write_tools(chat, "hermes")
