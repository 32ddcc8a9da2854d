"""What takes the place of the data loader where batches are made while training: rollouts, by ``align``; or what
changes its batches, for a student that writes a part of them itself.

``train`` knows no engine. Who does hands in a :data:`Feeds`, and the loop runs over what it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmill.models.load import Model
from tokenmill.store import Store
from tokenmill.train.distributed import World
from tokenmill.train.evaluate import Evaluation
from tokenmill.train.watch_protocol import Event, Sample, Watcher

if TYPE_CHECKING:
    from tokenmill.train.loop import Source
    from tokenmill.train.plan import Plan


@dataclass(frozen=True)
class Feed:
    """The parts of a loop that go with batches of one's own."""

    source: Source | None = None
    evaluation: Callable[[], Evaluation] | None = None
    """Of the model as it is now, on held-out data."""
    samples: Callable[[int], Iterable[Sample]] | None = None
    """Texts to show, for a step."""
    guards: Callable[[Callable[[Event], None]], Watcher] | None = None
    """Makes a watcher of the run's metrics that says what looks wrong to those who watch it already."""
    over: Callable[[Source], Source] | None = None
    """Instead of a source: a change of the data's own batches, which leaves evaluation and samples as they are."""


Feeds = Callable[["Plan", Model, World, "Store | None"], Feed]
"""Makes the feed of a plan over its model, before a checkpoint is loaded."""
