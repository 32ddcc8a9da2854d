"""Tokens of a Go template: literal text, and what stands between ``{{`` and ``}}``.

White-space trimming (``{{- `` and `` -}}``) and comments are settled here, so the parser never sees them. A token knows
whether a space stood before it, because Go reads ``.A.B`` as one operand and ``.A .B`` as two. Refuses whatever Go's
own lexer refuses, with the line and the piece of text it stumbled over.
Source: https://pkg.go.dev/text/template, sections "Text and spaces" and "Arguments".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from tokenmill.core.errors import TemplateError

KEYWORDS = frozenset(["block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"])
SPACES = " \t\r\n"

_TOKEN = re.compile(
    r"""
    (?P<string>"(?:\\[^\n]|[^"\\\n])*"|`[^`]*`)
  | (?P<char>'(?:\\[^\n]|[^'\\\n])+')
  | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+ | 0[oO][0-7_]+ | 0[bB][01_]+
                     | (?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)(?!\w))
  | (?P<field>\.[^\W\d]\w*)
  | (?P<variable>\$\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<mark>:=|[=|(),.])
    """,
    re.VERBOSE,
)
_SPACE = re.compile(f"[{SPACES}]*")
_CLOSE = re.compile(rf"[{SPACES}]*[{SPACES}]-\}}\}}|\}}\}}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([abfnrtv\\'\"]))|\\")
_SIMPLE = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))


@dataclass(frozen=True, slots=True)
class Token:
    """kind: text, open, close, string, char, number, field, variable, word, eof, or a mark itself (``|``, ``:=`` …)."""

    kind: str
    value: str
    line: int
    spaced: bool = False


def fail(line: int, problem: str) -> NoReturn:
    """The one way every part of the template engine refuses: the line, and what was found there."""
    raise TemplateError(f"Go template, line {line}: {problem}")


def show(text: str) -> str:
    """A short, printable quotation of `text` for an error message."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def tokenize(source: str) -> list[Token]:
    """All tokens of `source`, closed by one of kind ``eof``. Raises TemplateError."""
    tokens: list[Token] = []
    position, line, trim = 0, 1, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        shown = text.lstrip(SPACES) if trim else text
        if start >= 0 and _trims_left(source, start + 2):
            shown = shown.rstrip(SPACES)
        if shown:
            tokens.append(Token("text", shown, line))
        line += text.count("\n")
        if start < 0:
            tokens.append(Token("eof", "end of template", line))
            return tokens
        position = start + (4 if _trims_left(source, start + 2) else 2)
        if source.startswith("/*", position):
            end, trim = _skip_comment(source, position, line)
        else:
            tokens.append(Token("open", "{{", line))
            end, trim = _tokenize_action(source, position, line, tokens)
        line += source.count("\n", start, end)
        position = end


def _trims_left(source: str, after_open: int) -> bool:
    return source.startswith("-", after_open) and source[after_open + 1 : after_open + 2] in tuple(SPACES)


def _skip_comment(source: str, position: int, line: int) -> tuple[int, bool]:
    end = source.find("*/", position + 2)
    if end < 0:
        fail(line, "a comment {{/* is not closed with */}}")
    close = _CLOSE.match(source, end + 2)
    # `*/ -}}` may have exactly one space; anything else after */ is not the end of the action
    if close is None or len(close.group()) > 4:
        fail(line, f"a comment must end the action it stands in, found {show(source[end : end + 12])}")
    return close.end(), "-" in close.group()


def _tokenize_action(source: str, position: int, line: int, tokens: list[Token]) -> tuple[int, bool]:
    """Appends the tokens of one action; returns where it ends and whether it trims the text that follows."""
    opened_at = line
    while True:
        close = _CLOSE.match(source, position)
        space = _SPACE.match(source, position)
        after_space = space.end() if space else position
        if close is None:
            close = _CLOSE.match(source, after_space)
        if close is not None:
            line += source.count("\n", position, close.end())
            tokens.append(Token("close", "}}", line))
            return close.end(), "-" in close.group()
        line += source.count("\n", position, after_space)
        if after_space >= len(source):
            fail(opened_at, "an action {{ is not closed with }}")
        match = _TOKEN.match(source, after_space)
        if match is None:
            fail(line, f"unexpected {show(source[after_space : after_space + 20])} in an action")
        kind = str(match.lastgroup)
        value = match.group()
        tokens.append(Token(value if kind == "mark" else kind, value, line, spaced=after_space > position))
        line += value.count("\n")
        position = match.end()


def unquote(token: Token) -> str:
    r"""The text that a quoted or raw string literal stands for. ``\xff`` bytes become surrogate escapes."""
    if token.value.startswith("`"):
        return token.value[1:-1].replace("\r", "")
    quote, body = token.value[0], token.value[1:-1]
    pieces: list[bytes] = []
    last = 0
    for match in _ESCAPE.finditer(body):
        pieces.append(body[last : match.start()].encode())
        pieces.append(_escaped(match, quote, token.line))
        last = match.end()
    pieces.append(body[last:].encode())
    return b"".join(pieces).decode(errors="surrogateescape")


def _escaped(match: re.Match[str], quote: str, line: int) -> bytes:
    byte, octal, short, long, simple = match.groups()
    if byte or octal:
        value = int(byte, 16) if byte else int(octal, 8)
        if value < 256:
            return bytes([value])
    elif short or long:
        point = int(short or long, 16)
        if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
            return chr(point).encode()
    elif simple and not (simple in "'\"" and simple != quote):
        return _SIMPLE[simple].encode()
    fail(line, f"bad escape {show(match.group())} in {quote}...{quote}")
