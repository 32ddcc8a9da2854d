"""The chat on a pseudo-terminal: typed lines, slash commands, Ctrl-C, Ctrl-D, the history file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shell import PATIENCE, Terminal, environment


@pytest.fixture
def chat(model_home: Path, tmp_path: Path) -> Iterator[Terminal]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(model_home / "models")
    terminal = Terminal(["tokenmill", "run", "smollm2:135m", "--temperature", "0"], environment(home), tmp_path)
    yield terminal
    terminal.close()


def test_a_conversation(chat: Terminal, tmp_path: Path) -> None:
    chat.wait_for(">>> ")
    chat.type("What is the capital of France?\r")
    chat.wait_for("Paris")
    chat.wait_for(">>> ")

    chat.type("/set system Answer with one word.\r")
    chat.wait_for("Set system message")
    chat.type("/show system\r")
    chat.wait_for(r"Answer with one word\.[^>]*>>> ")
    chat.type("/set parameter num_predict 400\r")
    chat.wait_for("'num_predict' to '400'")
    chat.type("/show parameters\r")
    chat.wait_for("num_predict +400")
    chat.type("/frobnicate\r")
    chat.wait_for("unknown command '/frobnicate'")
    chat.type("/list\r")
    chat.wait_for("smollm2:135m")
    chat.type("/set nohistory\r")
    chat.wait_for("History is not kept")
    chat.wait_for(">>> ")

    chat.type("Count from one to a thousand, please.\r")
    chat.wait_for(r"please\.\s+\S+")
    chat.type("\x03")
    chat.wait_for(">>> ")
    assert chat.process.poll() is None, "Ctrl-C stops the answer, not the program"

    chat.type('"""two\r')
    chat.wait_for(r"\.\.\. ")
    chat.type('lines"""\r')
    chat.wait_for(">>> ")
    chat.type("/clear\r")
    chat.wait_for("Cleared")
    chat.wait_for(">>> ")
    chat.type("\x04")
    assert chat.process.wait(PATIENCE) == 0

    history = tmp_path / "home" / "history"
    assert "capital of France" in history.read_text(encoding="utf-8")
    assert "thousand" not in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0, "prompts are private"


def test_bye_and_a_hint(chat: Terminal) -> None:
    chat.wait_for(">>> ")
    chat.type("\x03")
    chat.wait_for("/bye to exit")
    chat.type("/bye\r")
    assert chat.process.wait(PATIENCE) == 0
