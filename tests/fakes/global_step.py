"""One global curation step run alone: its three turns as the pipeline takes them, without files of documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.data.curate.step import Context, Document, GlobalStep, Tally
from tokenmill.data.curate.steps import entry


def step_of(name: str, seed: int = 0, **options: Any) -> GlobalStep:
    """A global step as a recipe makes it."""
    found = entry(name)
    step = found.builder()(found.options_class().model_validate(options), Context(seed))
    assert isinstance(step, GlobalStep)
    return step


def run(step: GlobalStep, shards: Sequence[Sequence[Document]], folder: Path) -> tuple[list[Document], Tally]:
    """All three turns of a global step over `shards`, its files in `folder`."""
    observed: list[Path] = []
    kept: list[Document] = []
    verdict, tally = folder / "verdict", Tally()
    verdict.mkdir(parents=True)
    for number, shard in enumerate(shards):
        observed.append(folder / f"{number}.observed")
        observed[-1].write_bytes(step.observe(list(shard)))
    step.decide(observed, verdict)
    for number, shard in enumerate(shards):
        kept += step.apply(list(shard), tally, verdict, number)
    assert tally.kept == len(kept)
    assert not list(verdict.glob("*.tmp")), "left over"
    return kept, tally
