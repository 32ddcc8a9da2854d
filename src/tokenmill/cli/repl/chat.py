"""The chat's loop: reads a line, carries out a command or asks the model, and keeps the conversation.

Joined to the outside by three values: `open_model` loads what the session names, `read` gives a typed line, `out`
prints. With fakes for them all of it runs in a test. Ctrl-C stops an answer, not the program, and what was said until
then stays in the conversation; Ctrl-D and /bye leave.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from tokenmill.cli.answer import INTERRUPTED, Answer, ask, settings_of, speaks_chat, told_end
from tokenmill.cli.output import note
from tokenmill.cli.repl.commands import Commands, Quit
from tokenmill.cli.repl.host import StoreHost
from tokenmill.cli.repl.lines import LineCollector
from tokenmill.cli.repl.session import Message, Session
from tokenmill.cli.repl.wrap import WordWrap
from tokenmill.core.errors import TokenmillError
from tokenmill.core.terminal import clean

if TYPE_CHECKING:
    from tokenmill import LLM, SamplingParams
    from tokenmill.cli.served import ServedModel, ServedSettings

PROMPT, CONTINUED = ">>> ", "... "


class Chat:
    """One chat with one person. ``run`` ends when they leave."""

    def __init__(
        self,
        session: Session,
        open_model: Callable[[Session], LLM | ServedModel],
        read: Callable[[str], str],
        out: Callable[[str], object],
        width: Callable[[], int] = lambda: shutil.get_terminal_size().columns,
    ) -> None:
        self.session = session
        self._read, self._out, self._width = read, out, width
        self._host = StoreHost(session, open_model)
        self._commands = Commands(session, self._host)
        self._lines = LineCollector()

    def run(self) -> None:
        """Read and answer until the person leaves."""
        while True:
            try:
                line = self._read(CONTINUED if self._lines.open else PROMPT)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._lines.open:
                    note("\nUse Ctrl + d or /bye to exit.")
                self._lines.drop()
                continue
            try:
                self._take(line)
            except Quit:
                return
            except KeyboardInterrupt:  # while a model was loading
                note("")
            except (TokenmillError, OSError) as error:
                note(f"Error: {error}")

    def _take(self, line: str) -> None:
        """One typed line: a command when it begins with a slash (outside of quotes), else part of a message."""
        if not self._lines.open and line.lstrip().startswith("/"):
            text = self._commands.run(line)
            if text:
                self._out(clean(text.rstrip("\n")) + "\n")
            return
        message = self._lines.push(line)
        if message is not None and message.strip():
            self._ask(message)

    def _ask(self, text: str) -> None:
        """Put `text` to the model. A message that could not be answered at all is not kept."""
        session = self.session
        session.messages.append({"role": "user", "content": text})
        try:
            answer, params = self._stream()
        except BaseException:
            session.messages.pop()
            raise
        if answer.text or answer.finish_reason != INTERRUPTED:
            session.messages.append({"role": "assistant", "content": answer.text})
        else:
            session.messages.pop()
        if (end := told_end(answer, params)) is not None:
            note(end)
        if session.verbose:
            note(answer.figures())

    def _stream(self) -> tuple[Answer, SamplingParams | ServedSettings]:
        llm, session = self._host.llm, self.session
        params = settings_of(llm, session.options)
        prompt = self._prompt(llm)
        wrap = WordWrap(self._out, self._width)
        write = wrap.push if session.wordwrap else self._out
        try:
            answer = ask(
                llm, prompt, params, lambda text: write(clean(text)), format=session.format, interruptible=True
            )
            return answer, params
        finally:
            wrap.flush()
            self._out("\n\n")

    def _prompt(self, llm: LLM | ServedModel) -> str | list[Message]:
        """The conversation as far as it fits; a model without a chat template gets the last message as plain text."""
        if not speaks_chat(llm):
            if len(self.session.messages) == 1:
                note("(this model has no chat template: it continues each message as plain text, and sees no other)")
            return self.session.plain_prompt(llm.files)
        prompt, dropped = self.session.fit(lambda messages: len(llm.prompt_ids(messages)), llm.ctx_size)
        if dropped:
            note(
                f"(the context of {llm.ctx_size} tokens is full: the {dropped} oldest messages are no longer seen; "
                "/clear starts afresh)"
            )
        return prompt
