"""Modelfiles: Ollama's recipe for a model, read and written.

One instruction a line, names in any case and any order: FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, MESSAGE,
REQUIRES. A value may stand in one or three double quotes, then it may span lines and ends at the first line end where
the quotes are closed. There are no escapes. ``#`` starts a comment only where an instruction could start. This is the
behaviour of Ollama's parser/parser.go.

All problems of a file come in one error, with their lines. Refused, with the reason: RENDERER, PARSER and DRAFT, which
name code built into Ollama; unknown instructions; control characters. REQUIRES names the Ollama that a model needs: it
is kept and written back for Ollama's sake, while tokenmill looks at the model itself when it loads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ModelfileError, StoreError, did_you_mean
from tokenmill.store import parameters as params

MAX_BYTES = 4 << 20
ROLES = ("system", "user", "assistant")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SEMVER = re.compile(r"v?\d{1,6}(\.\d{1,6}){0,2}(-[0-9A-Za-z.-]{1,40})?")
_COMMANDS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES")
_BUILT_IN = "it names code built into Ollama; use TEMPLATE, or the chat template that the model file carries"
_REFUSED = {
    "RENDERER": _BUILT_IN,
    "PARSER": _BUILT_IN,
    "DRAFT": "tokenmill uses no draft model; leave it out, the answers stay the same",
}


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says. `template` and `system` are None where it says nothing, ``""`` where it empties them."""

    base: str
    parameters: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    adapters: list[str] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    requires: str | None = None
    warnings: list[str] = field(default_factory=list, compare=False)


@dataclass(frozen=True)
class _Entry:
    line: int
    command: str
    key: str  # of PARAMETER and MESSAGE
    value: str


def parse_modelfile(text: str, path: Path | str = "Modelfile") -> Modelfile:
    """Read a Modelfile. Raises ModelfileError with every problem in it."""
    if len(text) > MAX_BYTES:
        raise ModelfileError(path, "", f"longer than {MAX_BYTES} characters")
    reader = _Reader()
    for entry in _entries(text.removeprefix("\ufeff"), reader.problems):
        reader.take(entry)
    reader.finish()
    if reader.problems:
        listed = sorted(reader.problems)
        raise ModelfileError(path, "", "\n  ".join(f"line {line}: {problem}" for line, problem in listed))
    return reader.result()


def write_modelfile(modelfile: Modelfile) -> str:
    """The text that `parse_modelfile` reads back to an equal Modelfile.

    Raises StoreError for a text that the format cannot express (it has no escapes).
    """
    lines = [f"FROM {_quoted(modelfile.base, 'FROM') if _needs_quotes(modelfile.base) else modelfile.base}"]
    if modelfile.template is not None:
        lines.append(f"TEMPLATE {_quoted(modelfile.template, 'TEMPLATE')}")
    if modelfile.system is not None:
        lines.append(f"SYSTEM {_quoted(modelfile.system, 'SYSTEM')}")
    for name, value in modelfile.parameters.items():
        if name == "stop":
            lines += [f"PARAMETER stop {_quoted(stop, 'PARAMETER stop')}" for stop in value]
        else:
            lines.append(f"PARAMETER {name} {value}")
    lines += [f"ADAPTER {_quoted(adapter, 'ADAPTER')}" for adapter in modelfile.adapters]
    lines += [f"MESSAGE {message['role']} {_quoted(message['content'], 'MESSAGE')}" for message in modelfile.messages]
    lines += [f"LICENSE {_quoted(text, 'LICENSE')}" for text in modelfile.licenses]
    if modelfile.requires:
        lines.append(f"REQUIRES {modelfile.requires}")
    return "\n".join(lines) + "\n"


