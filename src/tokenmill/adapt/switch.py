"""Which of a model's adapters are on: several lie side by side on one base, each with a name.

with model_adapters.use("style"): ...      # for calls inside the block, in this thread or task only
with model_adapters.off(): ...             # the base alone: the reference model of DPO and its kin
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from tokenmill.config.parts import AdapterConfig
from tokenmill.core.errors import UsageError, did_you_mean

_chosen: ContextVar[Mapping[int, tuple[str, ...]] | None] = ContextVar("tokenmill_adapters", default=None)


class Adapters:
    """The adapters of one model by name, and those that are on by default."""

    def __init__(self) -> None:
        self.configs: dict[str, AdapterConfig] = {}
        self.default: tuple[str, ...] = ()

    def add(self, name: str, config: AdapterConfig) -> None:
        """A new adapter, on from now on instead of the others. UsageError for a name that is taken or has a dot."""
        if name in self.configs:
            raise UsageError(f"this model has an adapter {name!r} already; give the new one another name")
        if not name or "." in name:
            raise UsageError(f"an adapter cannot be called {name!r}: a name has no dot and is not empty")
        self.configs[name] = config
        self.default = (name,)

    def remove(self, name: str) -> None:
        """Forget a name whose modules are gone."""
        del self.configs[name]
        self.default = tuple(other for other in self.default if other != name)

    @property
    def active(self) -> tuple[str, ...]:
        """The names that are on for this call."""
        return (_chosen.get() or {}).get(id(self), self.default)

    def set_default(self, *names: str) -> None:
        """What is on outside of :meth:`use` blocks; nothing switches all off."""
        self.default = self._known(names)

    @contextmanager
    def use(self, *names: str) -> Iterator[None]:
        """Only these are on inside the block; nothing else changes, and other threads do not see it."""
        token = _chosen.set({**(_chosen.get() or {}), id(self): self._known(names)})
        try:
            yield
        finally:
            _chosen.reset(token)

    def off(self) -> AbstractContextManager[None]:
        """``use()`` without a name: the base alone."""
        return self.use()

    def _known(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in self.configs:
                near, known = did_you_mean(name, self.configs), ", ".join(self.configs) or "none"
                raise UsageError(f"this model has no adapter {name!r}{near}; it has: {known}")
        return names
