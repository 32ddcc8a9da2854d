"""`run` with a running server: asked where it can do what is wanted, and where it cannot the person is told why."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from fakes.server import Exchange, Seen, Server
from fakes.tiny_llm import CHATML, serving, tiny_app, tiny_store
from tokenmill import LLM
from tokenmill.cli import run as verb
from tokenmill.cli.app import main
from tokenmill.cli.remote import something_listens
from tokenmill.cli.repl.chat import Chat
from tokenmill.cli.repl.session import Session
from tokenmill.cli.served import ServedModel, find
from tokenmill.serve.settings import key_hash
from tokenmill.store import Store

KEY = "correct-horse-battery"
# small steps, and a stop text of the author's, so that defaults of the model show
MODELFILE = "PARAMETER repeat_penalty 1.5\nPARAMETER stop zzz\nPARAMETER num_predict 7\nSYSTEM Be brief."


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("served"), modelfile=MODELFILE)


@pytest.fixture(scope="module")
def app(store: Store) -> FastAPI:
    return tiny_app(Path(), store=store, api_keys=frozenset({key_hash(KEY)}))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(autouse=True)
def there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the one that is meant, its key is known, and nothing may be loaded here."""
    monkeypatch.setenv("TOKENMILL_HOST", url.removeprefix("http://"))
    monkeypatch.setenv("TOKENMILL_API_KEY", KEY)
    monkeypatch.setattr(sys, "stdin", None)

    def refuse() -> None:
        raise AssertionError("the model is loaded in this process")

    monkeypatch.setattr(verb, "_import_ahead", refuse)


