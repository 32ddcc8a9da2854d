"""Modelfiles: read as Ollama reads them, written so that they read back, refused with every problem and its line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenmill.core.errors import FormatError, StoreError
from tokenmill.store import parameters
from tokenmill.store.modelfile import Modelfile, parse_modelfile, write_modelfile


def test_all_instructions() -> None:
    read = parse_modelfile('''
# a comment
from llama3.2
PARAMETER temperature 0.7
parameter NUM_CTX 4096
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
TEMPLATE """{{ .System }}
# no comment
{{ .Prompt }}"""
SYSTEM You are "Mario" # not a comment
ADAPTER ./lora
LICENSE """
line one

line three
"""
MESSAGE user Hi
MESSAGE assistant "Hello,
again"
REQUIRES 0.14.0
''')
    assert read == Modelfile(
        base="llama3.2",
        parameters={"temperature": 0.7, "num_ctx": 4096, "stop": ["<|im_end|>", "User:"]},
        template="{{ .System }}\n# no comment\n{{ .Prompt }}",
        system='You are "Mario" # not a comment',
        adapters=["./lora"],
        licenses=["\nline one\n\nline three\n"],
        messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello,\nagain"}],
        requires="0.14.0",
    )


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("SYSTEM foo", "foo"),
        ("SYSTEM    foo  ", "foo"),
        ("SYSTEM\tfoo\r", "foo"),
        ('SYSTEM ""', ""),
        ("SYSTEM", ""),
        ('SYSTEM """"""', ""),
        ('SYSTEM """ foo """', " foo "),
        ('SYSTEM """foo"bar"""', 'foo"bar'),
        ('SYSTEM """foo""""', 'foo"'),
        ('SYSTEM "foo "bar" baz"', 'foo "bar" baz'),
        ('SYSTEM "two\nlines"', "two\nlines"),
        ('SYSTEM """\r\nfoo\r\n"""', "\r\nfoo\r\n"),
        ('SYSTEM """one""" two"""', 'one""" two'),
        ("SYSTEM fo\\no", "fo\\no"),
        ("SYSTEM foo\u2028bar", "foo\u2028bar"),  # only \n and \r end a line
    ],
)
def test_quotes(text: str, system: str) -> None:
    assert parse_modelfile(f"FROM x\n{text}\n").system == system
    assert parse_modelfile(f"{text}\r\nFROM x").system == system


def test_byte_order_mark_is_skipped() -> None:
    assert parse_modelfile("\ufeffFROM x").base == "x"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: no FROM"),
        ("SYSTEM x", "line 1: no FROM"),
        ("FROM", "line 1: FROM needs a value"),
        ("FROM x\nFROM y", "line 2: a second FROM"),
        ("FROM x\nSYSTEM a\nSYSTEM b", "line 3: a second SYSTEM"),
        ("FROM x\nTEMPALTE y", "line 2: unknown instruction 'TEMPALTE' (did you mean 'TEMPLATE'?)"),
        ("FROM x\nRENDERER qwen3", "line 2: RENDERER is not supported: it names code built into Ollama"),
        ("FROM x\nPARSER qwen3", "line 2: PARSER is not supported"),
        ("FROM x\nDRAFT y", "line 2: DRAFT is not supported"),
        ("FROM x\nREQUIRES soon", "line 2: REQUIRES 'soon' is not a version"),
        ("FROM x\nMESSAGE tool hi", "line 2: MESSAGE role 'tool' is none of"),
        ('FROM x\nSYSTEM """open\nand on', "line 2: SYSTEM: the quotes opened here are never closed"),
        ("FROM x\nSYSTEM a\x00b", "line 2: SYSTEM: control character U+0000"),
        ("FROM x\nSYSTEM a\x1b[2Jb", "line 2: SYSTEM: control character U+001B"),
        ("FROM x\nPARAMETER temprature 1", "unknown parameter 'temprature' (did you mean 'temperature'?)"),
        ("FROM x\nPARAMETER temperature hot", "temperature 'hot' is not a number"),
        ("FROM x\nPARAMETER temperature nan", "temperature nan is out of range"),
        ("FROM x\nPARAMETER temperature inf", "temperature inf is out of range"),
        ("FROM x\nPARAMETER temperature 1e999", "temperature inf is out of range"),
        ("FROM x\nPARAMETER temperature -0.1", "temperature -0.1 is out of range"),
        ("FROM x\nPARAMETER top_p 1.1", "top_p 1.1 is out of range: 0 to 1"),
        ("FROM x\nPARAMETER num_ctx 0", "num_ctx 0 is out of range"),
        ("FROM x\nPARAMETER num_ctx 4.5", "num_ctx '4.5' is not a whole number"),
        ("FROM x\nPARAMETER num_ctx 4_096", "num_ctx '4_096' is not a whole number"),
        ("FROM x\nPARAMETER num_ctx \u0664", "is not a whole number"),
        ("FROM x\nPARAMETER num_ctx " + "9" * 400, "out of range"),
        ("FROM x\nPARAMETER seed 1\nPARAMETER seed 2", "line 3: PARAMETER seed is set twice"),
        ('FROM x\nPARAMETER stop ""', "a stop string must not be empty"),
        ("FROM x\nPARAMETER stop", "a stop string must not be empty"),
        ("FROM x\nPARAMETER mirostat 1", "mirostat is not supported: Ollama itself removed it"),
        ("FROM x\n" + "PARAMETER stop a\n" * 65, "line 66: more than 64 stop strings"),
    ],
)
def test_problems_are_named(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_modelfile(text)
    assert problem in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(FormatError) as caught:
        parse_modelfile("PARAMETER top_k x\nBOGUS\nPARAMETER min_p 7")
    parts = str(caught.value).split("\n  ")
    assert len(parts) == 4
    for part, problem in zip(parts, ("no FROM", "top_k 'x'", "BOGUS", "min_p 7"), strict=True):
        assert problem in part


def test_what_is_not_honoured_is_said() -> None:
    read = parse_modelfile("FROM x\nPARAMETER num_gpu 99\nPARAMETER num_keep 4")
    assert read.parameters == {}
    assert [warning.split(":")[0] for warning in read.warnings] == ["line 2", "line 3"]
    assert "never drops tokens" in read.warnings[1]


def test_every_name_of_ollama_is_decided() -> None:
    ollama = {"num_keep", "seed", "num_predict", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "temperature"}
    ollama |= {"repeat_penalty", "presence_penalty", "frequency_penalty", "stop", "num_ctx", "num_batch", "num_gpu"}
    ollama |= {"main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
    assert ollama <= set(parameters.all_names())


# Text that a Modelfile can hold: no control characters, no lone surrogates
plain = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\t\n\r"), max_size=40)
quoted_often = st.text(st.sampled_from('"" \n\r\tab#'), max_size=25)
anything = plain | quoted_often
one_line = anything.map(lambda text: text.replace("\n", "").replace("\r", "")).filter(bool)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    name: (
        st.lists(anything.filter(bool), min_size=1, max_size=3)
        if rule.kind is str
        else st.integers(int(rule.low), int(rule.high))
        if rule.kind is int
        else st.floats(rule.low, rule.high)
    )
    for name, rule in parameters.HONOURED.items()
}
modelfiles = st.builds(
    Modelfile,
    base=one_line,
    parameters=st.fixed_dictionaries({}, optional=VALUES),
    template=st.none() | anything,
    system=st.none() | anything,
    adapters=st.lists(one_line, max_size=2),
    licenses=st.lists(anything.filter(bool), max_size=2),
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": anything}),
        max_size=2,
    ),
    requires=st.none() | st.just("0.14.0"),
)


