"""Every format into every other that can hold it, and back without loss; what cannot be held is refused with a reason;
ChatGPT exports; errors name the row."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.convert import Convert, ConvertOptions, From, To, convert_row
from tokenmill.data.curate.step import Document, Tally
from tokenmill.data.formats import Chat, RowError, parse_row

QUESTION, ANSWER = "What is 2+2?", "Four."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "Once upon a time."},
    "completion": {"prompt": QUESTION, "completion": ANSWER},
    "messages": {"messages": TURNS},
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "preference": {"prompt": QUESTION, "chosen": ANSWER, "rejected": "Five."},
    "labelled": {"prompt": QUESTION, "completion": ANSWER, "label": True},
}
FORMATS = get_args(To)
IMPOSSIBLE = {
    *(("text", to) for to in FORMATS if to != "text"),
    *((kind, to) for kind in FORMATS for to in ("preference", "labelled") if kind not in ("preference", "labelled")),
    ("labelled", "preference"),
    *((kind, "text") for kind in ("messages", "sharegpt", "alpaca")),
}


@pytest.mark.parametrize(("source", "to"), list(product(FORMATS, FORMATS)))
def test_every_format_into_every_other(source: Any, to: Any) -> None:
    row = {"id": 7, **ROWS[source]}
    if (source, to) in IMPOSSIBLE:
        with pytest.raises(RowError):
            convert_row(row, to)
        return
    found = convert_row(row, to)
    assert found == convert_row(row, to, source), "by its keys it is what it is"
    if (source, to) == ("preference", "labelled"):
        assert [(one["completion"], one["label"]) for one in found] == [(ANSWER, True), ("Five.", False)]
    elif to == "text" and source != "text":
        assert found == [{"id": 7, "text": QUESTION + ANSWER}]
    else:
        assert found == [{"id": 7, **ROWS[to]}]


def test_a_label_that_is_false_gives_no_answer_to_learn() -> None:
    assert convert_row(ROWS["labelled"] | {"label": False}, "messages") == []
    with pytest.raises(RowError, match="label must be true or false, not 1"):
        convert_row(ROWS["labelled"] | {"label": 1}, "messages")


LONG = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Oslo and Rome?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": '{"c": 3}'},
        {"role": "assistant", "content": "Three degrees."},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
}


@pytest.mark.parametrize("there", ["sharegpt", "completion", "messages"])
def test_long_conversations_come_back_as_they_were(there: Any) -> None:
    (away,) = convert_row(LONG, there)
    (back,) = convert_row(json.loads(json.dumps(away)), "messages")
    assert back == LONG
    assert parse_row(away) == Chat(LONG["messages"], LONG["tools"])


def test_system_messages_survive_alpaca() -> None:
    chat = {"messages": [{"role": "system", "content": "S"}, *TURNS]}
    (away,) = convert_row(chat, "alpaca")
    assert away == {"instruction": QUESTION, "input": "", "output": ANSWER, "system": "S"}
    assert convert_row(away, "messages") == [chat]


def test_preferences_of_conversations() -> None:
    """With a prompt, with the prompt repeated in both sides, or without one: the common beginning."""
    bad = {"role": "assistant", "content": "Five."}
    wanted = [{"messages": TURNS}]
    for row in (
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [bad]},
        {"prompt": QUESTION, "chosen": TURNS, "rejected": [TURNS[0], bad]},
        {"chosen": TURNS, "rejected": [TURNS[0], bad]},
    ):
        assert convert_row(row, "messages") == wanted
        assert [one["label"] for one in convert_row(row, "labelled")] == [True, False]


@pytest.mark.parametrize(
    ("row", "to", "problem"),
    [
        (LONG, "alpaca", "one question and one answer"),
        ({"messages": TURNS[:1]}, "completion", "the last message is the user's"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "sharegpt", r"messages\[0\].role: 'robot'"),
        ({"conversations": [{"from": "human"}]}, "messages", r"conversations\[0\].value must be text"),
        ({"prompt": "x", "chosen": "", "rejected": "y"}, "messages", "must both hold an answer"),
        ({"chosen": "a", "rejected": "b"}, "messages", "prompt is missing"),
        ({"nothing": 1}, "messages", "say nothing"),
        ({"instruction": 5, "output": "x"}, "messages", "instruction must be text"),
    ],
)
def test_what_cannot_be_converted_says_why(row: dict[str, Any], to: Any, problem: str) -> None:
    with pytest.raises(RowError, match=problem):
        convert_row(row, to)


def node(
    name: str, parent: str | None, role: str | None, text: Any, children: list[str], **more: Any
) -> dict[str, Any]:
    message = None
    if role is not None:
        parts = text if isinstance(text, list) else [text]
        content = {"content_type": more.pop("content_type", "text"), "parts": parts}
        message = {"author": {"role": role}, "content": content, "recipient": "all", **more}
    return {"id": name, "parent": parent, "children": children, "message": message}


PICTURES = "multimodal_text"
EXPORT: dict[str, Any] = {
    "title": "Sums",
    "current_node": "h",
    "mapping": {
        "root": node("root", None, None, None, ["a"]),
        "a": node("a", "root", "system", "", ["b"], metadata={"is_visually_hidden_from_conversation": True}),
        "b": node("b", "a", "user", [QUESTION, {"asset_pointer": "x"}], ["c", "x"], content_type=PICTURES),
        "x": node("x", "b", "assistant", "An abandoned answer.", []),
        "c": node("c", "b", "assistant", "compute(2+2)", ["d"], recipient="python"),
        "d": node("d", "c", "tool", "4", ["e"]),
        "e": node("e", "d", "assistant", "hm", ["f"], content_type="thoughts"),
        "f": node("f", "e", "assistant", "Four.", ["g"]),
        "g": node("g", "f", "assistant", "Surely.", ["h"], create_time=9.0),
        "h": node("h", "g", "user", "Thanks", []),
    },
}  # fmt: skip


def test_chatgpt_exports_give_the_branch_that_was_shown() -> None:
    wanted = [{"role": "user", "content": f"{QUESTION}\n[image]"}, {"role": "assistant", "content": "Four.\n\nSurely."}]
    assert convert_row(EXPORT, "messages") == [{"title": "Sums", "messages": wanted}]
    newest = {**EXPORT, "current_node": None}
    newest["mapping"] = {name: one for name, one in EXPORT["mapping"].items() if name != "h"}
    newest["mapping"]["g"] = {**EXPORT["mapping"]["g"], "children": []}
    assert convert_row(newest, "messages", "chatgpt")[0]["messages"] == wanted


def test_broken_exports_are_refused() -> None:
    circle = {**EXPORT["mapping"], "root": node("root", "h", None, None, [])}
    for mapping, problem in (
        (circle, "own ancestor"),
        ({"h": node("h", "no", "user", "x", [])}, "no node 'no'"),
        ({}, "no node"),
    ):
        with pytest.raises(RowError, match=problem):
            convert_row({**EXPORT, "mapping": mapping}, "messages")
    with pytest.raises(RowError, match="no answer"):
        convert_row({"mapping": {"h": node("h", None, "user", "x", [])}, "current_node": "h"}, "messages")


def test_the_step_counts_and_names(tmp_path: Path) -> None:
    documents = [
        Document("a#1", "", {**ROWS["preference"], "url": "u"}, True),
        Document("a#2", "plain", {}),
        Document("a#3", "x", {"prompt": "x", "completion": "y", "label": False}, True),
    ]
    tally = Tally()
    kept = Convert(ConvertOptions(to="labelled"))(list(documents[:2]), tally)
    assert [(document.id, document.derived, document.meta["url"]) for document in kept] == [
        ("a#1", True, "u"),
        ("a#1~2", True, "u"),
    ]
    assert kept[1].text == f"{QUESTION}\nFive."
    assert tally.dropped["unconvertible"].documents == 1
    kept = Convert(ConvertOptions(to="messages"))([documents[2]], tally)
    assert not kept
    assert tally.dropped["label_false"].documents == 1
    kept = Convert(ConvertOptions(to="text"))(
        [Document("b#1", "x", {"prompt": "a", "completion": "b", "n": 1}, True)], tally
    )
    assert [(one.text, one.meta, one.derived) for one in kept] == [("ab", {"n": 1}, False)]
    with pytest.raises(ConfigError, match="a#2: text rows do not say which"):
        Convert(ConvertOptions(to="labelled", invalid="error"))(list(documents), tally)
    assert "chatgpt" in get_args(From)
