"""Tokens to syntax tree, with every check that Go makes before a template runs.

Refused here, with line and name: unknown functions, variables that were never declared, ``break`` outside a range,
``end`` without a beginning, a template that is called but not defined, and nesting deeper than MAX_NESTING.
Source: the grammar in https://pkg.go.dev/text/template and in the comments of text/template/parse.
"""

from __future__ import annotations

from collections.abc import Collection

from tokenmill.core.errors import did_you_mean
from tokenmill.text.go_template.lexer import KEYWORDS, Token, fail, show, tokenize, unquote
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
    Text,
    Variable,
)

MAX_NESTING = 60  # blocks and parentheses; each level costs a few frames of Python's stack
_INT64 = 2**63


class Parser:
    """One source text; `templates` holds the tree of the text itself under "" and of each define by its name."""

    def __init__(self, source: str, functions: Collection[str]) -> None:
        self.tokens = tokenize(source)
        self.position = 0
        self.functions = functions
        self.templates: dict[str, tuple[Node, ...]] = {}
        self.calls: list[Call] = []
        self.variables = ["$"]
        self.depth = 0
        self.range_depth = 0

    def parse(self) -> dict[str, tuple[Node, ...]]:
        """Raises TemplateError."""
        nodes, ending = self._nodes(top=True)
        if ending.kind != "eof":
            fail(ending.line, f"{{{{ {ending.value} }}}} has no beginning")
        self._define("", nodes, 1)
        for call in self.calls:
            if call.name not in self.templates:
                hint = did_you_mean(call.name, self.templates)
                fail(call.line, f"template {show(call.name)} is not defined{hint}")
        return self.templates

    # tokens

    def _peek(self) -> Token:
        return self.tokens[self.position]

    def _next(self) -> Token:
        token = self.tokens[self.position]
        if token.kind != "eof":
            self.position += 1
        return token

    def _expect(self, kind: str, context: str) -> Token:
        token = self._next()
        if token.kind != kind:
            fail(token.line, f"expected {show(kind)} in {context}, found {show(token.value)}")
        return token

    # text and actions

    def _nodes(self, top: bool = False) -> tuple[tuple[Node, ...], Token]:
        """Nodes up to an ``end`` or ``else`` (returned, its word consumed) or the end of the source."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            fail(self._peek().line, f"nested deeper than {MAX_NESTING} levels")
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "eof":
                break
            if token.kind == "text":
                nodes.append(Text(token.value, token.line))
                continue
            word = self._peek()
            if word.kind == "word" and word.value in ("end", "else"):
                token = self._next()
                break
            if word.kind == "word" and word.value == "define":
                if not top:
                    fail(word.line, "{{ define }} may only stand outside all other blocks")
                self._definition()
                continue
            nodes.append(self._action())
        self.depth -= 1
        return tuple(nodes), token

    def _action(self) -> Node:
        word = self._peek()
        if word.kind == "word" and word.value in KEYWORDS:
            self._next()
            match word.value:
                case "if" | "with" | "range":
                    return self._branch(word)
                case "break" | "continue":
                    return self._jump(word)
                case "template":
                    return self._call(word)
                case _:
                    return self._block(word)
        return Action(self._pipe("an action", "close"), word.line)

    def _jump(self, word: Token) -> Jump:
        self._expect("close", word.value)
        if not self.range_depth:
            fail(word.line, f"{{{{ {word.value} }}}} outside of a range")
        return Jump(word.value, word.line)

    def _branch(self, word: Token) -> Branch:
        declared = len(self.variables)
        pipe = self._pipe(word.value, "close")
        self.range_depth += word.value == "range"
        body, ending = self._nodes()
        self.range_depth -= word.value == "range"
        orelse: tuple[Node, ...] = ()
        if ending.kind == "word" and ending.value == "else":
            following = self._peek()
            if following.kind == "word" and following.value == word.value and word.value in ("if", "with"):
                self.depth += 1  # a chain of a thousand `else if` nests as deeply as it reads
                if self.depth > MAX_NESTING:
                    fail(following.line, f"more than {MAX_NESTING} levels of else {word.value}")
                self._next()
                orelse = (self._branch(following),)
                self.depth -= 1
                del self.variables[declared:]
                return Branch(word.value, pipe, body, orelse, word.line)
            self._expect("close", "else")
            orelse, ending = self._nodes()
        if ending.value != "end":
            fail(ending.line, f"expected {{{{ end }}}} of {word.value} (line {word.line}), found {show(ending.value)}")
        self._expect("close", "end")
        del self.variables[declared:]
        return Branch(word.value, pipe, body, orelse, word.line)

    # templates within the template

    def _string(self, context: str) -> str:
        return unquote(self._expect("string", context))

    def _define(self, name: str, nodes: tuple[Node, ...], line: int) -> None:
        empty = all(isinstance(node, Text) and not node.text.strip() for node in nodes)
        if name in self.templates and empty:
            return
        former = self.templates.get(name, ())
        if not all(isinstance(node, Text) and not node.text.strip() for node in former):
            fail(line, f"template {show(name)} is defined twice")
        self.templates[name] = nodes

    def _separate_body(self, name: str, line: int) -> None:
        """The body of a define or a block sees none of the variables and ranges around it."""
        variables, range_depth = self.variables, self.range_depth
        self.variables, self.range_depth = ["$"], 0
        nodes, ending = self._nodes()
        self.variables, self.range_depth = variables, range_depth
        if ending.value != "end":
            fail(ending.line, f"expected {{{{ end }}}} of template {show(name)}, found {show(ending.value)}")
        self._expect("close", "end")
        self._define(name, nodes, line)

    def _definition(self) -> None:
        line = self._next().line
        name = self._string("define")
        if not name:
            fail(line, "a template needs a name")
        self._expect("close", "define")
        self._separate_body(name, line)

    def _block(self, word: Token) -> Call:
        name = self._string("block")
        pipe = self._pipe("block", "close")
        self._separate_body(name, word.line)
        return self._called(name, pipe, word.line)

    def _call(self, word: Token) -> Call:
        name = self._string("template")
        if self._peek().kind == "close":
            self._next()
            return self._called(name, None, word.line)
        return self._called(name, self._pipe("template", "close"), word.line)

    def _called(self, name: str, pipe: Pipe | None, line: int) -> Call:
        self.calls.append(Call(name, pipe, line))
        return self.calls[-1]

    # pipelines

    def _pipe(self, context: str, closing: str) -> Pipe:
        declares, assigns = self._declarations(context)
        commands = [self._command(context, closing)]
        while self._peek().kind == "|":
            bar = self._next()
            commands.append(self._command(context, closing))
            if isinstance(commands[-1].operands[0], Dot | Nil | Literal):
                fail(bar.line, "a value cannot be piped into something that is not a function")
        self._expect(closing, context)
        if not assigns:
            self.variables.extend(declares)
        return Pipe(tuple(commands), declares, assigns)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """``$a :=``, ``$a =`` and, for a range, ``$a, $b :=`` if the pipeline begins with one."""
        names: list[str] = []
        start = self.position
        while self._peek().kind == "variable":
            names.append(self._next().value)
            mark = self._peek().kind
            if mark == "," and context == "range" and len(names) == 1:
                self._next()
                continue
            if mark in (":=", "="):
                line = self._next().line
                if mark == "=":
                    for name in names:
                        self._known_variable(name, line)
                return tuple(names), mark == "="
            break
        if len(names) > 1:
            fail(self._peek().line, "after the second variable of a range := is expected")
        self.position = start
        return (), False

    def _command(self, context: str, closing: str) -> Command:
        first = self._peek()
        operands: list[Operand] = []
        while (token := self._peek()).kind not in (closing, "|"):
            if operands and not token.spaced:
                fail(token.line, f"unexpected {show(token.value)} right after an operand in {context}")
            operands.append(self._operand(context))
        if not operands:
            fail(first.line, f"missing value for {context}, found {show(first.value)}")
        return Command(tuple(operands), first.line)

    def _operand(self, context: str) -> Operand:
        token = self._peek()
        operand = self._term(context)
        names: list[str] = []
        while self._peek().kind == "field" and not self._peek().spaced:
            names.append(self._next().value[1:])
        if not names:
            return operand
        match operand:
            case Field(first):
                return Field((*first, *names))
            case Variable(name):
                return Variable(name, tuple(names))
            case Dot() | Nil() | Literal():
                fail(token.line, f"unexpected .{names[0]} after {show(token.value)}")
        return Chain(operand, tuple(names))

    def _term(self, context: str) -> Operand:
        token = self._next()
        match token.kind:
            case "field":
                return Field((token.value[1:],))
            case ".":
                return Dot()
            case "variable":
                self._known_variable(token.value, token.line)
                return Variable(token.value)
            case "string":
                return Literal(unquote(token))
            case "char":
                return Literal(_character(token))
            case "number":
                return Literal(_number(token))
            case "word" if token.value not in KEYWORDS:
                return self._word(token)
            case "(":
                return self._parenthesis()
        fail(token.line, f"unexpected {show(token.value)} in {context}")

    def _word(self, token: Token) -> Operand:
        match token.value:
            case "true" | "false":
                return Literal(token.value == "true")
            case "nil":
                return Nil()
        if token.value not in self.functions:
            hint = did_you_mean(token.value, self.functions)
            fail(token.line, f"unknown function {show(token.value)}{hint}; known: {', '.join(sorted(self.functions))}")
        return Function(token.value)

    def _parenthesis(self) -> Pipe:
        self.depth += 1
        if self.depth > MAX_NESTING:
            fail(self._peek().line, f"nested deeper than {MAX_NESTING} levels")
        pipe = self._pipe("parentheses", ")")
        self.depth -= 1
        return pipe

    def _known_variable(self, name: str, line: int) -> None:
        if name not in self.variables:
            fail(line, f"variable {show(name)} was never declared{did_you_mean(name, self.variables)}")


def _character(token: Token) -> int:
    text = unquote(token)
    if len(text) != 1:
        fail(token.line, f"{show(token.value)} is not one character")
    return ord(text)


def _number(token: Token) -> int | float:
    text = token.value
    if len(text) > 64:
        fail(token.line, f"number {show(text)} is too long")
    try:
        digits = text.lstrip("+-")
        octal = digits.isdigit() and digits.startswith("0") and len(digits) > 1
        whole = int(text, 8) if octal else int(text, 0)
    except ValueError:
        pass
    else:
        if not -_INT64 <= whole < _INT64:
            fail(token.line, f"number {text} does not fit 64 bits")
        return whole
    try:
        value = float(text)
    except ValueError:
        value = float("inf")
    if value in (float("inf"), -float("inf")) or text.lower().lstrip("+-").startswith(("0x", "0o", "0b")):
        fail(token.line, f"bad number {show(text)}")
    return value
