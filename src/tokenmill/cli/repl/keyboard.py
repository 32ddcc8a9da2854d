"""Reading lines from a terminal: editing keys, history that outlives the program, pasted text of many lines.

The history is a file of the person's own (mode 600), because prompts are private. ``/set nohistory`` stops writing to
it at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.repl.session import Session

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HINT = "Send a message (/? for help)"


def line_reader(session: Session, history_file: Path) -> Callable[[str], str]:
    """A function that shows a prompt and gives the line typed. Ctrl-D raises EOFError, Ctrl-C KeyboardInterrupt."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    history_file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(history_file, os.O_CREAT | os.O_APPEND, 0o600))

    class PrivateHistory(FileHistory):
        def store_string(self, string: str) -> None:
            if session.history:
                super().store_string(string)

    prompts: PromptSession[str] = PromptSession(
        history=PrivateHistory(history_file),
        key_bindings=_keys(),
        output=create_output(always_prefer_tty=True),  # `run m > file` keeps the prompts out of the file
    )

    def read(prompt: str) -> str:
        hint = FormattedText([("class:placeholder ansibrightblack", HINT)]) if prompt.startswith(">") else None
        return prompts.prompt(prompt, placeholder=hint)

    return read


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("c-g")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys
