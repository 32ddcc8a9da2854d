"""`run`: what becomes the prompt, what --format takes, what goes to stdout; and the chat's store commands."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.llm import FakeLLM, FakeTokenizer
from tokenmill.cli import run as verb
from tokenmill.cli.app import main
from tokenmill.cli.repl.host import StoreHost
from tokenmill.cli.repl.session import Session
from tokenmill.core.errors import NotFoundError, UsageError
from tokenmill.engine.repetition import RepetitionDetection
from tokenmill.engine.sampling_params import SamplingParams
from tokenmill.store import ModelFiles


class Stdin(io.TextIOWrapper):
    """Standard input with these bytes, from a pipe or from a terminal."""

    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("given", "piped", "prompt"),
    [
        ("ask", b"", "ask"),
        (None, b"piped\n", "piped\n"),
        ("ask", b"text", "ask\n\ntext"),
        ("ask", b" \n", "ask"),
        ("ask", "ü€".encode(), "ask\n\nü€"),
    ],
)
def test_prompt(monkeypatch: pytest.MonkeyPatch, given: str | None, piped: bytes, prompt: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(piped))
    assert verb.full_prompt(given) == prompt


def test_a_terminal_without_a_prompt_is_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(terminal=True))
    assert verb.full_prompt(None) is None
    assert verb.full_prompt("ask") == "ask"


@pytest.mark.parametrize(
    ("given", "stdin"), [(None, Stdin()), ("", Stdin()), (" ", Stdin(terminal=True)), (None, None)]
)
def test_an_empty_prompt_is_refused(monkeypatch: pytest.MonkeyPatch, given: str | None, stdin: Stdin | None) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UsageError, match="empty"):
        verb.full_prompt(given)


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"ab\xff"))
    with pytest.raises(UsageError, match="byte 2"):
        verb.full_prompt(None)


def test_format(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}', encoding="utf-8")
    assert verb.parse_format(None) is None
    assert verb.parse_format("json") == "json"
    assert verb.parse_format('{"type": "object"}') == {"type": "object"}
    assert verb.parse_format(str(tmp_path / "schema.json")) == {"type": "object"}
    (tmp_path / "list.json").write_text("[1]", encoding="utf-8")
    for wrong in ("yaml", "{", str(tmp_path), str(tmp_path / "list.json")):
        with pytest.raises(UsageError, match="--format"):
            verb.parse_format(wrong)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """A model in the place of the real one; torch is not imported either."""
    llm = FakeLLM()
    monkeypatch.setattr(verb, "open_model", lambda session: llm)
    monkeypatch.setattr(verb, "_import_ahead", lambda: None)
    monkeypatch.setattr(sys, "stdin", Stdin())
    return llm


def test_one_shot(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--system", "S", "--temperature", "0", "--top-p", "0.5", "--top-k", "3", "--min-p", "0.1", "--seed", "4"]
    assert main(["run", "m", "why", "is", "it", *words, "--max-tokens", "9", "--stop", "a", "--stop", "b"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("Hello there.\n", "")
    assert fake.asked == [[{"role": "system", "content": "S"}, {"role": "user", "content": "why is it"}]]
    (params,) = fake.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 3, 0.1)
    assert (params.seed, params.max_tokens, params.stop) == (4, 9, ("a", "b"))


def test_what_is_not_given_comes_from_the_model(fake: FakeLLM) -> None:
    assert main(["run", "m", "x"]) == 0
    assert fake.params == [replace(fake.default_params, repetition_detection=RepetitionDetection())]


def test_json_is_all_of_stdout(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m", "x", "--json", "--verbose"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert captured.out.count("\n") == 1
    assert (answer["model"], answer["text"], answer["finish_reason"]) == ("m", "Hello there.", "stop")
    assert "eval rate" in captured.err


def test_a_pipe_gets_the_text_as_it_is(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    fake.pieces = ["a\x1b[0m\r", "b\n"]
    assert main(["run", "m", "x"]) == 0
    assert capsys.readouterr().out == "a\x1b[0m\rb\n"


def test_a_full_context_is_told_and_a_limit_is_not(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    fake.finish_reason = "length"
    assert main(["run", "m", "x"]) == 0
    assert "context is full" in capsys.readouterr().err
    assert main(["run", "m", "x", "--max-tokens", "3"]) == 0
    fake.default_params = SamplingParams(max_tokens=3)  # the Modelfile's
    assert main(["run", "m", "x"]) == 0
    assert capsys.readouterr().err == ""


def test_an_answer_that_repeats_itself_is_told(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    fake.finish_reason = "repetition"
    assert main(["run", "m", "x"]) == 0
    assert "repeats itself" in capsys.readouterr().err
    assert main(["run", "m", "x", "--max-tokens", "300"]) == 0
    assert fake.params[-1].repetition_detection is None  # the person's limit holds


def test_a_terminal_gets_whole_words_and_no_control_characters(
    fake: FakeLLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "10")
    fake.pieces = ["one two th", "ree\x1b[2J", " four"]
    assert main(["run", "m", "x"]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["one two", "three[2J", "four"]
    assert main(["run", "m", "x", "--nowordwrap"]) == 0
    assert capsys.readouterr().out == "one two three[2J four\n"


def test_a_model_without_a_template_continues_the_text(fake: FakeLLM) -> None:
    fake.tokenizer = FakeTokenizer(None)
    assert main(["run", "m", "Once"]) == 0
    assert fake.asked == ["Once"]


def test_a_system_message_needs_a_template(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is accepted and ignored."""
    fake.tokenizer = FakeTokenizer(None)
    assert main(["run", "m", "Once", "--system", "S"]) == 2
    assert "template" in capsys.readouterr().err
    fake.files = ModelFiles(name="m", path=Path("m"), messages=[{"role": "user", "content": "Aye?"}])
    assert main(["run", "m", "Once"]) == 2
    assert fake.asked == []