class _Reader:
    """Collects entries into a Modelfile and problems into a list of (line, problem)."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.single: dict[str, str] = {}
        self.parameters: dict[str, Any] = {}
        self.lists: dict[str, list[str]] = {"ADAPTER": [], "LICENSE": []}
        self.messages: list[dict[str, str]] = []
        self.warnings: list[str] = []

    def take(self, entry: _Entry) -> None:
        if entry.command == "PARAMETER":
            self._parameter(entry)
        elif entry.command == "MESSAGE":
            self._message(entry)
        elif not entry.value and entry.command not in ("SYSTEM", "TEMPLATE"):
            self.problems.append((entry.line, f"{entry.command} needs a value"))
        elif entry.command in self.lists:
            self.lists[entry.command].append(entry.value)
        elif entry.command in self.single:
            self.problems.append((entry.line, f"a second {entry.command}; there can be one"))
        elif entry.command == "REQUIRES" and not _SEMVER.fullmatch(entry.value):
            self.problems.append((entry.line, f"REQUIRES {entry.value!r:.60} is not a version such as 0.14.0"))
        else:
            self.single[entry.command] = entry.value

    def finish(self) -> None:
        if "FROM" not in self.single and not any(problem.startswith("FROM") for _, problem in self.problems):
            self.problems.append((1, "no FROM: say which model it starts from"))

    def result(self) -> Modelfile:
        return Modelfile(
            base=self.single["FROM"],
            parameters=self.parameters,
            template=self.single.get("TEMPLATE"),
            system=self.single.get("SYSTEM"),
            adapters=self.lists["ADAPTER"],
            licenses=self.lists["LICENSE"],
            messages=self.messages,
            requires=self.single.get("REQUIRES"),
            warnings=self.warnings,
        )

    def _parameter(self, entry: _Entry) -> None:
        name = entry.key.lower()
        value, problem = params.read_text(name, entry.value)
        if problem:
            self.problems.append((entry.line, problem))
        elif name in params.DROPPED:
            self.warnings.append(params.dropped_warning(name, entry.line))
        elif name == "stop":
            stops = self.parameters.setdefault("stop", [])
            if len(stops) == params.MAX_STOPS:
                self.problems.append((entry.line, f"more than {params.MAX_STOPS} stop strings"))
            stops.append(value)
        elif name in self.parameters:
            self.problems.append((entry.line, f"PARAMETER {name} is set twice"))
        else:
            self.parameters[name] = value

    def _message(self, entry: _Entry) -> None:
        role = entry.key.lower()
        if role not in ROLES:
            hint = did_you_mean(role, ROLES)
            self.problems.append((entry.line, f"MESSAGE role {entry.key!r:.60} is none of {', '.join(ROLES)}{hint}"))
        else:
            self.messages.append({"role": role, "content": entry.value})


def _entries(text: str, problems: list[tuple[int, str]]) -> Iterator[_Entry]:
    lines = _LINE.findall(text)
    position = 0
    while position < len(lines):
        number, line = position + 1, lines[position]
        position += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        command, rest = _word(line)
        upper = command.upper()
        if upper not in _COMMANDS:
            problems.append((number, _unknown(command)))
            # its value may span lines; skipping them keeps the text inside from being reported line by line
            _, position, _ = _value(rest, lines, position)
            continue
        key, rest = _word(rest) if upper in ("PARAMETER", "MESSAGE") else ("", rest)
        value, position, closed = _value(rest, lines, position)
        if not closed:
            problems.append((number, f"{upper}: the quotes opened here are never closed"))
        elif control := _CONTROL.search(value + key):
            problems.append((number, f"{upper}: control character U+{ord(control[0]):04X} in the value"))
        else:
            yield _Entry(number, upper, key, value)


def _word(text: str) -> tuple[str, str]:
    parts = text.split(maxsplit=1)
    return (parts[0] if parts else ""), (parts[1] if len(parts) > 1 else "")


def _value(rest: str, lines: list[str], position: int) -> tuple[str, int, bool]:
    """The value that starts with `rest`: (value, next line's position, whether its quotes were closed)."""
    opened = rest.lstrip()
    quote = next((mark for mark in ('"""', '"') if opened.startswith(mark)), "")
    if not quote:
        return rest.strip(), position, True
    collected, length = [opened], len(opened.rstrip())
    while length < 2 * len(quote) or not collected[-1].rstrip().endswith(quote):
        if position == len(lines):
            return "", position, False
        collected.append(lines[position])
        length += len(lines[position])
        position += 1
    return "".join(collected).rstrip()[len(quote) : -len(quote)], position, True


def _needs_quotes(text: str) -> bool:
    return text != text.strip() or text.startswith('"') or not text or "\n" in text or "\r" in text


def _quoted(text: str, where: str) -> str:
    """`text` in quotes such that reading it gives `text` back."""
    if control := _CONTROL.search(text):
        raise StoreError(f"{where}: a Modelfile cannot hold the control character U+{ord(control[0]):04X}")
    for quote in ('"', '"""') if "\n" not in text and "\r" not in text else ('"""',):
        quoted = f"{quote}{text}{quote}"
        lines = _LINE.findall(quoted)
        if _value(lines[0], lines, 1) == (text, len(lines), True):
            return quoted
    raise StoreError(f'{where}: a Modelfile has no way to write a text with a line that ends in """')


def _unknown(command: str) -> str:
    if reason := _REFUSED.get(command.upper()):
        return f"{command.upper()} is not supported: {reason}"
    return (
        f"unknown instruction {command!r:.60}{did_you_mean(command.upper(), _COMMANDS)}; known: {', '.join(_COMMANDS)}"
    )
