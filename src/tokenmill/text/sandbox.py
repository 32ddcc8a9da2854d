"""A Jinja environment in which a stranger's template can only cost a bounded amount.

A chat template is a program inside a model file. Jinja's immutable sandbox keeps it from Python's internals; this
module keeps it from time and memory, which the sandbox does not: `Budget` counts steps, clock, characters and elements,
and every construct that can loop, grow a value or walk through one asks it first.

- loops, calls, filters, comparisons and outputs are steps; each looks at the clock, too;
- a text, and a container with all that it holds *counted as often as it would be printed*, stay below a limit that
  grows with the conversation (so nothing can be doubled forty times and then compared, hashed or printed);
- operations that would allocate before anybody could look (``'a' * 10**10``, ``'%999999999d'``, ``ljust``, ``replace``,
  ``join``, ``indent`` …) compute their result's size first (see `growth`);
- nothing is computed while compiling.

Refused altogether, though Jinja has them: the filters pprint, striptags, urlize, wordwrap, xmlattr, the global lipsum
(no chat template uses them, each costs more than its size), str.encode, str.translate, loading other templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from tokenmill.text.budget import CONTAINERS, CURRENT
from tokenmill.text.growth import FILTERS, REFUSED_FILTERS, bounded_method, check_operator


class _Generator(CodeGenerator):
    """Jinja's compiler, with the budget asked wherever a value is made without a hook of the sandbox."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.iter = nodes.Call(nodes.EnvironmentAttribute("ticking"), [node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._taken(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _taken(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.taken(")
        visit(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._taken(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._taken(super().visit_Dict, node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._taken(super().visit_Compare, node, frame)

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:
        self._taken(super().visit_Filter, node, frame)

    def visit_Test(self, node: nodes.Test, frame: Frame) -> None:
        self._taken(super().visit_Test, node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._taken(super().visit_Getitem, node, frame)
        else:
            self.write("environment.stepped(")
            super().visit_Getitem(node, frame)
            self.write(")")


class _GenerationBlock(Extension):
    """``{% generation %}…{% endgeneration %}``: marks what the assistant says. Rendering only passes it through."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # a call block, as in transformers: a {% set %} inside stays inside
        return nodes.CallBlock(self.call_method("_said"), [], [], body, lineno=line)

    def _said(self, caller: Macro) -> str:
        return caller()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' dialect (trimmed blocks, break/continue, generation blocks), every cost counted."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, loopcontrols],
            optimized=False,  # the optimizer would compute constants, however large, before any budget exists
            finalize=_printed,
        )
        self.filters.update(FILTERS)
        for name in REFUSED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]

    @staticmethod
    def taken(value: Any) -> Any:
        return CURRENT.get().take(value)

    @staticmethod
    def stepped(value: Any) -> Any:
        CURRENT.get().step()
        return value

    @staticmethod
    def ticking(values: Iterable[Any]) -> Iterator[Any]:
        return CURRENT.get().ticking(iter(values))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a block or the whole template printed, counting before joining."""
        budget, length, checked = CURRENT.get(), 0, []
        for part in parts:
            length += len(part)
            budget.allow(length)
            checked.append(part)
        text = "".join(checked)
        return str(budget.take(text))

    def joined(self, context: Context, parts: tuple[Any, ...]) -> str:
        """``a ~ b``."""
        texts = [part if isinstance(part, str) else str(self.taken(part)) for part in parts]
        CURRENT.get().allow(sum(map(len, texts)))
        escaped = context.eval_ctx.autoescape and any(hasattr(text, "__html__") for text in texts)
        return self.taken((Markup("") if escaped else "").join(texts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(CURRENT.get(), operator, left, right)
        return self.taken(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = CURRENT.get()
        budget.step()
        # the compiler adds these two, for Context.call to take away
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        for value in (*args, *given.values()):
            if isinstance(value, CONTAINERS):
                budget.allow(*budget.weigh(value))
        if isinstance(__obj, LoopContext) and args:  # loop(children) of a recursive loop
            args = (budget.ticking(args[0]), *args[1:])
        if (bounded := bounded_method(budget, __obj)) is not None:
            return budget.take(bounded(*args, **given))
        return budget.take(super().call(__context, __obj, *args, **kwargs))


@pass_context
def _printed(context: Context, value: Any) -> Any:
    """What ``{{ value }}`` prints. That it wants the context keeps Jinja from calling it while compiling."""
    budget = CURRENT.get()
    if isinstance(value, str):
        budget.step()
        return value
    budget.allow(*budget.weigh(value))
    return budget.take(str(value)) if not hasattr(value, "__html__") else value
