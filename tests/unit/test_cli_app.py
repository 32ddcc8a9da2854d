"""The entry point: exit statuses, messages without tracebacks, --debug, broken pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from tokenmill.cli import app as cli
from tokenmill.core.errors import NotFoundError, OutOfContextError, UnknownNameError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Puts a function in the place of the verb ``doctor``."""

    def put(function: Callable[[], None]) -> None:
        one = typer.Typer()
        one.command()(function)
        monkeypatch.setattr(cli, "load_verb", lambda name: typer.main.get_command(one))

    return put


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (NotFoundError("no model 'x'"), 1, "Error: no model 'x'\n"),
        (UnknownNameError("no recipe 'x'"), 2, "Error: no recipe 'x'\n"),
        (OutOfContextError("too long"), 2, "Error: too long\n"),
        (PermissionError(13, "Permission denied", "file"), 1, "Error: file: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "Error: No space left on device\n"),
        (OSError("told by a library"), 1, "Error: told by a library\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_messages_and_statuses(
    verb: Callable[[Callable[[], None]], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    verb(raising(error))
    assert cli.main(["doctor"]) == status
    captured = capsys.readouterr()
    assert captured.err == said
    assert captured.out == ""


def test_what_is_gone_is_said_before_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path))
    left = ["one"]
    monkeypatch.setattr("tokenmill.store.Store.remove", lambda self, name: left.remove(name))
    assert cli.main(["rm", "one", "two"]) == 1
    assert capsys.readouterr().out == "deleted 'one'\n"


def test_a_bug_of_ours_is_called_one(
    verb: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(ZeroDivisionError("division by zero")))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("words", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    verb: Callable[[Callable[[], None]], None], words: list[str]
) -> None:
    verb(raising(NotFoundError("gone")))
    with pytest.raises(NotFoundError):
        cli.main(words)


def test_debug_after_two_dashes_is_an_argument() -> None:
    assert cli._take_debug(["run", "m", "--", "--debug"]) == (["run", "m", "--", "--debug"], False)
    assert cli._take_debug(["run", "--debug", "m"]) == (["run", "m"], True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["pull"], "NAME"),
        (["list", "--jsn"], "--json"),
        (["run", "m", "x", "--temperature", "warm"], "temperature"),
        (["run", "m", "x", "--top-p", "2"], "top-p"),
        (["eval", "pl"], "ppl"),
    ],
)
def test_wrong_usage_is_2_and_names_the_place(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tokenmill ")


def test_an_alias_is_its_verb(verb: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda: print("listed"))
    assert cli.main(["ls"]) == 0
    assert capsys.readouterr().out == "listed\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    """``tokenmill … | head -0`` prints no complaint, neither ours nor Python's at exit."""
    code = "from tokenmill.cli.app import main; raise SystemExit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_terminal_of_few_characters_is_no_error() -> None:
    code = "from tokenmill.cli.app import main; main(['--version']); print('a…')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\na?\n")


def test_a_template_that_cannot_run_is_refused_before_anything_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKENMILL_HOME", str(tmp_path))
    modelfile = tmp_path / "Modelfile"
    for source in ("{{ .Prompt | foo }}{{ .Response }}", "{% for %}"):
        modelfile.write_text(f'FROM nothing\nTEMPLATE """{source}"""\n', encoding="utf-8")
        assert cli.main(["create", "broken", "-f", str(modelfile)]) == 2
        assert "template" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["train", "loar"], "lora"),
        (["data", "run", "wbe", "input=x", "output=y"], "web"),
        (["plan", "memory", "llama-3.1-8b", "--gpu", "rtx-4091"], "rtx-4090"),
        (["eval", "tasks", "nosuch.gguf", "--tasks", "redding"], "reading"),
    ],
)
def test_a_name_of_a_few_is_wrong_usage(words: list[str], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert f"did you mean '{near}'" in capsys.readouterr().err


def test_an_unknown_log_level_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TOKENMILL_LOG", "loud")
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith("Error: TOKENMILL_LOG is 'loud'; it takes debug, info, ")
