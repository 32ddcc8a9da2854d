"""The syntax tree of a Go template, and two questions asked of it: what fields it mentions, where `.Response` stands.

Nothing here executes. Operands are what Go calls terms; a pipeline in parentheses is itself an operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.core.errors import TemplateError

MAX_CALLS = 8  # of templates within templates, times the parser's nesting; bounds Python's stack


@dataclass(frozen=True, slots=True)
class Dot:
    """``.``"""


@dataclass(frozen=True, slots=True)
class Nil:
    """``nil``"""


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class Field:
    """``.A.B``"""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """``$x.A.B``; the root is the variable named ``$``."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    name: str


@dataclass(frozen=True, slots=True)
class Chain:
    """``(pipeline).A.B``"""

    operand: Operand
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """One stage of a pipeline: what is evaluated or called, then its arguments."""

    operands: tuple[Operand, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Pipe:
    """``$a, $b := command | command``; `assigns` when it is ``=`` to a variable that exists."""

    commands: tuple[Command, ...]
    declares: tuple[str, ...] = ()
    assigns: bool = False


Operand = Dot | Nil | Literal | Field | Variable | Function | Chain | Pipe


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Action:
    pipe: Pipe
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    """``if``, ``with`` or ``range`` (`kind`) with its body and its ``else``."""

    kind: str
    pipe: Pipe
    body: tuple[Node, ...]
    orelse: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """``break`` or ``continue``."""

    kind: str
    line: int


@dataclass(frozen=True, slots=True)
class Call:
    """``{{ template "name" pipeline }}``"""

    name: str
    pipe: Pipe | None
    line: int


Node = Text | Action | Branch | Jump | Call
Templates = Mapping[str, tuple[Node, ...]]  # by name; the template itself is ""


def fields_of(tree: Any) -> Iterator[str]:
    """Every field name that occurs in a node, an operand or a tuple of them."""
    match tree:
        case tuple():
            for item in tree:
                yield from fields_of(item)
        case Field(names) | Variable(_, names):
            yield from names
        case Chain(operand, names):
            yield from names
            yield from fields_of(operand)
        case Command(operands):
            yield from fields_of(operands)
        case Pipe(commands) | Action(Pipe(commands)) | Call(_, Pipe(commands)):
            yield from fields_of(commands)
        case Branch(_, pipe, body, orelse):
            yield from fields_of((pipe, *body, *orelse))


def cut_after_response(templates: Templates) -> Templates:
    """The templates without whatever stands after the first ``.Response`` in the text: generation continues there.

    Raises TemplateError when templates call each other more than MAX_CALLS deep.
    """
    kept = dict(templates)
    found_in: dict[str, bool] = {"": False}

    def cut(nodes: tuple[Node, ...], calls: int) -> tuple[tuple[Node, ...], bool]:
        if calls > MAX_CALLS:
            raise TemplateError(f"Go template: templates call each other more than {MAX_CALLS} deep")
        for index, node in enumerate(nodes):
            found = False
            match node:
                case Action(pipe):
                    found = "Response" in fields_of(pipe)
                case Call(name):
                    if name not in found_in:
                        found_in[name] = False  # while it is looked through: a template that calls itself
                        kept[name], found_in[name] = cut(templates[name], calls + 1)
                    found = found_in[name]
                case Branch():
                    body, in_body = cut(node.body, calls)
                    orelse, in_orelse = cut(node.orelse, calls)
                    node, found = replace(node, body=body, orelse=orelse), in_body or in_orelse
                case _:
                    continue
            if found:
                return (*nodes[:index], node), True
        return nodes, False

    kept[""], _ = cut(templates[""], 0)
    return kept
