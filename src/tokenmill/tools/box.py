"""The tools of a recipe: told to the model by schema, called by name, each call bounded by the clock.

Whatever goes wrong with a call (no such tool, arguments that do not fit, an exception, nan, a hang, a crash) becomes a
result that says so: the model reads it, the log counts it, the run goes on.
"""

from __future__ import annotations

import json
import queue
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from tokenmill.config.tools import BUILT_IN, ToolsConfig
from tokenmill.core.code_sandbox import SandboxError, isolation, run_code
from tokenmill.core.errors import ConfigError, did_you_mean
from tokenmill.core.line_process import LineProcess
from tokenmill.core.log import get_logger
from tokenmill.text.json_schema import Schema
from tokenmill.text.tool_calls import ToolCall
from tokenmill.tools.calculator import calculator
from tokenmill.tools.schema import function_schema

HANGS = 3
"""Calls of a tool that may hang one after the other before the rest of its calls of a round are not tried any more."""
MOST_WORDS = 400
"""Characters of what went wrong."""
_log = get_logger(__name__)

Kind = Literal["done", "failed", "timed_out", "invalid"]


@dataclass(frozen=True)
class Result:
    """What a call came to. ``invalid``: there was nothing to run, for want of such a tool or of arguments that fit."""

    kind: Kind
    text: str


def python(code: str) -> str:
    """Run a Python program and read what it prints. No files, no network, no packages but the standard library.

    Args:
        code: The program; print what you want to know.
    """
    raise NotImplementedError(code)  # told by its signature; runs in the sandbox


