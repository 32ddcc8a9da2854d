"""How an operation finds its backend.

An :class:`Op` wraps the reference, the plainest torch code that is right. Backends are registered on it in order of
preference; each may say why it cannot do a given call. The first that can is used and named in the log once, with the
reasons of those passed over. A choice can be forced, for tests and for people who hunt a bug:

    with use_backend(attention="reference"): ...
    TOKENMILL_BACKEND=attention=reference,rms_norm=torch tokenmill run ...      (or just "reference" for every op)

Forcing is scoped to the calling context (a ``ContextVar``), so two engines in one process do not disturb each other.
A forced backend that cannot do the call is an error, never a silent fallback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.core.log import get_logger, info_once

P = ParamSpec("P")
R = TypeVar("R")
log = get_logger(__name__)

_forced: ContextVar[Mapping[str, str] | None] = ContextVar("tokenmill_backends", default=None)
_ops: dict[str, Op[Any, Any]] = {}


@dataclass(frozen=True)
class Backend(Generic[P, R]):
    name: str
    run: Callable[P, R]
    refuses: Callable[P, str | None]  # the reason why this call cannot be done here, or None


class Traced:
    """What stands for a tensor while a pass is recorded (``ops/program.py``): an operation on it is handed over."""

    recorder: Any


class Op(Generic[P, R]):
    """One operation. Calling it runs the best backend for the arguments; ``op.reference`` is the plain twin."""

    def __init__(self, reference: Callable[P, R]) -> None:
        update_wrapper(self, reference)
        self.name: str = reference.__name__
        self.reference = reference
        self.backends: list[Backend[P, R]] = []
        _ops[self.name] = self

    def backend(
        self, name: str, refuses: Callable[P, str | None] | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register a backend behind those already there (the first registered is the most wanted)."""

        def register(run: Callable[P, R]) -> Callable[P, R]:
            self.backends.append(Backend(name, run, refuses or (lambda *_, **__: None)))
            return run

        return register

    @property
    def names(self) -> list[str]:
        return [b.name for b in self.backends] + ["reference"]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if args and isinstance(args[0], Traced):
            return args[0].recorder.record(self.name, *args, **kwargs)
        forced = _forced.get()
        if forced is None:
            forced = _forced_by_environment(os.environ.get("TOKENMILL_BACKEND", ""))
        if forced:
            wanted = forced.get(self.name) or forced.get("*")
            if wanted:
                return self._run_forced(wanted, *args, **kwargs)
        passed_over = ""
        for candidate in self.backends:
            reason = candidate.refuses(*args, **kwargs)
            if reason is None:
                info_once(log, f"{self.name}: using {candidate.name}{passed_over}")
                return candidate.run(*args, **kwargs)
            passed_over += f"; not {candidate.name}: {reason}"
        info_once(log, f"{self.name}: using the reference{passed_over}")
        return self.reference(*args, **kwargs)

    def _run_forced(self, wanted: str, *args: P.args, **kwargs: P.kwargs) -> R:
        for candidate in self.backends:
            if candidate.name == wanted:
                reason = candidate.refuses(*args, **kwargs)
                if reason is not None:
                    raise UsageError(f"backend {wanted!r} was forced for {self.name}, but: {reason}")
                return candidate.run(*args, **kwargs)
        return self.reference(*args, **kwargs)


def registered_ops() -> Mapping[str, Op[Any, Any]]:
    """Every op imported so far, by name; ``tokenmill doctor`` shows them."""
    return _ops


def _checked(choices: Mapping[str, str]) -> Mapping[str, str]:
    for op, backend in choices.items():
        if op == "*":
            if backend != "reference":
                raise UsageError(f"only 'reference' can be forced for every op, not {backend!r}")
        elif op not in _ops:
            raise UsageError(f"no op is called {op!r}{did_you_mean(op, _ops)}; known: {', '.join(sorted(_ops))}")
        elif backend not in _ops[op].names:
            known = ", ".join(_ops[op].names)
            raise UsageError(f"{op} has no backend {backend!r}{did_you_mean(backend, _ops[op].names)}; it has: {known}")
    return choices


@cache
def _forced_by_environment(value: str) -> Mapping[str, str]:
    """Parse ``TOKENMILL_BACKEND``: ``reference``, or ``op=backend,op=backend``. Cached: this runs at every call."""
    choices: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in value.split(","))):
        op, equals, backend = part.partition("=")
        choices.update({op: backend} if equals else {"*": part})
    return _checked(choices)


@contextmanager
def use_backend(backend: str | None = None, /, **by_op: str) -> Iterator[None]:
    """Force backends inside the block: ``use_backend("reference")`` or ``use_backend(attention="sdpa")``."""
    choices = dict(by_op) if backend is None else {"*": backend, **by_op}
    token = _forced.set({**(_forced.get() or {}), **_checked(choices)})
    try:
        yield
    finally:
        _forced.reset(token)
