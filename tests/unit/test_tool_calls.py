"""Tool calls in generated text: each format, what is no call, and that the cuts between pieces change nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.text.tool_calls import ToolCall, ToolCallParser, tool_formats

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "clock")]
CALL = '{"name": "weather", "arguments": {"city": "Bern </tool_call> \\"}]"}}'
TAGGED = f"<tool_call>{CALL}</tool_call>"
NO_OBJECT = '<tool_call>{"name": "weather", "arguments": [1]}'
OTHER = '<tool_call>{"name": "other", "arguments": "{\\"a\\": 1}"}</tool_call>'
WEATHER = ToolCall("weather", {"city": 'Bern </tool_call> "}]'})
ALL: Any = ("hermes", "mistral", "llama3")


def parse(pieces: list[str], formats: Any = ALL) -> list[str | ToolCall]:
    """Events with neighbouring texts joined."""
    parser = ToolCallParser(formats, TOOLS)
    events: list[str | ToolCall] = []
    for event in [event for piece in pieces for event in parser.push(piece)] + parser.flush():
        if isinstance(event, str) and events and isinstance(events[-1], str):
            events[-1] += event
        else:
            events.append(event)
    return events


CASES: list[tuple[Any, str, list[str | ToolCall]]] = [
    (("hermes",), f"<tool_call>\n{CALL}\n</tool_call>", [WEATHER]),
    (("hermes",), f"See.\n{TAGGED}\n{TAGGED}\n", ["See.", WEATHER, WEATHER]),
    (("hermes",), f"<tool_call>[{CALL}, {CALL}]</tool_call> done", [WEATHER, WEATHER, " done"]),
    (("hermes",), f"<tool_call>{CALL}", [WEATHER]),
    (("hermes",), '<tool_call>{"name": "weather", "arg', ['<tool_call>{"name": "weather", "arg']),
    (("hermes",), "a <tool_call>{broken}</tool_call> b", ["a <tool_call>{broken}</tool_call> b"]),
    (("hermes",), "use <tool_call> tags <tool", ["use <tool_call> tags <tool"]),
    (("hermes",), CALL, [CALL]),
    (("hermes",), OTHER, [ToolCall("other", {"a": 1})]),
    (("hermes",), NO_OBJECT, [NO_OBJECT]),
    (("mistral",), f"[TOOL_CALLS] [{CALL}, {CALL}]", [WEATHER, WEATHER]),
    (("mistral",), f"[TOOL_CALLS][{CALL}, 3]", [f"[TOOL_CALLS][{CALL}, 3]"]),
    (("llama3",), ' {"name": "clock", "parameters": {}}', [ToolCall("clock", {})]),
    (("llama3",), f'{CALL}; {{"name": "clock", "parameters": {{}}}}', [WEATHER, ToolCall("clock", {})]),
    (("llama3",), f"<|python_tag|>{CALL}", [WEATHER]),
    (("llama3",), f"{CALL};", [WEATHER]),
    (("llama3",), '{"name": "Bob", "parameters": {}} is JSON', ['{"name": "Bob", "parameters": {}} is JSON']),
    (("llama3",), f"As JSON: {CALL}", [f"As JSON: {CALL}"]),
    (ALL, "  plain text \n", ["  plain text \n"]),
    (ALL, "", []),
]  # fmt: skip


@pytest.mark.parametrize(("formats", "text", "events"), CASES)
def test_calls_and_texts(formats: Any, text: str, events: list[str | ToolCall]) -> None:
    assert parse([text], formats) == events
    assert parse(list(text), formats) == events
    for cut in range(len(text)):
        assert parse([text[:cut], text[cut:]], formats) == events


parts = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        CALL,
        "[",
        "]",
        "{",
        "}",
        ";",
        " ",
        "\n",
        '"',
        "\\",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts | st.text(max_size=3), max_size=12), st.sets(st.sampled_from(ALL)), st.data())
def test_cuts_change_nothing_and_text_is_not_lost(texts: list[str], formats: set[Any], data: st.DataObject) -> None:
    text = "".join(texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse([text], tuple(formats))
    assert parse(pieces, tuple(formats)) == whole
    if not any(isinstance(event, ToolCall) for event in whole):
        assert "".join(map(str, whole)) == text


@pytest.mark.parametrize("hostile", ["<tool_call>{", "<tool_call>", "[TOOL_CALLS][", "<tool_call>" + " " * 70, "{"])
def test_work_grows_with_the_text_only(hostile: str) -> None:
    """Twenty times the text may take 100 times as long for the noise, not 400 times as a quadratic parser would."""

    def seconds(count: int) -> float:
        started = time.perf_counter()
        parser = ToolCallParser(ALL, TOOLS)
        for _ in range(count):
            parser.push(hostile)
        parser.flush()
        return time.perf_counter() - started

    seconds(100)
    assert seconds(10_000) < 100 * max(seconds(500), 1e-3)


def test_deep_nesting_is_text() -> None:
    deep = '<tool_call>{"name": "weather", "arguments": ' + '{"a":' * 100_000 + "1" + "}" * 100_001
    assert parse([deep]) == [deep]


@pytest.mark.parametrize(
    ("template", "formats"),
    [
        (None, ()),
        ("{{ messages }}", ()),
        ("{% if tools %}<tool_call>{% endif %}", ("hermes",)),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", ("mistral",)),
        ('{{ if .Tools }}Respond in the format {"name": function name, "parameters": dictionary of', ("llama3",)),
    ],
)
def test_the_format_is_read_off_the_template(template: str | None, formats: tuple[str, ...]) -> None:
    assert tool_formats(template) == formats


def test_arguments_keep_their_order() -> None:
    call = parse(['<tool_call>{"name": "weather", "arguments": {"b": 1, "a": 2}}</tool_call>'])[0]
    assert isinstance(call, ToolCall)
    assert json.dumps(call.arguments) == '{"b": 1, "a": 2}'
