"""What the chat's commands need of the world: the loaded model, the store, and the texts of ``/show``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmill.cli.list import table
from tokenmill.cli.output import PullProgress
from tokenmill.cli.repl.session import Session
from tokenmill.cli.served import ServedModel
from tokenmill.cli.show import show_text
from tokenmill.store import Store
from tokenmill.store.modelfile import Modelfile, write_modelfile

if TYPE_CHECKING:
    from tokenmill import LLM


class StoreHost:
    """Holds the chat's one loaded model, loads another when asked. The first is loaded at once."""

    def __init__(self, session: Session, open_model: Callable[[Session], LLM | ServedModel]) -> None:
        self._session, self._open = session, open_model
        self.llm = open_model(session)
        session.adopt(self.llm.files)

    def reload(self) -> None:
        """Load the same model again, with the session's new context size. The conversation stays."""
        self.llm = self._open(self._session)

    def load(self, name: str) -> None:
        """Load another model; the conversation, its system message and what was set for the old model end."""
        before = self._session.model, self._session.options, self._session.adapters
        self._session.model, self._session.options, self._session.adapters = name, {}, []
        try:
            self.llm = self._open(self._session)
        except BaseException:
            self._session.model, self._session.options, self._session.adapters = before
            raise
        self._session.system, self._session.messages = None, []
        self._session.adopt(self.llm.files)

    def save(self, name: str) -> None:
        """Store the session as a model: its model, its system message, its parameters, its conversation."""
        with PullProgress() as progress:
            Store().create(name, session_modelfile(self._session), Path.cwd(), progress)

    def list_models(self) -> str:
        return table(Store().list())

    def show(self, what: str) -> str:
        """What ``show`` prints of the loaded model, with what this session changed."""
        session, files = self._session, self.llm.files
        if what == "system":
            return session.system or "No system message was specified for this model."
        if what == "parameters":
            chosen = "\n".join(f"{key:<30} {value}" for key, value in session.options.items())
            own = show_text("parameters", files) or "No additional parameters were specified for this model."
            return f"Model defined parameters:\n{own}" + (f"\n\nUser defined parameters:\n{chosen}" if chosen else "")
        text = show_text(what, files) if not isinstance(self.llm, ServedModel) else self.llm.show(what)
        return text or f"No {what} was specified for this model."


def session_modelfile(session: Session) -> str:
    """The Modelfile of a session: a model that begins where the session stands."""
    return write_modelfile(
        Modelfile(
            base=session.model,
            system=session.system,
            parameters=session.options,
            adapters=[str(Path(adapter).resolve()) for adapter in session.adapters],
            messages=session.messages,
        )
    )
