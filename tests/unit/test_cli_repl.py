"""The chat without a terminal and without weights: slash commands, multi-line input, wrap, a full context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.llm import FakeLLM, FakeTokenizer
from tokenmill.cli.repl.chat import Chat
from tokenmill.cli.repl.commands import Commands, Quit
from tokenmill.cli.repl.host import session_modelfile
from tokenmill.cli.repl.lines import LineCollector
from tokenmill.cli.repl.parameters import parse_parameter
from tokenmill.cli.repl.session import Session
from tokenmill.cli.repl.wrap import WordWrap
from tokenmill.core.errors import NotFoundError, OutOfContextError, UsageError
from tokenmill.engine.sampling_params import from_ollama
from tokenmill.store import ModelFiles
from tokenmill.store.modelfile import parse_modelfile
from tokenmill.store.parameters import HONOURED


class FakeHost:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = False

    def show(self, what: str) -> str:
        return f"about {what}"

    def list_models(self) -> str:
        return "NAME"

    def load(self, name: str) -> None:
        self.done.append(f"load {name}")

    def save(self, name: str) -> None:
        self.done.append(f"save {name}")

    def reload(self) -> None:
        if self.fails:
            raise UsageError("too large")
        self.done.append("reload")


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def session() -> Session:
    return Session(model="fake")


@pytest.fixture
def commands(session: Session, host: FakeHost) -> Commands:
    return Commands(session, host)


class TestCommands:
    def test_settings_change_the_session(self, commands: Commands, session: Session) -> None:
        for line in (
            "/set verbose",
            "/set nowordwrap",
            "/set nohistory",
            "/set format json",
            '/set system "Be brief."',
        ):
            commands.run(line)
        assert (session.verbose, session.wordwrap, session.history) == (True, False, False)
        assert (session.format, session.system) == ("json", "Be brief.")
        for line in ("/set quiet", "/set wordwrap", "/set history", "/set noformat", '/set system ""'):
            commands.run(line)
        assert (session.verbose, session.wordwrap, session.history) == (False, True, True)
        assert (session.format, session.system) == (None, "")

    def test_parameters_are_typed(self, commands: Commands, session: Session) -> None:
        commands.run("/set parameter temperature 0.5")
        commands.run("/set parameter TOP_K 40")
        commands.run('/set parameter stop "a b" c "\\n"')
        assert session.options == {"temperature": 0.5, "top_k": 40, "stop": ["a b", "c", "\n"]}

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("/frob", "/?"),
            ("/lod x", "/load"),
            ("/set verbos", "verbose"),
            ("/set verbose now", "takes nothing"),
            ("/set format yaml", "json"),
            ("/set parameter temperatur 1", "temperature"),
            ("/set parameter temperature", "one value"),
            ("/set parameter temperature warm", "a number"),
            ("/set parameter temperature 1 2", "one value"),
            ("/set parameter top_p 2", "out of range"),
            ("/set parameter num_gpu 1", "no effect"),
            ("/set parameter mirostat 1", "not supported"),
            ("/set parameter stop", "stop"),
            ("/set parameter stop 'a", "quotes"),
            ("/show everything", "/show"),
            ("/load", "/load <model>"),
            ("/save", "/save <model>"),
            ("/clear all", "takes nothing"),
            ("/bye now", "takes nothing"),
            ("/? frob", "/?"),
        ],
    )
    def test_what_is_wrong_is_said_and_changes_nothing(
        self, commands: Commands, session: Session, line: str, said: str
    ) -> None:
        before = repr(session)
        with pytest.raises(UsageError) as caught:
            commands.run(line)
        assert said in str(caught.value)
        assert repr(session) == before

    def test_models(self, commands: Commands, host: FakeHost) -> None:
        assert "other" in commands.run("/load other")
        assert "mine" in commands.run("/save mine")
        assert commands.run("/list") == "NAME"
        assert commands.run("/show info") == "about info"
        assert host.done == ["load other", "save mine"]

    def test_context_size_loads_again_or_stays(self, commands: Commands, session: Session, host: FakeHost) -> None:
        commands.run("/set parameter num_ctx 128")
        assert host.done == ["reload"]
        host.fails = True
        with pytest.raises(UsageError):
            commands.run("/set parameter num_ctx 4096")
        assert session.ctx_size == 128

    @pytest.mark.parametrize("line", ["/bye", "/exit"])
    def test_leave(self, commands: Commands, line: str) -> None:
        with pytest.raises(Quit):
            commands.run(line)

    def test_help_names_every_command(self, commands: Commands) -> None:
        text = commands.run("/?") + commands.run("/? set") + commands.run("/? shortcuts") + commands.run("/show")
        for word in ("/set", "/show", "/load", "/save", "/clear", "/list", "/bye", "nohistory", "noformat", "Ctrl + d"):
            assert word in text
        listed = commands.run("/set parameter")
        assert all(f" {name} " in listed for name in HONOURED)

    def test_clear_keeps_the_system_message(self, commands: Commands, session: Session) -> None:
        session.system, session.messages = "S", [{"role": "user", "content": "x"}]
        commands.run("/clear")
        assert session.prompt() == [{"role": "system", "content": "S"}]


def test_every_parameter_reaches_the_sampler() -> None:
    """What can be set is a field of SamplingParams, or the context size."""
    from dataclasses import fields

    from tokenmill.engine.sampling_params import SamplingParams

    typed = {n: parse_parameter(n, ["1"]) for n in HONOURED}
    changes = from_ollama(typed)
    assert len(changes) == len(HONOURED) - 1
    assert changes.keys() <= {field.name for field in fields(SamplingParams)}
    SamplingParams(**changes)


def test_negative_means_none() -> None:
    assert from_ollama({"num_predict": -1, "seed": -1}) == {"max_tokens": None, "seed": None}


class TestLines:
    def test_single_line(self) -> None:
        assert LineCollector().push("hello") == "hello"

    def test_quotes_collect_lines(self) -> None:
        lines = LineCollector()
        assert lines.push('"""one') is None
        assert lines.open
        assert lines.push("  two") is None
        assert lines.push('three"""') == "one\n  two\nthree"
        assert not lines.open

    def test_quotes_on_lines_of_their_own(self) -> None:
        lines = LineCollector()
        assert [lines.push(line) for line in ('"""', "a", '"""')] == [None, None, "\na\n"]

    def test_one_quoted_line(self) -> None:
        assert LineCollector().push('"""a"""') == "a"

    def test_opening_quotes_alone_do_not_close(self) -> None:
        lines = LineCollector()
        assert lines.push('"""') is None
        assert lines.open

    def test_drop(self) -> None:
        lines = LineCollector()
        lines.push('"""a')
        lines.drop()
        assert lines.push("b") == "b"


