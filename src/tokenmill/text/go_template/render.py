"""Runs a parsed template over its data, within limits.

One budget counts every step and every 64 characters that a step produces, so that endless ranges, strings that double,
and templates that call themselves all end quickly and in bounded memory. Go semantics throughout: truth, scoping of
variables, short circuits, `nil` printed as ``<no value>``.
Source: text/template/exec.go of Go.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from tokenmill.core.errors import TemplateError, did_you_mean
from tokenmill.text.go_template import functions
from tokenmill.text.go_template.lexer import fail
from tokenmill.text.go_template.nodes import (
    Action,
    Branch,
    Call,
    Chain,
    Command,
    Dot,
    Field,
    Function,
    Jump,
    Literal,
    Nil,
    Node,
    Operand,
    Pipe,
    Templates,
    Text,
    Variable,
)
from tokenmill.text.go_template.values import MAX_TEXT, Record, go_format, is_true, type_of

MAX_STEPS = 1_000_000  # about a second; a thousand rounds through a long template take a fifth of that
MAX_DEPTH = 100  # blocks within blocks within called templates; bounds Python's stack
_CHARACTERS_A_STEP = 64  # copied or compared
_MADE_A_STEP = 4  # characters that a function composes
_ABSENT = object()


class Renderer:
    """One execution. `data` is what ``.`` and ``$`` are at the start."""

    def __init__(self, templates: Templates, data: Record, today: date) -> None:
        self.templates = templates
        self.today = today
        self.data = data
        self.variables: list[tuple[str, Any]] = [("$", data)]
        self.pieces: list[str] = []
        self.size = 0
        self.steps = 0
        self.depth = 0
        self.line = 1

    def run(self) -> str:
        """The text. Raises TemplateError with the line it happened in."""
        try:
            self._nodes(self.templates[""], self.data)
        except TemplateError as error:
            if str(error).startswith("Go template, line"):
                raise
            fail(self.line, str(error))
        text = "".join(self.pieces)
        return text if text.isascii() else text.encode(errors="surrogateescape").decode(errors="replace")

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            fail(
                self.line, f"gave up after {MAX_STEPS} steps; the template does not end, or makes too much of its data"
            )

    def _write(self, text: str) -> None:
        self.size += len(text)
        if self.size > MAX_TEXT:
            fail(self.line, f"writes more than {MAX_TEXT} characters")
        self._spend(len(text) // _CHARACTERS_A_STEP)
        self.pieces.append(text)

    def _print(self, value: Any) -> None:
        if isinstance(value, str):
            self._write(value)
            return
        text = "<no value>" if value is None else go_format(value)
        self._spend(len(text) // _MADE_A_STEP)
        self._write(text)

    # statements: each returns "break" or "continue" when one is under way, else ""

    def _nodes(self, nodes: tuple[Node, ...], dot: Any) -> str:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail(self.line, f"nested deeper than {MAX_DEPTH} levels while running")
        jump = ""
        for node in nodes:
            self.line = node.line
            self._spend(1)
            match node:
                case Text(text):
                    self._write(text)
                case Action(pipe):
                    value = self._pipe(pipe, dot)
                    if not pipe.declares:
                        self._print(value)
                case Branch(kind="range"):
                    jump = self._range(node, dot)
                case Branch():
                    jump = self._if_or_with(node, dot)
                case Jump(kind):
                    jump = kind
                case Call():
                    self._call(node, dot)
            if jump:
                break
        self.depth -= 1
        return jump

    def _if_or_with(self, node: Branch, dot: Any) -> str:
        mark = len(self.variables)
        value = self._pipe(node.pipe, dot)
        if is_true(value):
            jump = self._nodes(node.body, value if node.kind == "with" else dot)
        else:
            jump = self._nodes(node.orelse, dot)
        del self.variables[mark:]
        return jump

    def _range(self, node: Branch, dot: Any) -> str:
        mark = len(self.variables)
        over = self._pipe(node.pipe, dot)
        # Go declares the variables once, with the whole value, and sets them anew in each round
        top = len(self.variables)
        names = node.pipe.declares
        empty = True
        jump = ""
        for key, item in self._rounds(over, len(names)):
            empty = False
            self._spend(1)
            given = (item,) if len(names) == 1 else (key, item)
            for place, (name, value) in enumerate(zip(names, given, strict=False)):
                if node.pipe.assigns:
                    self._assign(name, value)
                else:
                    self.variables[top - len(names) + place] = (name, value)
            jump = self._nodes(node.body, item)
            del self.variables[top:]
            if jump == "break":
                break
        del self.variables[mark if not empty else top :]
        jump = ""
        if empty:
            jump = self._nodes(node.orelse, dot)
            del self.variables[mark:]
        # Go takes a break in the else of a range for one of this range, not of the range around it
        return "" if jump == "break" else jump

    def _rounds(self, over: Any, names: int) -> Iterator[tuple[Any, Any]]:
        match over:
            case None:
                return iter(())
            case list():
                return enumerate(over)
            case dict():
                self._spend(len(over) // _MADE_A_STEP)
                return iter(sorted(over.items()))
            case int() if not isinstance(over, bool) and names < 2:
                return ((None, index) for index in range(over))
        fail(self.line, f"cannot range over a {type_of(over)}{' with two variables' if isinstance(over, int) else ''}")

    def _call(self, node: Call, dot: Any) -> None:
        value = None if node.pipe is None else self._pipe(node.pipe, dot)
        outer = self.variables
        self.variables = [("$", value)]
        self._nodes(self.templates[node.name], value)
        self.variables = outer

    # expressions

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = _ABSENT
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.declares:
            if pipe.assigns:
                self._assign(name, value)
            else:
                self.variables.append((name, value))
        return value

    def _assign(self, name: str, value: Any) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return
        fail(self.line, f"variable {name!r} does not exist here")

    def _command(self, command: Command, dot: Any, piped: Any) -> Any:
        self.line = command.line
        self._spend(1)
        first, *others = command.operands
        if isinstance(first, Function):
            return self._function(first.name, others, dot, piped)
        if others or piped is not _ABSENT:
            fail(self.line, f"{_shown(first)} is not a function and takes no arguments")
        if isinstance(first, Nil):
            fail(self.line, "nil cannot stand alone")
        return self._operand(first, dot)

    def _function(self, name: str, operands: list[Operand], dot: Any, piped: Any) -> Any:
        given: list[Any] = [] if piped is _ABSENT else [piped]
        if name in functions.LAZY:
            return self._and_or(name, operands, dot, given)
        arguments = [self._operand(operand, dot) for operand in operands]
        arguments += given
        self._spend(
            sum(len(value) for value in arguments if isinstance(value, str | list | dict)) // _CHARACTERS_A_STEP
        )
        value = functions.call(name, arguments, self.today)
        if isinstance(value, str):
            self._spend(len(value) // _MADE_A_STEP)
        return value

    def _and_or(self, name: str, operands: list[Operand], dot: Any, given: list[Any]) -> Any:
        if not operands and not given:
            fail(self.line, f"{name} takes at least 1 argument, got 0")
        value: Any = None
        for operand in operands:
            value = self._operand(operand, dot)
            if is_true(value) == (name == "or"):
                return value
        return given[0] if given else value

    def _operand(self, operand: Operand, dot: Any) -> Any:
        self._spend(1)
        match operand:
            case Field(names):
                return self._fields(dot, names)
            case Variable(name, names):
                return self._fields(self._variable(name), names)
            case Literal(value):
                return value
            case Dot():
                return dot
            case Nil():
                return None
            case Function(name):
                return self._function(name, [], dot, _ABSENT)
            case Pipe():
                return self._pipe(operand, dot)
            case Chain(inner, names):
                return self._fields(self._operand(inner, dot), names)

    def _variable(self, name: str) -> Any:
        for known, value in reversed(self.variables):
            if known == name:
                return value
        fail(self.line, f"variable {name!r} does not exist here")

    def _fields(self, value: Any, names: tuple[str, ...]) -> Any:
        for name in names:
            match value:
                case Record():
                    if name not in value.fields:
                        known = ", ".join(f".{field}" for field in value.fields)
                        hint = did_you_mean(name, value.fields)
                        fail(self.line, f"{value.type_name} has no field .{name}{hint}; known: {known}")
                    value = value.fields[name]
                case dict():
                    value = value.get(name)
                case _:
                    fail(self.line, f"a {type_of(value)} has no field .{name}")
        return value


def _shown(operand: Operand) -> str:
    match operand:
        case Field(names):
            return "".join(f".{name}" for name in names)
        case Variable(name, names):
            return name + "".join(f".{field}" for field in names)
        case Literal(value):
            return repr(value)
        case Nil():
            return "nil"
        case Dot():
            return "."
    return "an expression in parentheses"
