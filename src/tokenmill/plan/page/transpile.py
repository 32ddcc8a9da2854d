"""Arithmetic in Python to JavaScript, so that the page in the browser computes with the formulas of ``plan/``.

A module is taken as a whole: its numeric constants and its functions of numbers. What a formula may use: assignments,
``if``, ``while``, ``for … in range``, ``return``, arithmetic, comparisons, conditional expressions, calls of other
formulas with positional or keyword arguments and defaults, ``min max abs float int ceil floor sqrt exp log log2``,
dictionaries with words as keys. Anything else is refused with its place: better no page than one that computes
something else. The tests run both on the same arguments.

Where the two languages differ, Python's meaning holds: ``//`` and ``%`` round down, ``int`` cuts off, ``x < y < z`` is
a chain, division by zero is an error.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType

from tokenmill.core.errors import FormatError

MATHS = {
    "min": "Math.min",
    "max": "Math.max",
    "abs": "Math.abs",
    "ceil": "Math.ceil",
    "floor": "Math.floor",
    "sqrt": "Math.sqrt",
    "exp": "Math.exp",
    "log": "Math.log",
    "log2": "Math.log2",
    "int": "Math.trunc",
    "float": "Number",
}
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Pow: "**"}
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "===", ast.NotEq: "!=="}
RUNTIME = """\
function $div(a, b) { if (b === 0) throw new RangeError("division by zero"); return a / b; }
function $mod(a, b) { if (b === 0) throw new RangeError("division by zero"); return a - b * Math.floor(a / b); }
"""


def javascript(modules: Sequence[ModuleType]) -> str:
    """The constants and formulas of ``modules``, in order, as one piece of JavaScript without exports.

    A formula may call those of its own and of earlier modules. Names have to be different across modules.

    Raises:
        FormatError: something that is not arithmetic, or a name that two modules have.
    """
    known: dict[str, ast.FunctionDef | None] = {}
    parts = [RUNTIME]
    for module in modules:
        writer = _Writer(module.__name__, known)
        parts += writer.module(ast.parse(inspect.getsource(module)))
    return "\n".join(parts)


class _Writer:
    """Writes one module; ``known`` are the names so far: a formula's definition, or None for a constant."""

    def __init__(self, name: str, known: dict[str, ast.FunctionDef | None]) -> None:
        self._name, self._known = name, known
        self._locals: set[str] = set()

    def module(self, tree: ast.Module) -> Iterator[str]:
        defined = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in defined:
            self._define(node, node.name)
            self._known[node.name] = node
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef):
                yield self._function(statement)
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                yield self._constant(statement)
            elif not isinstance(statement, ast.Import | ast.ImportFrom) and not _is_text(statement):
                raise self._refused(statement, "only constants and functions stand in a module of formulas")

    def _define(self, node: ast.AST, name: str) -> None:
        if name in self._known:
            raise self._refused(node, f"{name} is defined twice")

    def _constant(self, node: ast.Assign | ast.AnnAssign) -> str:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if len(targets) != 1 or node.value is None:
            raise self._refused(node, "one name for one value")
        names = targets[0].elts if isinstance(targets[0], ast.Tuple) else [targets[0]]
        for name in names:
            if not isinstance(name, ast.Name):
                raise self._refused(name, "no name")
            self._define(node, name.id)
            self._known[name.id] = None
        value = self._expression(node.value)
        left = ", ".join(name.id for name in names if isinstance(name, ast.Name))
        return f"const [{left}] = {value};" if isinstance(targets[0], ast.Tuple) else f"const {left} = {value};"

    # --- functions and statements

    def _function(self, node: ast.FunctionDef) -> str:
        a = node.args
        if a.vararg or a.kwarg or a.posonlyargs or node.decorator_list:
            raise self._refused(node, "a formula has plain arguments and no decorators")
        parameters = [p.arg for p in (*a.args, *a.kwonlyargs)]
        self._locals = set(parameters)
        defaults = self._defaults(node)
        head = ", ".join(f"{p} = {self._expression(defaults[p])}" if p in defaults else p for p in parameters)
        body = [line for statement in node.body for line in self._statement(statement)]
        fresh = sorted(self._locals - set(parameters))
        declared = [f"  let {', '.join(fresh)};"] if fresh else []
        return "\n".join([f"function {node.name}({head}) {{", *declared, *body, "}"])

    @staticmethod
    def _defaults(node: ast.FunctionDef) -> dict[str, ast.expr]:
        a = node.args
        found = dict(zip((p.arg for p in a.args[len(a.args) - len(a.defaults) :]), a.defaults, strict=True))
        return found | {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d is not None}

    def _statement(self, node: ast.stmt, indent: str = "  ") -> Iterator[str]:
        if _is_text(node) or isinstance(node, ast.Pass):
            return
        if isinstance(node, ast.Return) and node.value is not None:
            yield f"{indent}return {self._expression(node.value)};"
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            yield f"{indent}{self._assignment(node)};"
        elif isinstance(node, ast.If | ast.While):
            word = "if" if isinstance(node, ast.If) else "while"
            yield f"{indent}{word} ({self._expression(node.test)}) {{"
            yield from self._block(node.body, indent)
            if node.orelse:
                if isinstance(node, ast.While):
                    raise self._refused(node, "while has no else")
                yield f"{indent}}} else {{"
                yield from self._block(node.orelse, indent)
            yield f"{indent}}}"
        elif isinstance(node, ast.For):
            yield from self._for(node, indent)
        else:
            raise self._refused(node, f"{type(node).__name__} is no arithmetic")

    def _block(self, body: Sequence[ast.stmt], indent: str) -> Iterator[str]:
        for statement in body:
            yield from self._statement(statement, indent + "  ")

    def _for(self, node: ast.For, indent: str) -> Iterator[str]:
        call = node.iter
        simple = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"
        if not simple or not isinstance(node.target, ast.Name) or node.orelse:
            raise self._refused(node, "a loop counts with range")
        assert isinstance(call, ast.Call)
        if len(call.args) > 2:
            raise self._refused(node, "range has no step")
        bounds = [self._expression(argument) for argument in call.args]
        low, high = bounds if len(bounds) == 2 else ("0", bounds[0])
        counter = f"${node.target.id}"  # so that, as in Python, the body may change the name without changing the count
        self._locals.add(node.target.id)
        yield f"{indent}for (let {counter} = {low}; {counter} < {high}; {counter}++) {{"
        yield f"{indent}  {node.target.id} = {counter};"
        yield from self._block(node.body, indent)
        yield f"{indent}}}"

    def _assignment(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> str:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None:
            raise self._refused(node, "a value is missing")
        value = self._expression(node.value)
        if len(targets) != 1:
            raise self._refused(node, "one assignment a line")
        target = targets[0]
        if isinstance(node, ast.AugAssign):
            left = self._expression(target)
            return f"{left} = {self._operation(node, node.op, left, value)}"
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        for name in names:
            if not isinstance(name, ast.Name):
                raise self._refused(node, "only names are assigned")
            self._locals.add(name.id)
        left = ", ".join(name.id for name in names if isinstance(name, ast.Name))
        return f"[{left}] = {value}" if isinstance(target, ast.Tuple) else f"{left} = {value}"

    # --- expressions

    def _expression(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=bool() as truth):
                return "true" if truth else "false"
            case ast.Constant(value=int() | float() as number):
                return repr(number)
            case ast.Constant(value=str() as text):
                return _quoted(text)
            case ast.Name():
                return self._name_of(node)
            case ast.BinOp():
                return self._operation(node, node.op, self._expression(node.left), self._expression(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return f"(-{self._expression(node.operand)})"
            case ast.UnaryOp(op=ast.Not()):
                return f"(!{self._expression(node.operand)})"
            case ast.BoolOp():
                word = " && " if isinstance(node.op, ast.And) else " || "
                return f"({word.join(map(self._expression, node.values))})"
            case ast.Compare():
                return self._comparison(node)
            case ast.IfExp():
                return (
                    f"({self._expression(node.test)} ? {self._expression(node.body)} : {self._expression(node.orelse)})"
                )
            case ast.Call():
                return self._call(node)
            case ast.Tuple() | ast.List():
                return f"[{', '.join(map(self._expression, node.elts))}]"
            case ast.Dict():
                return self._dictionary(node)
            case ast.Subscript(slice=ast.Constant(value=str() as key)):
                return f"{self._expression(node.value)}[{_quoted(key)}]"
        raise self._refused(node, f"{type(node).__name__} is no arithmetic")

    def _name_of(self, node: ast.Name) -> str:
        if node.id not in self._locals and node.id not in self._known:
            raise self._refused(node, f"{node.id} is not known here")
        return node.id

    def _operation(self, node: ast.AST, operator: ast.operator, left: str, right: str) -> str:
        if isinstance(operator, ast.Div):
            return f"$div({left}, {right})"
        if isinstance(operator, ast.FloorDiv):
            return f"Math.floor($div({left}, {right}))"
        if isinstance(operator, ast.Mod):
            return f"$mod({left}, {right})"
        if type(operator) not in OPERATORS:
            raise self._refused(node, f"{type(operator).__name__} is no arithmetic")
        # JavaScript refuses a bare minus before **, so both sides stand in parentheses
        return f"(({left}) {OPERATORS[type(operator)]} ({right}))"

    def _comparison(self, node: ast.Compare) -> str:
        values = [self._expression(value) for value in (node.left, *node.comparators)]
        words = []
        for n, operator in enumerate(node.ops):
            if type(operator) not in COMPARISONS:
                raise self._refused(node, f"{type(operator).__name__} is no comparison of numbers")
            words.append(f"({values[n]} {COMPARISONS[type(operator)]} {values[n + 1]})")
        return words[0] if len(words) == 1 else f"({' && '.join(words)})"

    def _call(self, node: ast.Call) -> str:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node, "only plain names are called")
        name = node.func.id
        called = self._known.get(name)
        if called is None:
            if name not in MATHS or node.keywords or name in self._locals:
                raise self._refused(node, f"{name} is no formula")
            return f"{MATHS[name]}({', '.join(map(self._expression, node.args))})"
        parameters = [p.arg for p in (*called.args.args, *called.args.kwonlyargs)]
        given = dict(zip(parameters, node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg in parameters}
        defaults = self._defaults(called)
        if len(given) != len(node.args) + len(node.keywords) or set(parameters) - set(given) - set(defaults):
            raise self._refused(node, f"arguments that {name} does not have, or lacks")
        words = [self._expression(given[p]) if p in given else "undefined" for p in parameters]
        return f"{name}({', '.join(words)})"

    def _dictionary(self, node: ast.Dict) -> str:
        words = []
        for key, value in zip(node.keys, node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                raise self._refused(node, "keys are words")
            words.append(f"{_quoted(key.value)}: {self._expression(value)}")
        return f"{{{', '.join(words)}}}"

    def _refused(self, node: ast.AST, problem: str) -> FormatError:
        return FormatError(self._name, f"line {getattr(node, 'lineno', 0)}", f"no formula for the page: {problem}")


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _quoted(text: str) -> str:
    import json

    return json.dumps(text).replace("</", "<\\/")