def test_ctrl_c_in_one_shot_is_130(fake: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    fake.pieces = ["a", KeyboardInterrupt()]
    assert main(["run", "m", "x"]) == 130
    assert capsys.readouterr().err == ""


def test_json_needs_a_prompt(fake: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(terminal=True))
    assert main(["run", "m", "--json"]) == 2


class TestHost:
    @staticmethod
    def host(session: Session, **models: FakeLLM) -> StoreHost:
        def open_model(wanted: Session) -> Any:
            if wanted.model not in models:
                raise NotFoundError(wanted.model)
            return models[wanted.model]

        return StoreHost(session, open_model)

    def test_load_begins_anew(self) -> None:
        session = Session(model="a", options={"temperature": 0.1}, adapters=["x"])
        other = FakeLLM(files=ModelFiles(name="b", path=Path("b"), system="S"))
        host = self.host(session, a=FakeLLM(), b=other)
        session.messages.append({"role": "user", "content": "old"})
        host.load("b")
        assert host.llm is other
        assert (session.model, session.system, session.options, session.adapters) == ("b", "S", {}, [])
        assert session.messages == []

    def test_a_load_that_fails_changes_nothing(self) -> None:
        session = Session(model="a", options={"temperature": 0.1}, messages=[{"role": "user", "content": "old"}])
        host = self.host(session, a=FakeLLM())
        before = repr(session)
        with pytest.raises(NotFoundError):
            host.load("b")
        assert repr(session) == before

    def test_show_tells_what_the_session_changed(self) -> None:
        files = ModelFiles(name="a", path=Path("a"), parameters={"temperature": 0.2, "stop": ["x"]})
        session = Session(model="a", options={"top_k": 5})
        host = self.host(session, a=FakeLLM(files=files))
        text = host.show("parameters")
        assert "temperature" in text.split("User defined")[0]
        assert "top_k" in text.split("User defined")[1]
        assert host.show("system") == "No system message was specified for this model."
        session.system = "Be brief."
        assert host.show("system") == "Be brief."
        assert "No license" in host.show("license")
