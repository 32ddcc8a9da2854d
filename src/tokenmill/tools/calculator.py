"""Arithmetic for models: an expression read as a tree, of which only numbers, operators and a few functions count."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

MOST_CHARACTERS = 500
MOST_BITS = 4096
"""Of a whole number on the way: ``9**9**9`` is refused before it is computed."""
MOST_DIGITS = 20


def _round(value: Any, digits: int = 0) -> Any:
    if abs(digits) > MOST_DIGITS:
        raise ValueError(f"rounded to at most {MOST_DIGITS} digits")
    return round(value, digits)


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "round": _round, "min": min, "max": max, "sqrt": math.sqrt, "exp": math.exp, "log": math.log,
    "log2": math.log2, "log10": math.log10, "sin": math.sin, "cos": math.cos, "tan": math.tan,
    "floor": math.floor, "ceil": math.ceil,
}  # fmt: skip
_CONSTANTS = {"pi": math.pi, "e": math.e}
_SIGNS = str.maketrans(
    {"\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-"}
)


def calculator(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: For example 12 * (3 + 4.5) / 2**3; sqrt, log, sin, round, min, max, pi and the like are known.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"more than {MOST_CHARACTERS} characters")
    text = expression.replace("^", "**").translate(_SIGNS).strip().removesuffix("=").strip()
    try:
        tree = ast.parse(text, mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("this is no arithmetic expression") from error
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError("the result is no real number")
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _bounded(_BINARY[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id not in _FUNCTIONS:
            raise ValueError(f"there is no function {node.func.id}; known: {', '.join(_FUNCTIONS)}")
        return _bounded(_FUNCTIONS[node.func.id](*map(_value, node.args)))
    raise ValueError("this is no arithmetic expression")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MOST_BITS:
        raise ValueError("the number is too large")
    return _bounded(base**exponent)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("the number is too large")
    return value