class ToolBox:
    """See :class:`~tokenmill.config.tools.ToolsConfig`. ConfigError where a tool cannot be used."""

    def __init__(self, config: ToolsConfig) -> None:
        self.config = config
        places = [name for name in config.use if name not in BUILT_IN]
        for name in places:
            if not all(name.rpartition(":")[::2]):
                raise ConfigError(
                    f"tools: {name!r} is neither FILE.py:function, module:function nor one of "
                    f"{', '.join(BUILT_IN)}{did_you_mean(name, BUILT_IN)}"
                )
        if "python" in config.use and not isolation().enough:
            reasons = "; ".join(f"{name}: {why}" for name, why in isolation().missing.items())
            raise ConfigError(f"tools: this machine cannot run a model's python safely ({reasons})")
        self._command = [sys.executable, "-m", "tokenmill.tools.worker", *places]
        self._free: queue.LifoQueue[LineProcess] = (
            queue.LifoQueue()
        )  # one that runs is taken before one that would start
        told = iter(self._first_worker(config.concurrency) if places else [])
        built_in = {"python": function_schema(python), "calculator": function_schema(calculator)}
        self.schemas: list[dict[str, Any]] = [built_in.get(name) or next(told) for name in config.use]
        """Of all tools, in the recipe's order, as OpenAI's API has them."""
        names = Counter(schema["function"]["name"] for schema in self.schemas)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(f"tools: two are called {twice[0]!r}")
        self._schemas = {one["function"]["name"]: Schema(one["function"]["parameters"]) for one in self.schemas}
        self._built_in: dict[str, Callable[..., Result]] = {
            name: run for name, run in {"python": self._python, "calculator": _calculated}.items() if name in config.use
        }
        self._hung: Counter[str] = Counter()
        self._warned: set[tuple[str, Kind]] = set()

    def run(self, calls: Sequence[ToolCall], offered: Sequence[Sequence[str]]) -> list[Result]:
        """What all calls come to, in order; several at a time. ``offered``: names of the tools that each may call."""
        self._hung.clear()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            results = list(pool.map(self._result, calls, offered))
        for call, result in zip(calls, results, strict=True):
            if result.kind != "done" and (call.name, result.kind) not in self._warned:
                self._warned.add((call.name, result.kind))  # how often stands in the metrics; why, here, once
                _log.warning("tool %r: %s: %s", call.name[:64], result.kind, result.text)
        return results

    def close(self) -> None:
        """End the tools' processes; the next call starts them anew."""
        for _ in range(self._free.qsize()):
            process = self._free.get()
            process.close()
            self._free.put(process)

    def _result(self, call: ToolCall, offered: Sequence[str]) -> Result:
        if call.name not in offered:
            return problem("invalid", f"there is no tool {call.name[:64]!r}; there are {', '.join(offered)}")
        schema = self._schemas[call.name]
        try:
            problems = schema.problems(call.arguments)
        except (ValueError, RecursionError) as error:
            problems = [str(error)]
        if problems:
            return problem("invalid", f"the arguments of {call.name} do not fit: {'; '.join(problems)}")
        unknown = call.arguments.keys() - self._parameters(call.name)
        if unknown:
            return problem("invalid", f"{call.name} has no parameter {min(unknown)!r}")
        if self._hung[call.name] >= HANGS:
            return problem("timed_out", "not tried: calls before this one took too long")
        result = self._built_in.get(call.name, self._theirs)(call)
        self._hung[call.name] = self._hung[call.name] + 1 if result.kind == "timed_out" else 0
        return result

    def _parameters(self, name: str) -> Mapping[str, Any]:
        found = next(one["function"] for one in self.schemas if one["function"]["name"] == name)
        properties: Mapping[str, Any] = found["parameters"]["properties"]
        return properties

    def _first_worker(self, count: int) -> list[dict[str, Any]]:
        """Start one process of people's functions, for their schemas; the others start when they are needed."""
        first, *others = (LineProcess(self._command) for _ in range(count))
        try:
            said = first.start()
        except (TimeoutError, EOFError) as error:
            said = {"error": str(error)}
        if "error" in said:
            raise ConfigError(f"tools: {' '.join(self._command[3:])} cannot be used: {said['error']}")
        for process in (*others, first):
            self._free.put(process)
        schemas: list[dict[str, Any]] = said["schemas"]
        return schemas

    def _theirs(self, call: ToolCall) -> Result:
        process = self._free.get()
        try:
            if not process.alive:
                process.start()
            said = process.ask({"name": call.name, "arguments": call.arguments}, self.config.timeout_s)
        except TimeoutError as error:
            return problem("timed_out", str(error))
        except EOFError as error:
            return problem("failed", str(error))
        finally:
            self._free.put(process)
        return problem("failed", said["error"]) if "error" in said else Result("done", said["result"])

    def _python(self, call: ToolCall) -> Result:
        limits: dict[str, Any] = {"timeout_s": self.config.timeout_s, "memory_mb": self.config.memory_mb}
        try:
            result = run_code(call.arguments["code"], **limits)
        except (SandboxError, OSError) as error:
            return problem("failed", str(error))
        if result.status == "ok":
            return Result("done", result.stdout.strip() or "(it printed nothing)")
        if result.status == "timeout":
            return problem("timed_out", f"no end in {self.config.timeout_s:g} s")
        last = next(reversed(result.stderr.strip().splitlines()), "it ended without a word")
        return problem("failed", "out of memory" if result.status == "memory" else last)


def tool_schemas(config: ToolsConfig) -> list[dict[str, Any]]:
    """What a model is told of a recipe's tools; none without any. ConfigError where one cannot be used."""
    if not config.use:
        return []
    box = ToolBox(config)
    box.close()
    return box.schemas


def problem(kind: Kind, words: str) -> Result:
    """A result that says what went wrong."""
    return Result(kind, json.dumps({"error": words[:MOST_WORDS]}, ensure_ascii=False))


def _calculated(call: ToolCall) -> Result:
    try:
        return Result("done", calculator(**call.arguments))
    except (ValueError, ArithmeticError, TypeError) as error:
        return problem("failed", f"{type(error).__name__}: {error}")
