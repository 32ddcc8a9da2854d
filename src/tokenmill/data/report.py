"""What was found in the data before the first step: a table for people, plain values for files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

SHOWN = 20
"""Broken rows that are named; the others are only counted."""


@dataclass
class Side:
    """Training or evaluation data."""

    documents: int = 0
    samples: int = 0
    tokens: int = 0
    labels: int = 0
    """Of the tokens, those that count in the loss."""
    longest: int = 0
    """Tokens of the longest document, before it was cut."""
    truncated: int = 0
    """Documents longer than a row."""
    tokens_lost: int = 0
    """Cut off from them."""
    masked: int = 0
    """Rows dropped because nothing in them is learned."""
    duplicates: int = 0
    """Documents of rows that are equal to an earlier one."""
    endless: int = 0
    """Documents whose learned part does not end with an end token."""

    @property
    def label_share(self) -> float:
        """Share of the tokens that count in the loss."""
        return self.labels / self.tokens if self.tokens else 0.0


@dataclass
class DataReport:
    """Everything that the checks found."""

    train: Side = field(default_factory=Side)
    eval: Side = field(default_factory=Side)
    rows: int = 0
    """Rows read, broken ones included."""
    empty: int = 0
    """Rows that say nothing; they are left out."""
    broken: int = 0
    broken_rows: list[str] = field(default_factory=list)
    """``file:line: problem`` of the first of them."""
    leaked: int = 0
    """Training documents that the evaluation has too."""
    policies: dict[str, str] = field(default_factory=dict)
    """What was done with long documents, duplicates, leaked and masked rows."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (what, training, evaluation) for people."""
        sides = (self.train, self.eval)
        policy = self.policies.get
        lines: list[tuple[str, tuple[str, str]]] = [
            ("documents", _each(sides, "documents")),
            ("samples", _each(sides, "samples")),
            ("tokens", _each(sides, "tokens")),
            ("learned", (f"{self.train.label_share:.1%}", f"{self.eval.label_share:.1%}" if self.eval.tokens else "")),
            ("longest document", _each(sides, "longest")),
            (f"longer than a row ({policy('truncate', '')})", _each(sides, "truncated")),
            ("tokens cut off", _each(sides, "tokens_lost")),
            ("nothing to learn (dropped)", _each(sides, "masked")),
            (f"duplicates ({policy('duplicates', '')})", _each(sides, "duplicates")),
            ("without an end token", _each(sides, "endless")),
            (f"also in evaluation ({policy('leakage', '')})", (f"{self.leaked:,}", "")),
            ("empty rows (left out)", (f"{self.empty:,}", "")),
            ("broken rows (put aside)", (f"{self.broken:,}", "")),
        ]
        return [(name, *values) for name, values in lines]

    def warnings(self) -> Iterator[str]:
        """What a person should know before they spend time."""
        train = self.train
        if self.broken:
            yield f"{self.broken} of {self.rows} rows are broken and left out, the first: {self.broken_rows[0]}"
        if train.truncated and train.tokens_lost:
            yield (
                f"{train.truncated} of {train.documents} documents are longer than a row: {train.tokens_lost:,} tokens "
                f"are cut off (data.truncate={self.policies.get('truncate')}; a larger seq_len keeps them)"
            )
        if train.documents and train.endless > train.documents / 2:
            yield "most learned parts do not end with an end token: the model will not learn to stop"
        if 0 < train.label_share < 0.01:
            yield f"only {train.label_share:.2%} of the tokens are learned"
        if self.leaked:
            policy = self.policies.get("leakage")
            yield f"{self.leaked} training documents are in the evaluation too (data.leakage={policy})"
        if train.duplicates > train.documents / 10:
            yield f"{train.duplicates} documents are duplicates; data.duplicates=drop leaves them out"
        if not self.eval.samples:
            yield "nothing is held out: evaluation, early stopping and best checkpoints are off"


def _each(sides: tuple[Side, Side], name: str) -> tuple[str, str]:
    first, second = (f"{getattr(side, name):,}" for side in sides)
    return first, second
