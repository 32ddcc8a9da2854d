"""The slash commands of the chat, as Ollama's: what each does to the session, and the text it answers with.

A command answers with the text to print. What needs a model or the store (``/load``, ``/save``, ``/list``, ``/show``)
goes through ``Host``, so that all of this is tested without a terminal and without weights. An unknown command or a
wrong argument is a UsageError with a hint; nothing that begins with a slash is ever sent to the model.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Protocol

from tokenmill.cli.repl.parameters import parameter_help, parse_parameter
from tokenmill.cli.repl.session import Session
from tokenmill.core.errors import UsageError, did_you_mean


class Quit(Exception):
    """The person leaves the chat."""


class Host(Protocol):
    """What the commands need of the world."""

    def show(self, what: str) -> str: ...
    def list_models(self) -> str: ...
    def load(self, name: str) -> None: ...
    def save(self, name: str) -> None: ...
    def reload(self) -> None: ...


HELP = """\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /clear          Clear session context
  /list           List models on this machine
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.
"""

SHORTCUTS = """\
Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor
  Ctrl + r            Search the history
  Ctrl + g            Write the message in $EDITOR

  Ctrl + l            Clear the screen
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit (/bye)
"""

SET_HELP = """\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show statistics of each answer
  /set quiet             Show no statistics
"""

SHOW_TOPICS = {
    "info": "Show details for this model",
    "license": "Show model license",
    "modelfile": "Show Modelfile for this model",
    "parameters": "Show parameters for this model",
    "system": "Show system message",
    "template": "Show prompt template",
}
SHOW_HELP = "Available Commands:\n" + "".join(f"  /show {t:<12} {line}\n" for t, line in SHOW_TOPICS.items())


class Commands:
    """Carries out slash commands on `session`, with `host` for models and the store."""

    def __init__(self, session: Session, host: Host) -> None:
        self._session, self._host = session, host
        self._table: dict[str, Callable[[str], str]] = {
            "/set": self._set,
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/list": lambda rest: _only("/list", rest) or host.list_models(),
            "/bye": self._leave,
            "/exit": self._leave,
            "/?": self._help,
            "/help": self._help,
        }

    def run(self, line: str) -> str:
        """Carry out `line`; the text to print. Raises Quit, or UsageError with a hint."""
        verb, _, rest = line.strip().partition(" ")
        if verb not in self._table:
            raise UsageError(f"unknown command {verb!r}{did_you_mean(verb, self._table)}; type /? for help")
        return self._table[verb](rest.strip())

    def _help(self, rest: str) -> str:
        topics = {"": HELP, "shortcuts": SHORTCUTS, "shortcut": SHORTCUTS, "set": SET_HELP, "show": SHOW_HELP}
        topic = rest.removeprefix("/")
        if topic not in topics:
            raise UsageError(f"no help for {rest!r}; /? lists the commands")
        return topics[topic]

    def _set(self, rest: str) -> str:
        what, _, value = rest.partition(" ")
        value = value.strip()
        settings: dict[str, tuple[str, bool, str]] = {
            "history": ("history", True, "History is kept."),
            "nohistory": ("history", False, "History is not kept."),
            "wordwrap": ("wordwrap", True, "Set 'wordwrap' mode."),
            "nowordwrap": ("wordwrap", False, "Set 'nowordwrap' mode."),
            "verbose": ("verbose", True, "Set 'verbose' mode."),
            "quiet": ("verbose", False, "Set 'quiet' mode."),
        }
        if what in settings:
            _only(f"/set {what}", value)
            name, state, said = settings[what]
            setattr(self._session, name, state)
            return said
        if what in self._setters:
            return self._setters[what](self, value)
        if what:
            known = [*settings, *self._setters]
            raise UsageError(f"unknown setting {what!r}{did_you_mean(what, known)}; /? set lists them")
        return SET_HELP

    def _set_parameter(self, rest: str) -> str:
        if not rest:
            return parameter_help()
        name, *words = _split(rest)
        name = name.lower()
        value = parse_parameter(name, words)
        before = dict(self._session.options)
        self._session.options[name] = value
        if name == "num_ctx":
            try:
                self._host.reload()
            except Exception:
                self._session.options = before
                raise
        return f"Set parameter '{name}' to '{', '.join(words)}'"

    def _set_system(self, rest: str) -> str:
        """An empty message removes it. Quotes around the whole text are not part of it."""
        for quote in ('"""', '"'):
            if len(rest) >= 2 * len(quote) and rest.startswith(quote) and rest.endswith(quote):
                rest = rest[len(quote) : -len(quote)]
                break
        self._session.system = rest
        return "Set system message." if rest else "Removed system message."

    def _set_format(self, rest: str) -> str:
        if rest != "json":
            raise UsageError("the one format that can be set here is json: /set format json")
        self._session.format = "json"
        return "Set format to 'json' mode."

    def _set_noformat(self, rest: str) -> str:
        _only("/set noformat", rest)
        self._session.format = None
        return "Disabled format."

    _setters: dict[str, Callable[[Commands, str], str]] = {  # noqa: RUF012 - a constant table
        "parameter": _set_parameter,
        "system": _set_system,
        "format": _set_format,
        "noformat": _set_noformat,
    }

    def _show(self, rest: str) -> str:
        if not rest:
            return SHOW_HELP
        if rest not in SHOW_TOPICS:
            raise UsageError(f"nothing to show under {rest!r}{did_you_mean(rest, SHOW_TOPICS)}; /show lists the topics")
        return self._host.show(rest)

    def _load(self, rest: str) -> str:
        if not rest:
            raise UsageError("/load takes a model's name: /load <model>")
        self._host.load(rest)
        return f"Loaded model '{rest}'"

    def _save(self, rest: str) -> str:
        if not rest:
            raise UsageError("/save takes a name for the new model: /save <model>")
        self._host.save(rest)
        return f"Created new model '{rest}'"

    def _clear(self, rest: str) -> str:
        _only("/clear", rest)
        self._session.messages = []
        return "Cleared session context"

    def _leave(self, rest: str) -> str:
        _only("/bye", rest)
        raise Quit


def _only(command: str, rest: str) -> str:
    """Refuse words after a command that takes none."""
    if rest:
        raise UsageError(f"{command} takes nothing after it, not {rest!r}")
    return ""


def _split(text: str) -> list[str]:
    """Words as a shell splits them, so that a stop string may hold spaces; \\n in double quotes is a newline."""
    try:
        return [word.replace("\\n", "\n") for word in shlex.split(text)]
    except ValueError as error:
        raise UsageError(f"{error} in {text!r}: quotes come in pairs") from None
