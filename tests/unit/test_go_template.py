"""Go templates: what Go 1.27 and Ollama's template package make of the same templates, and attacks on the engine.

The golden files under tests/data/go_templates were recorded from Go's text/template: language.golden.json directly (an
output of null: Go refuses), conversations.golden.json through Ollama's Execute, with tools printed as JSON throughout
(`{{ .Function }}`, which older Ollama prints so and newer prints as a bare Go struct).
"""

from __future__ import annotations

import json
import resource
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.core.errors import TemplateError
from tokenmill.text.go_template import GoTemplate, functions, looks_like_go, render_chat
from tokenmill.text.go_template.parser import Parser
from tokenmill.text.go_template.render import Renderer

DATA = Path(__file__).parents[1] / "data" / "go_templates"
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.gotmpl"))}
CONVERSATIONS = json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
GOLDEN = json.loads((DATA / "conversations.golden.json").read_text(encoding="utf-8"))
LANGUAGE = json.loads((DATA / "language.golden.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "hi"}]


def run(source: str, data: Any) -> str:
    """A template over data of any shape, as Go's Execute."""
    return Renderer(Parser(source, functions.NAMES).parse(), data, date(2026, 1, 1)).run()


# what the owners of the format say


def test_language_is_gos() -> None:
    wrong = []
    for source, expected in LANGUAGE["cases"]:
        try:
            actual = run(source, LANGUAGE["data"])
        except TemplateError:
            actual = None
        if actual != expected:
            wrong.append((source, expected, actual))
    assert not wrong, wrong[:3]
    assert sum(expected is not None for _, expected in LANGUAGE["cases"]) > 250


@pytest.mark.parametrize("name", SOURCES)
def test_conversations_are_ollamas(name: str) -> None:
    template = GoTemplate(SOURCES[name])
    for case, expected in GOLDEN[name].items():
        conversation = CONVERSATIONS[case]
        assert template.render_chat(conversation["messages"], conversation.get("tools")) == expected, case
    assert len(GOLDEN[name]) >= 5


def test_chatml_by_hand() -> None:
    messages = [{"role": "system", "content": "S"}, *USER]
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render_chat(SOURCES["chatml_old"], messages) == expected
    assert render_chat(SOURCES["smollm2"], messages) == expected


def test_without_response_it_is_added_at_the_end() -> None:
    assert render_chat("[{{ .Prompt }}] ", [*USER, {"role": "assistant", "content": "yes"}]) == "[hi] yes"


def test_fill_in_the_middle() -> None:
    template = GoTemplate(SOURCES["qwen2.5"])
    assert "Suffix" in template.fields
    expected = "<|fim_prefix|>def add(<|fim_suffix|>return x<|fim_middle|>"
    assert template.render(prompt="def add(", suffix="return x") == expected


@pytest.mark.parametrize(
    ("think", "ending"),
    [
        (None, "hi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "hi /think<|im_end|>\n<|im_start|>assistant\n"),
        (False, "hi /no_think<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_switch(think: bool | None, ending: str) -> None:
    assert GoTemplate(SOURCES["qwen3"]).render_chat(USER, think=think).endswith(ending)


def test_dates() -> None:
    source = "{{ range .Messages }}{{ end }}{{ currentDate }} {{ yesterdayDate }}"
    assert GoTemplate(source).render_chat(USER, today=date(2026, 3, 1)) == "2026-03-01 2026-02-28"


def test_openai_arguments_and_parts() -> None:
    source = "{{ range .Messages }}{{ .Content }}{{ range .ToolCalls }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2.0}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render_chat(source, messages) == 'ab{"a":2,"b":1}'


def test_schema_keys_that_ollama_drops_are_kept() -> None:
    schema = {"type": "object", "properties": {"n": {"minimum": 1, "type": "integer"}}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    printed = render_chat("{{ range .Messages }}{{ end }}{{ range .Tools }}{{ .Function }}{{ end }}", USER, [tool])
    assert json.loads(printed) == {"name": "f", "description": "", "parameters": schema, "strict": True}
    assert printed.index('"type"') < printed.index('"minimum"')


def test_finished_conversation_of_an_old_template() -> None:
    messages = [*USER, {"role": "assistant", "content": "yes"}]
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert render_chat(SOURCES["chatml_old"], messages, add_generation_prompt=False) == expected
    with pytest.raises(TemplateError, match="add_generation_prompt"):
        render_chat(SOURCES["chatml_old"], USER, add_generation_prompt=False)
    with pytest.raises(TemplateError, match="add_generation_prompt"):
        render_chat(SOURCES["smollm2"], messages, add_generation_prompt=False)


@pytest.mark.parametrize(
    "source",
    [
        "{{ .Prompt }}{{ .Response }}<end>",
        "{{ .Prompt }}{{ if true }}{{ .Response }}<x>{{ end }}<end>",
        "{{ .Prompt }}{{ if false }}{{ .Response }}<x>{{ else }}{{ .Response }}<y>{{ end }}<end>",
        "{{ .Prompt }}{{ $.Response }}<end>",
        '{{ define "a" }}{{ .Response }}<x>{{ end }}{{ .Prompt }}{{ template "a" . }}<end>',
        '{{ define "a" }}{{ template "b" . }}<x>{{ end }}{{ define "b" }}{{ .Response }}<y>{{ end }}'
        '{{ .Prompt }}{{ template "a" . }}<end>',
    ],
)
def test_last_round_is_cut_at_the_response(source: str) -> None:
    assert render_chat(source, [*USER, {"role": "assistant", "content": "ye"}]) == "hiye"


# refusals


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a\n{{ .Sytem }}", r"line 2: the template's data has no field .Sytem \(did you mean 'System'\?\)"),
        ("{{ range .Messages }}\n{{ .Contents }}{{ end }}", r"line 2: Message has no field .Contents"),
        ("\n\n{{ toUpper .System }}", r"line 3: unknown function 'toUpper'"),
        ("{{ html .System }}", r"unknown function 'html'.*known: .*printf"),
        ("{{ if .System }}\n{{ .Prompt }", r"line 2: unexpected '}'"),
        ("{{ if .System }}\n{{ .Prompt ", r"line 2: an action {{ is not closed"),
        ("{{ if .System }}\nx", r"expected {{ end }} of if \(line 1\), found 'end of template'"),
        ("{{ template `x` . }}", r"template 'x' is not defined"),
        ("{{ $a := 1 }}{{ $b }}", r"variable '\$b' was never declared"),
        ("{{ printf `%d` .System }}", r"printf '%d' cannot write a string"),
        ("{{ /* x }}", r"line 1: unexpected '/\* x }}'"),
        ("{{/* x }}", r"comment"),
        ("{{ currentDate `2006` }}", r"takes no arguments"),
        ("{{ 99999999999999999999 }}", r"64 bits"),
        ('{{ "\\ud800" }}', r"bad escape"),
    ],
)
def test_refused_with_line_and_name(source: str, found: str) -> None:
    with pytest.raises(TemplateError, match=found):
        render_chat(source, [{"role": "system", "content": "S"}, *USER])


@pytest.mark.parametrize(
    ("name", "messages", "tools", "found"),
    [
        ("chatml_old", USER, [{"function": {"name": "f"}}], "no place for tools"),
        ("chatml_old", [*USER, {"role": "tool", "content": "7"}], None, "role 'tool'"),
        ("smollm2", [], None, "at least one message"),
        ("smollm2", [{"content": "x"}], None, "message 0"),
        ("smollm2", [{"role": "user", "content": 7}], None, "content must be a text"),
        ("smollm2", [{"role": "user", "content": [{"type": "image_url"}]}], None, "text parts only, found 'image_url'"),
        ("smollm2", [{"role": "user", "contents": "x"}], None, "did you mean 'content'"),
        ("smollm2", [{"role": "assistant", "tool_calls": [{}]}], None, "names no function"),
        (
            "smollm2",
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            None,
            "JSON",
        ),
        ("smollm2", USER, [{"type": "function"}], "tool 0"),
        ("smollm2", USER, [{"function": {"name": "f", "parameters": []}}], "object of JSON Schema"),
        ("smollm2", USER, [{"function": {"name": "f", "parameters": {"properties": {"a": 1}}}}], "JSON Schema"),
    ],
)
def test_conversation_refused(name: str, messages: list[Any], tools: list[Any] | None, found: str) -> None:
    with pytest.raises(TemplateError, match=found):
        render_chat(SOURCES[name], messages, tools)


# attacks


def nest(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = {"a": leaf}
    return leaf


ATTACKS = {
    "deep if": "{{ if true }}" * 5000 + "{{ end }}" * 5000,
    "deep parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep else if": "{{ if false }}" + "{{ else if false }}" * 5000 + "{{ end }}",
    "endless range": "{{ range 999999999999 }}{{ end }}",
    "nested ranges": "{{ range 9999 }}{{ range 9999 }}{{ range 9999 }}x{{ end }}{{ end }}{{ end }}",
    "template calls itself": '{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}',
    "templates double": "".join(
        f'{{{{ define "t{i}" }}}}{{{{ template "t{i + 1}" }}}}{{{{ template "t{i + 1}" }}}}{{{{ end }}}}'
        for i in range(40)
    )
    + '{{ define "t40" }}x{{ end }}{{ template "t0" }}',
    "string doubles": '{{ $x := "aaaaaaaaaaaaaaaa" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}',
    "string doubles in one call": '{{ $x := printf "%999s" "" }}{{ range 9 }}{{ $x = print $x'
    + " $x" * 60
    + " }}{{ end }}",
    "many large strings": "{{ $x := printf `%1000s` `` }}{{ range 12 }}{{ $x = print $x $x }}{{ end }}"
    + "".join(f"{{{{ $y{i} := print $x $x {i} }}}}" for i in range(300)),
    "wide": "{{ printf `%999999999d` 1 }}",
    "wide precision": "{{ printf `%.999999999f` 1.0 }}",
    "wide by many": "{{ range 99999 }}{{ printf `%1000d` 1 }}{{ end }}",
    "length of a long string": "{{ $x := printf `%1000s` `é` }}{{ range 12 }}{{ $x = print $x $x }}{{ end }}"
    "{{ range 100000 }}{{ $y := len $x }}{{ end }}",
    "tools again and again": "{{ range 100000 }}{{ range $.Messages }}{{ end }}{{ $x := json $.Tools }}{{ end }}",
    "long": "x" * 300_000,
    "unclosed quotes": '{{ "' * 20_000,
    "open actions": "{{" * 50_000,
    "open comments": "{{/*" * 50_000,
    "spaces": "{{ .Prompt" + " " * 100_000 + "x }}",
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.timeout(20)
def test_attack_ends_in_an_error_and_bounded_memory(name: str) -> None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {str(i): {} for i in range(1000)}}}}]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateError):
        GoTemplate(ATTACKS[name]).render(tools=tools)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.timeout(20)
def test_old_template_whose_calls_nest_is_refused_before_it_is_cut() -> None:
    calls = "".join(f'{{{{ define "t{i}" }}}}{{{{ template "t{i + 1}" }}}}{{{{ end }}}}' for i in range(999))
    with pytest.raises(TemplateError, match="call each other"):
        render_chat(calls + '{{ define "t999" }}{{ end }}{{ template "t0" }}{{ .Response }}', USER)


def test_deep_data_is_refused() -> None:
    call = {"function": {"name": "f", "arguments": nest(3000, 1)}}
    with pytest.raises(TemplateError, match="nested deeper"):
        render_chat(SOURCES["smollm2"], [{"role": "assistant", "tool_calls": [call]}])
    call = {"function": {"name": "f", "arguments": '{"a":' * 100_000 + "1" + "}" * 100_000}}
    with pytest.raises(TemplateError):
        render_chat(SOURCES["smollm2"], [{"role": "assistant", "tool_calls": [call]}])


def test_long_honest_conversation_fits() -> None:
    rounds = [{"role": "user", "content": "é" * 1000}, {"role": "assistant", "content": "y" * 1000}] * 1000
    for name, source in SOURCES.items():
        assert len(render_chat(source, [*rounds, *USER])) > 2_000_000, name


def test_lone_surrogates_do_not_reach_the_prompt() -> None:
    text = render_chat("\ud800{{ .Prompt }}", [{"role": "user", "content": "a\udfff\udc80\U0001f600"}])
    assert text == "\ufffda\ufffd\ufffd\U0001f600"
    assert render_chat("{{ slice .Prompt 0 1 }}", [{"role": "user", "content": "é"}]) == "\ufffd"


WORDS = (
    "{{ }} {{- -}} if else end range with define template block break continue . .Messages .Role .Tools $ $x := = , |",
    '( ) "a" `b` 1 -2 3.5 1e400 0x \'c\' nil true and or not eq lt len index slice print printf json "%s" "%9999d" /*',
    "*/ \\ é",
)
PIECES = st.lists(st.sampled_from([*" ".join(WORDS).split(), "\n"]), max_size=40).map(" ".join)


@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(max_size=60), PIECES, PIECES.map(lambda inner: "{{ " + inner + " }}")))
def test_any_text_renders_or_raises_template_error(source: str) -> None:
    try:
        text = GoTemplate(source).render(prompt="p", messages=USER)
    except TemplateError:
        return
    text.encode()


# which language


@pytest.mark.parametrize("name", SOURCES)
def test_known_templates_look_like_go(name: str) -> None:
    assert looks_like_go(SOURCES[name])


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{{ bos_token }}{%- if tools %}x{%- endif %}",
        "{{ bos_token + messages[0].content }}",
        "{{- raise_exception('no .System here') -}}",
        "{{ messages | selectattr('role') | list }}",
        "plain text",
        "",
        "{{ .Prompt",
    ],
)
def test_others_do_not(source: str) -> None:
    assert not looks_like_go(source)
