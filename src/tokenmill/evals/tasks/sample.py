"""What is known of one row after it was asked: a line of the sample log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One row, what was answered, what that is worth."""

    id: str
    category: str
    prompt: str
    target: str
    """What is right, for a person."""
    output: str
    metrics: Mapping[str, float]
    """Only those that this row counts for."""
    details: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
