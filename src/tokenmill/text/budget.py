"""What one rendering of a stranger's template may cost, and the counting of it.

Every construct that can loop, grow a value or walk through one asks the `Budget` first (see `sandbox` for where,
`growth` for the sizes of results before they exist).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS: tuple[type[Collection[Any]], ...] = (list, tuple, dict, set, frozenset, *_VIEWS)
SIZED: tuple[type[Collection[Any]], ...] = (str, *CONTAINERS)
MAX_INT_BITS = 4096


class LimitError(Exception):
    """The template ran past a limit. (Not a ValueError: Jinja's filters swallow those.)"""


@dataclass
class Budget:
    """What one rendering may still cost."""

    steps: int = 200_000
    chars: int = 1 << 20  # of one value, its parts counted as often as they would be printed
    items: int = 200_000  # of one value, likewise
    produced: int = 64 << 20  # characters and elements of all values together
    seconds: float = 3.0
    _deadline: float = field(init=False)
    _weights: dict[int, tuple[Any, int, int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    @classmethod
    def for_input(cls, chars: int, items: int) -> Budget:
        """A budget for a conversation of that size: a long one may cost more than a short one."""
        return cls(
            steps=200_000 + 1000 * items,
            chars=(1 << 20) + 16 * chars,
            items=200_000 + 16 * items,
            produced=(64 << 20) + 256 * chars,
            seconds=3.0 + chars / 1e6,
        )

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LimitError("it takes too many steps")
        if time.monotonic() > self._deadline:
            raise LimitError("it takes too long")

    def allow(self, chars: int, items: int = 0) -> None:
        """Refuse a value of that size before it is made."""
        if chars > self.chars:
            raise LimitError(f"it makes a text of more than {self.chars} characters")
        if items > self.items:
            raise LimitError(f"it makes a list of more than {self.items} elements")

    def take(self, value: Any) -> Any:
        """Count a value that an expression gave; returns it."""
        self.step()
        if isinstance(value, SIZED):
            self.produced -= len(value)
            if self.produced < 0:
                raise LimitError("it makes too much text")
            self.allow(*self.weigh(value))
        elif isinstance(value, int):
            self.weigh(value)
        return value

    def weigh(self, value: Any) -> tuple[int, int]:
        """(characters, elements) of a value as if printed. Containers cannot change here, so each is walked once."""
        if isinstance(value, str):
            return len(value), 1
        if isinstance(value, int):
            if value.bit_length() > MAX_INT_BITS:
                raise LimitError("it makes a huge number")
            return value.bit_length() // 3 + 2, 1
        if not isinstance(value, CONTAINERS):
            return 16, 1
        if known := self._weights.get(id(value)):
            return known[1:]
        chars = items = 1
        for part in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            part_chars, part_items = self.weigh(part)
            chars, items = chars + part_chars + 4, items + part_items
            self.allow(chars, items)
        if not isinstance(value, (list, tuple, dict)):
            return chars, items  # a view is a new object each time
        self._weights[id(value)] = (value, chars, items)
        return chars, items

    def ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, each a step."""
        for value in values:
            self.step()
            yield value


# Context-local, not process-wide: two renderings in two threads or tasks do not see each other's
CURRENT: ContextVar[Budget] = ContextVar("tokenmill_template_budget")