class TestWrap:
    @staticmethod
    def wrapped(pieces: list[str], width: int) -> str:
        out: list[str] = []
        wrap = WordWrap(out.append, lambda: width)
        for piece in pieces:
            wrap.push(piece)
        wrap.flush()
        return "".join(out)

    @pytest.mark.parametrize(
        ("text", "width", "lines"),
        [
            ("aaa bbb ccc", 7, ["aaa bbb", "ccc"]),
            ("aaa bbb ccc", 80, ["aaa bbb ccc"]),
            ("aaaaaaaaaa bb", 4, ["aaaaaaaaaa", "bb"]),
            ("a\nb c", 3, ["a", "b c"]),
            ("你好世界", 4, ["你好", "世界"]),
            ("", 4, [""]),
        ],
    )
    def test_wraps(self, text: str, width: int, lines: list[str]) -> None:
        assert [line.rstrip() for line in self.wrapped([text], width).split("\n")] == lines

    def test_pieces_do_not_matter(self) -> None:
        text = "The quick brown fox  jumps\nover 你好 the lazy dog" * 3
        assert self.wrapped(list(text), 11) == self.wrapped([text], 11)

    def test_nothing_but_spaces_and_breaks_changes(self) -> None:
        text = "word " * 40 + "\n\n  indented 你好"
        assert "".join(self.wrapped([text], 17).split()) == "".join(text.split())


