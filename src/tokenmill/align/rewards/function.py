"""A person's own Python function as a reward, in a process of its own: one that hangs is ended, one that crashes takes
nothing with it, and the run goes on.

    # my_rewards.py
    def short(samples):
        return [1.0 if len(sample.completion) < 80 else 0.0 for sample in samples]

The function is trusted: it is the person's code, with their rights. What a *model* wrote runs in ``core/code_sandbox``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tokenmill.align.rewards.base import Sample
from tokenmill.align.rewards.scored import Failure, Outcome, outcome
from tokenmill.config.rewards import FunctionReward
from tokenmill.core.errors import ConfigError
from tokenmill.core.line_process import LineProcess

HANGS = 3
"""Samples that may hang one after the other before the rest of a call is not tried any more."""


class Function:
    """See :class:`~tokenmill.config.rewards.FunctionReward`. ConfigError where there is no such function."""

    def __init__(self, config: FunctionReward) -> None:
        file, _, function = config.path.rpartition(":")
        if not file or not function.isidentifier():
            raise ConfigError(f"reward function: {config.path!r} is not FILE.py:function")
        if not Path(file).is_file():
            raise ConfigError(f"reward function: there is no file {file}")
        self.name, self.timeout_s = config.name or function, config.timeout_s
        self._file, self._function = str(Path(file).resolve()), function
        module = "tokenmill.align.rewards.function_worker"
        self._process = LineProcess([sys.executable, "-m", module, self._file, function])
        self._start()

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        if not samples:
            return []
        found = self._ask(samples)
        if not isinstance(found, Failure):
            return found
        if len(samples) == 1:
            return [found]
        outcomes: list[Outcome] = []  # one of them is at fault: which?
        hung = 0
        for sample in samples:
            one = Failure("timed_out", "not tried: others before it hung") if hung == HANGS else self._ask([sample])
            hung = hung + (hung < HANGS) if isinstance(one, Failure) and one.kind == "timed_out" else 0
            outcomes.append(one if isinstance(one, Failure) else one[0])
        return outcomes

    def close(self) -> None:
        """End the process; the next call starts another."""
        self._process.close()

    def _ask(self, samples: Sequence[Sample]) -> list[Outcome] | Failure:
        if not self._process.alive:
            self._start()
        try:
            reply = self._process.ask([vars(sample) for sample in samples], self.timeout_s)
        except TimeoutError as error:
            return Failure("timed_out", str(error))
        except EOFError as error:
            return Failure("raised", str(error))
        if "error" in reply:
            return Failure("raised", reply["error"])
        return [outcome(score) for score in reply["scores"]]

    def _start(self) -> None:
        try:
            problem = self._process.start().get("error")
        except (TimeoutError, EOFError) as error:
            problem = str(error)
        if problem:
            self.close()
            raise ConfigError(f"reward function: {self._file}:{self._function} cannot be used: {problem}")