def expressible(text: str) -> bool:
    """Whether no line of the text but the last ends in three quotes: after that the format takes it as closed."""
    return not any(line.rstrip().endswith('"""') for line in (" " + text).replace("\r", "\n").split("\n")[:-1])


@given(modelfiles)
def test_what_is_written_reads_back(written: Modelfile) -> None:
    texts = [written.template or "", written.system or "", *written.licenses, *written.parameters.get("stop", [])]
    texts += [message["content"] for message in written.messages]
    try:
        text = write_modelfile(written)
    except StoreError:
        # a quote at the start of the text, or quotes at a line's end, can close it early; nothing else is refused
        assert any('"' in text and ("\n" in text or "\r" in text) for text in texts)
        return
    assert parse_modelfile(text) == written


@given(anything)
def test_only_texts_with_a_line_ending_in_three_quotes_cannot_be_written(text: str) -> None:
    assume(expressible('"""' + text))
    assert parse_modelfile(write_modelfile(Modelfile("x", system=text))).system == text


@given(anything | st.text(max_size=60))
def test_any_text_is_a_modelfile_or_a_format_error(text: str) -> None:
    try:
        parse_modelfile("FROM x\nSYSTEM " + text)
    except FormatError:
        return


def test_a_megabyte_of_quotes_is_quick() -> None:
    text = 'SYSTEM """\n' + 'x"\n' * 300_000 + '"""\nFROM x'
    assert len(parse_modelfile(text).system or "") == 900_001


def test_a_params_layer_of_ollama() -> None:
    kept, warnings, problems = parameters.read_json(
        json.loads('{"stop": ["<|eot|>"], "temperature": 1, "num_ctx": 8192.0, "num_gpu": 1, "mirostat": 2, "new": 3}')
    )
    assert kept == {"stop": ["<|eot|>"], "temperature": 1.0, "num_ctx": 8192}
    assert isinstance(kept["temperature"], float)
    assert isinstance(kept["num_ctx"], int)
    assert len(warnings) == 3
    assert not problems


BROKEN: list[Any] = [[], "x", {"stop": [1]}, {"stop": [""]}, {"stop": {}}, {"temperature": "hot"}, {"top_p": 2}]
BROKEN += [{"temperature": True}, {"num_ctx": 1.5}, {"seed": math.inf}, {"temperature": math.nan}, {"num_ctx": None}]
BROKEN += [{"temperature": 10**400}, {"num_ctx": 10**400}]


@pytest.mark.parametrize("plain", BROKEN)
def test_a_broken_params_layer(plain: Any) -> None:
    assert len(parameters.read_json(plain)[2]) == 1
