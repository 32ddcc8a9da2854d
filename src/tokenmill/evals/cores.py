"""The cores and threads that a measured program gets, ours and its peers alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """Where everybody's threads run: ``threads`` of them on the first of the cores ``ids`` (none: not known here)."""

    threads: int
    ids: tuple[int, ...] = ()

    @property
    def used(self) -> tuple[int, ...]:
        return self.ids[: self.threads]

    @contextmanager
    def all(self) -> Iterator[None]:
        """A child started inside may use all of ``ids``. It would inherit one core where OpenMP has bound us to it."""
        if not self.ids:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.ids)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