@pytest.fixture(scope="module")
def llm(store: Store) -> LLM:
    return LLM("tiny", store=store, dtype="float32")


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["run", "tiny", "the cat sat", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_answer_is_the_librarys(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat sat"}]
    for words, changes in (
        ((), {"temperature": 0}),
        (("--max-tokens", "12"), {"temperature": 0, "max_tokens": 12}),
        (("--temperature", "1.5", "--seed", "5"), {"temperature": 1.5, "seed": 5}),
        (("--temperature", "2", "--seed", "5", "--top-k", "3"), {"temperature": 2, "seed": 5, "top_k": 3}),
        (("--temperature", "2", "--seed", "5", "--top-p", "0.1"), {"temperature": 2, "seed": 5, "top_p": 0.1}),
        (("--temperature", "2", "--seed", "5", "--min-p", "0.5"), {"temperature": 2, "seed": 5, "min_p": 0.5}),
    ):
        cold = () if "--temperature" in words else ("--temperature", "0")
        params = replace(llm.default_params, **changes)
        wanted = llm.chat(messages, params)
        answer = answered(capsys, *words, *cold)
        assert (answer["text"], answer["finish_reason"]) == (wanted.text, wanted.finish_reason), words
        assert answer["completion_tokens"] == len(wanted.token_ids)


def test_system_stop_format_and_context_reach_the_model(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answered(capsys, "--temperature", "0")
    other = answered(capsys, "--temperature", "0", "--system", "You are a poet who never stops.")
    assert other["prompt_tokens"] > plain["prompt_tokens"]
    cut = plain["text"][2:4]
    stopped = answered(capsys, "--temperature", "0", "--stop", cut)
    assert (stopped["text"], stopped["finish_reason"]) == (plain["text"][: plain["text"].index(cut)], "stop")
    schema = '{"enum": ["yes", "no"]}'
    assert answered(capsys, "--format", schema, "--seed", "1", "--max-tokens", "9")["text"] in ('"yes"', '"no"')
    small = plain["prompt_tokens"] + 3
    assert answered(capsys, "--temperature", "0", "--ctx-size", str(small))["completion_tokens"] == 3


def test_verbose_prints_the_servers_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "the cat", "--verbose", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    for line in ("total duration", "load duration", "prompt eval rate", "eval count:           7 token(s)"):
        assert line in captured.err
    assert captured.out.strip()


def test_the_servers_refusals_are_the_persons_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "the cat " * 600]) == 2
    assert "512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "environment", "why"),
    [
        (["tiny", "--adapter", "x"], {}, "takes no adapter"),
        (["tiny", "--ctx-size", "4096"], {}, "a context of 512"),
        (["nobody"], {}, "not on this machine"),
        (["tiny"], {"TOKENMILL_API_KEY": "another-key-1"}, "API key"),
    ],
)
def test_what_the_server_cannot_do_is_done_here_and_said(
    words: list[str],
    environment: dict[str, str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name, *options = words
    with pytest.raises(AssertionError, match="in this process"):
        verb.open_model(Session(model=name, adapters=["x"] if "--adapter" in options else [], options=_size(options)))
    told = capsys.readouterr().err
    assert "running in this process" in told
    assert why in told
    assert KEY not in told


def _size(options: list[str]) -> dict[str, Any]:
    return {"num_ctx": int(options[1])} if "--ctx-size" in options else {}


def test_a_path_local_and_no_server_are_run_here_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sessions = [Session(model=str(tmp_path)), Session(model="tiny", local=True), Session(model="tiny")]
    for session in sessions:
        if session is sessions[-1]:
            monkeypatch.setenv("TOKENMILL_HOST", "127.0.0.1:1")
        with pytest.raises(AssertionError, match="in this process"):
            verb.open_model(session)
    assert capsys.readouterr().err == ""


class Ollama(Server):
    """Answers as another program on Ollama's port would: no /health."""

    def answer(self, exchange: Exchange, seen: Seen) -> None:
        exchange.reply(404, b"404 page not found")


def test_another_program_on_the_port_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ollama() as other:
        monkeypatch.setenv("TOKENMILL_HOST", other.url)
        assert find(Session(model="tiny")) is None
        assert [seen.path for seen in other.seen] == ["/health"]
        assert not any("authorization" in seen.headers for seen in other.seen), "the key is not for strangers"


def test_what_is_no_server_of_models_is_not_told_as_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ollama() as other:
        monkeypatch.setenv("TOKENMILL_HOST", other.url)
        assert main(["ps"]) == 1
    assert f"what answers at {other.url} is no server of models" in capsys.readouterr().err
    monkeypatch.setenv("TOKENMILL_HOST", "127.0.0.1:1")
    assert main(["ps"]) == 1
    assert "no server answers at http://127.0.0.1:1 " in capsys.readouterr().err


def test_without_the_setting_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENMILL_HOST")
    monkeypatch.setattr("tokenmill.cli.remote.DEFAULT_PORT", 1)
    began = time.perf_counter()
    assert not something_listens()
    assert time.perf_counter() - began < 0.4


def chat_of(said: list[str]) -> tuple[Chat, list[str]]:
    out: list[str] = []
    typed = iter(said)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    return Chat(Session(model="tiny", options={"temperature": 0}), verb.open_model, read, out.append, lambda: 80), out


def test_a_chat_asks_the_server(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["the cat", "/show info", "/show system", "/show parameters", "/show template", "and the dog"]
    chat, out = chat_of([*lines, "x " * 600])
    chat.run()
    text = "".join(out)
    turns = chat.session.messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    assert turns[1]["content"] == llm.chat(first, replace(llm.default_params, temperature=0)).text
    for told in ("llama", "512", "Be brief.", "repeat_penalty", CHATML[:20]):
        assert told in text
    assert "tokens long" in capsys.readouterr().err, "the last message does not fit"


def test_leaving_an_answer_ends_the_servers_work(app: FastAPI) -> None:
    model = find(Session(model="tiny"))
    assert isinstance(model, ServedModel)
    pieces = model.stream([{"role": "user", "content": "x"}], model.settings({"num_predict": 400, "temperature": 1.5}))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    (loaded,) = app.state.manager.loaded()
    for _ in range(500):
        if not loaded.worker.busy:
            break
        time.sleep(0.01)
    assert not loaded.worker.busy


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([("a", ""), ("b", ""), ("", "c"), ("", "d")], "<think>\nab\n</think>\n\ncd"),
        ([("a", "c"), ("", "d")], "<think>\na\n</think>\n\ncd"),
        ([("a", "")], "<think>\na\n</think>\n\n"),
        ([("", "c")], "c"),
    ],
)
def test_thinking_stays_in_the_text(parts: list[tuple[str, str]], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server tells it apart; in this process it is part of the text."""
    said: list[dict[str, Any]] = [
        {"message": {"content": content, **({"thinking": thought} if thought else {})}, "done": False}
        for thought, content in parts
    ]
    counts = dict.fromkeys(("prompt_eval_count", "eval_count"), 1)
    times = dict.fromkeys(("prompt_eval_duration", "eval_duration", "load_duration", "total_duration"), 1)
    said.append({"message": {"content": ""}, "done": True, "done_reason": "stop", **counts, **times})
    monkeypatch.setattr("tokenmill.cli.served.lines", lambda path, body: iter(said))
    model = ServedModel("m", {"template": "x", "parameters": ""}, 512)
    assert "".join(piece.text for piece in model.stream([], model.settings({}))) == text


def test_asking_a_server_imports_no_torch() -> None:
    code = (
        "import sys; from tokenmill.cli.app import main; status = main(['run', 'tiny', 'the cat']); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
