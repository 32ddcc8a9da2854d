"""Rewards for what a model wrote to be run: code with its tests, in the sandbox; tool calls against their tools."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.scored import Failure, Outcome, each
from tokenmill.align.rewards.verifiers import column, fenced
from tokenmill.config.rewards import CodeReward, ToolCallReward
from tokenmill.core.code_sandbox import SandboxError, isolation, run_tests
from tokenmill.core.errors import ConfigError
from tokenmill.text.json_schema import Schema
from tokenmill.text.tool_calls import ToolCall, ToolCallParser


class Code:
    """See :class:`~tokenmill.config.rewards.CodeReward`. ConfigError where this machine cannot isolate."""

    def __init__(self, config: CodeReward) -> None:
        if not isolation().enough:
            reasons = "; ".join(f"{name}: {why}" for name, why in isolation().missing.items())
            raise ConfigError(f"reward code: this machine cannot run foreign code safely ({reasons})")
        self.config, self.name = config, config.name or config.kind

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(self._score, samples))

    def _score(self, sample: Sample) -> Outcome:
        tests = column(sample, self.config.column, self.name)
        parts = [tests] if isinstance(tests, str) else list(map(str, tests))
        if not parts:
            raise ConfigError(f"reward {self.name}: row {sample.index} has an empty list of tests")
        program = fenced(sample.completion, ("python", "py", ""))
        limits: dict[str, Any] = {"timeout_s": self.config.timeout_s, "memory_mb": self.config.memory_mb}
        try:
            # a program that loops is not waited for once a test
            results: list[bool] = []
            for part in parts:
                result = run_tests(program, part, **limits)
                results.append(result.status == "ok")
                if result.status == "timeout":
                    break
        except (SandboxError, OSError) as error:  # this machine's fault, not the answer's
            return Failure("raised", str(error)[:400])
        return sum(results) / len(parts)


class ToolCalls:
    """See :class:`~tokenmill.config.rewards.ToolCallReward`."""

    def __init__(self, config: ToolCallReward) -> None:
        self.config, self.name = config, config.name or config.kind

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return each(self._score, samples)

    def _score(self, sample: Sample) -> Outcome:
        if sample.turns:  # the run's own tools were called, and have said what did not fit
            calls, valid = made_calls(sample), not sample.tool_invalid
        else:
            tools = _parsed(column(sample, self.config.tools, self.name))
            schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
            calls = written_calls(sample.completion, tools)
            valid = all(call.name in schemas and Schema(schemas[call.name]).fits(call.arguments) for call in calls)
        if not calls or not valid:
            return 0.0
        right = _parsed(sample.row.get(self.config.calls))
        if not right:
            return 1.0
        wanted = Counter(_key(call["name"], _parsed(call["arguments"])) for call in right)
        made = Counter(_key(call.name, call.arguments) for call in calls)
        return (wanted & made).total() / max(wanted.total(), made.total())


def made_calls(sample: Sample) -> list[ToolCall]:
    """The calls of all turns of a completion whose model had tools."""
    calls = [call["function"] for turn in sample.turns for call in turn.get("tool_calls", ())]
    return [ToolCall(call["name"], call["arguments"]) for call in calls]


def written_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
    """The tool calls in an answer, in whichever of the known forms they are written."""
    parser = ToolCallParser(("hermes", "mistral", "llama3"), tools)
    return [event for event in [*parser.push(text), *parser.flush()] if isinstance(event, ToolCall)]


def _parsed(value: Any) -> Any:
    """Tables hold nested values as JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True)
