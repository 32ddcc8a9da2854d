"""Whether an answer goes round in circles: its last tokens are one pattern, again and again, to the letter.

A small model may write the same line until the context is full, and nobody gains by waiting for that. A penalty on
repeated tokens, the old answer, changes every answer there is, good ones too, and spoils code and JSON; so Ollama, like
llama.cpp, vLLM and transformers, has none by default. Ending an answer changes nothing of what it says. The three
numbers are vLLM's. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.core.errors import UsageError

MAX_PATTERN = 4096


@dataclass(frozen=True, kw_only=True)
class RepetitionDetection:
    """What counts as a loop: ``min_count`` copies of a pattern one after another, at the end of an answer.

    A short pattern's double is a pattern too, so with these defaults any loop has to be 256 tokens long, and eight
    copies at least, before it ends an answer: more than tables, refrains and rows of dots have.
    """

    max_pattern_size: int = 256
    min_pattern_size: int = 32
    min_count: int = 8

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.min_pattern_size <= self.max_pattern_size <= MAX_PATTERN:
            problems.append(f"1 <= min_pattern_size <= max_pattern_size <= {MAX_PATTERN}")
        if self.min_count < 2:
            problems.append("min_count >= 2")
        if problems:
            raise UsageError(f"repetition_detection needs {' and '.join(problems)}, not {self}")


def repeats(ids: Sequence[int], what: RepetitionDetection) -> bool:
    """Whether ``ids`` end in a loop. Asked after every token, it looks after every ``min_pattern_size`` of them, and
    tries a pattern's size only where the newest token stood that far back too: microseconds."""
    longest = min(what.max_pattern_size, len(ids) // what.min_count)
    if len(ids) % what.min_pattern_size or longest < what.min_pattern_size:
        return False
    before = list(reversed(ids[-longest - 1 : -1]))
    size = what.min_pattern_size - 1
    while True:
        try:
            size = before.index(ids[-1], size) + 1
        except ValueError:
            return False
        pattern = ids[-size:]
        copies = (ids[-size * (number + 1) : -size * number] for number in range(1, what.min_count))
        if all(copy == pattern for copy in copies):
            return True