class TestContext:
    @staticmethod
    def count(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def talk(self, turns: int) -> Session:
        session = Session(model="m", system="be good")
        for turn in range(turns):
            session.messages += [{"role": "user", "content": f"q{turn} x x"}, {"role": "assistant", "content": "a b c"}]
        session.messages.append({"role": "user", "content": "last one"})
        return session

    def test_what_fits_stays(self) -> None:
        session = self.talk(2)
        assert session.fit(self.count, 64) == (session.prompt(), 0)

    @pytest.mark.parametrize("ctx_size", [8, 12, 16, 20, 24, 32])
    def test_the_oldest_turns_go_the_system_message_stays(self, ctx_size: int) -> None:
        session = self.talk(4)
        prompt, dropped = session.fit(self.count, ctx_size)
        assert self.count(prompt) <= ctx_size - ctx_size // 8
        assert prompt[0]["role"] == "system"
        assert prompt[1]["role"] == "user"
        assert prompt[1:] == session.messages[dropped:]
        assert len(session.messages) == 9, "the session itself forgets nothing"

    def test_a_message_that_is_too_long_alone_is_refused(self) -> None:
        session = Session(model="m", messages=[{"role": "user", "content": "word " * 50}])
        with pytest.raises(OutOfContextError, match=r"50 tokens.*context of 16"):
            session.fit(self.count, 16)


def test_a_saved_session_reads_back() -> None:
    session = Session(
        model="smollm2:135m",
        system='Say "hi".\nAlways.',
        options={"temperature": 0.5, "stop": ["a b", "\n"], "num_ctx": 128},
        messages=[{"role": "user", "content": "one\ntwo"}, {"role": "assistant", "content": "ok"}],
    )
    read = parse_modelfile(session_modelfile(session))
    assert (read.base, read.system, read.parameters) == (session.model, session.system, session.options)
    assert read.messages == session.messages


class Keyboard:
    """Types lines; KeyboardInterrupt and EOFError among them are raised."""

    def __init__(self, *lines: Any) -> None:
        self.lines: Iterator[Any] = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self.lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        assert isinstance(line, str)
        return line


Talk = Callable[..., tuple[Session, str]]


class TestChat:
    @staticmethod
    def talk(llm: FakeLLM, *lines: Any, **settings: Any) -> tuple[Session, str]:
        out: list[str] = []
        session = Session(model="fake", **settings)
        Chat(session, lambda _: llm, Keyboard(*lines), out.append, lambda: 80).run()  # type: ignore[arg-type, return-value]
        return session, "".join(out)

    def test_a_conversation_is_kept_and_shown(self) -> None:
        llm = FakeLLM()
        _, out = self.talk(llm, "Hi", "Again")
        assert out == "Hello there.\n\n" * 2
        assert llm.asked[1] == [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello there."},
            {"role": "user", "content": "Again"},
        ]

    def test_a_modelfile_opens_the_conversation(self) -> None:
        opening = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        files = ModelFiles(name="m", path=Path("m"), system="S", messages=opening)
        llm = FakeLLM(files=files)
        self.talk(llm, "Hi")
        assert llm.asked[0] == [{"role": "system", "content": "S"}, *opening, {"role": "user", "content": "Hi"}]
        self.talk(llm, "Hi", system="mine")
        assert llm.asked[1][0] == {"role": "system", "content": "mine"}

    def test_options_reach_the_model(self) -> None:
        llm = FakeLLM()
        self.talk(llm, "/set parameter temperature 0", "Hi", options={"stop": ["x"]}, format="json")
        assert (llm.params[0].temperature, llm.params[0].stop) == (0, ("x",))
        assert llm.extra == [{"format": "json"}]

    def test_without_a_format_none_is_passed(self) -> None:
        llm = FakeLLM()
        self.talk(llm, "Hi")
        assert llm.extra == [{}]

    def test_quoted_lines_are_one_message_even_with_a_slash(self) -> None:
        llm = FakeLLM()
        self.talk(llm, '"""/usr/bin', '/set"""')
        assert llm.asked[0][0]["content"] == "/usr/bin\n/set"

    def test_empty_lines_ask_nothing(self) -> None:
        llm = FakeLLM()
        self.talk(llm, "", "   ")
        assert llm.asked == []

    def test_interrupt_stops_the_answer_not_the_chat(self) -> None:
        llm = FakeLLM(pieces=["Once ", "upon", KeyboardInterrupt()])
        session, out = self.talk(llm, "Tell", "/bye")
        assert out == "Once upon\n\n"
        assert session.messages[-1] == {"role": "assistant", "content": "Once upon"}

    def test_interrupt_before_the_first_word_takes_the_question_back(self) -> None:
        session, _ = self.talk(FakeLLM(pieces=[KeyboardInterrupt()]), "Tell")
        assert session.messages == []

    def test_interrupt_at_the_prompt_hints_and_drops_what_was_open(self, capsys: pytest.CaptureFixture[str]) -> None:
        llm = FakeLLM()
        self.talk(llm, KeyboardInterrupt(), '"""half', KeyboardInterrupt(), "whole")
        assert "/bye" in capsys.readouterr().err
        assert llm.asked[0][-1]["content"] == "whole"

    def test_errors_are_told_and_the_chat_goes_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        llm = FakeLLM(pieces=[NotFoundError("lost")])
        session, _ = self.talk(llm, "Hi", "/frob", "/set verbose")
        said = capsys.readouterr().err
        assert "Error: lost" in said
        assert "unknown command '/frob'" in said
        assert session.messages == []
        assert session.verbose

    def test_a_full_context_drops_with_a_notice(self, capsys: pytest.CaptureFixture[str]) -> None:
        llm = FakeLLM(ctx_size=24)
        self.talk(llm, *["one two three four five"] * 4)
        assert "no longer seen" in capsys.readouterr().err
        assert llm.asked[-1][0]["role"] == "user"
        assert len(llm.asked[-1]) < 7

    def test_an_answer_that_fills_the_context_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.talk(FakeLLM(finish_reason="length"), "Hi")
        assert "context is full" in capsys.readouterr().err
        self.talk(FakeLLM(finish_reason="length"), "Hi", options={"num_predict": 3})
        assert capsys.readouterr().err == ""

    def test_verbose_prints_ollamas_figures(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.talk(FakeLLM(), "Hi", verbose=True)
        said = capsys.readouterr().err
        assert [line.split(":")[0] for line in said.splitlines()] == [
            "total duration",
            "load duration",
            "prompt eval count",
            "prompt eval duration",
            "prompt eval rate",
            "eval count",
            "eval duration",
            "eval rate",
        ]
        assert "70.00 tokens/s" in said

    def test_a_model_without_a_template_gets_plain_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        llm = FakeLLM(tokenizer=FakeTokenizer(chat_template=None))
        self.talk(llm, "Once upon", "a time")
        assert llm.asked == ["Once upon", "a time"]
        assert capsys.readouterr().err.count("no chat template") == 1
        self.talk(llm, "/set system S", "Once")
        assert len(llm.asked) == 2, "a system message it cannot be given is not dropped in silence"

    def test_ctrl_c_while_a_model_loads_keeps_the_chat(self) -> None:
        session, llm = Session(model="fake"), FakeLLM()

        def open_model(wanted: Session) -> Any:
            if wanted.model != "fake":
                raise KeyboardInterrupt
            return llm

        out: list[str] = []
        Chat(session, open_model, Keyboard("/load other", "Hi"), out.append, lambda: 80).run()
        assert (session.model, len(llm.asked)) == ("fake", 1)

    def test_escape_sequences_of_a_model_do_not_reach_the_terminal(self) -> None:
        _, out = self.talk(FakeLLM(pieces=["\x1b]0;owned\x07", "hi"]), "Hi")
        assert "\x1b" not in out
        assert "\x07" not in out
