"""How much of a prompt is read in a step in which somebody waits for the next word. No torch, no clock of its own.

A step takes as long as everything in it, so a long prompt read at once stalls all running answers: 2,048 tokens take
milliseconds on a large GPU and seconds on a laptop. No fixed number suits both, so the time is measured: what a step
with decoding alone takes, and how much longer it takes with a chunk of a prompt in it. The chunk is made as large as
lets a mixed step take ``SLOWDOWN`` times a plain one. Where more wait for their first word than read along, prompts
get that much more of the time: one running answer does not hold up fifteen that have not begun. An answer of a few
words does not count as read along: requests that come together begin together, else those that happened to be first
would slow all of them down (16 requests of 128 tokens took twice as many steps, and a quarter more time).
(Sarathi-Serve, Agrawal et al. 2024, sets a token budget by profiling; this is the same, measured while it runs.)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

SLOWDOWN = 2.0  # below the 3 that is promised, for single steps vary
LEAST = 16  # tokens: the products of a smaller chunk cost nearly as much
PLAIN_EVERY = 16  # mixed steps in a row, then a plain one: the measure stays fresh, and prompts lose a sixteenth
FRESH = 0.3  # weight of the newest measurement
YOUNG = 8  # tokens: a shorter answer has only begun; it waits that many long steps at most


@dataclass
class Pace:
    """``chunk`` tokens of prompts may go with a step that decodes, where no more wait than read along; it may then take
    ``slowdown`` times as long as a plain one."""

    slowdown: float = SLOWDOWN
    chunk: float = LEAST
    plain_s: float | None = None
    """Seconds of a step that only decodes; None as long as there was none."""
    _mixed: int = 0

    def allowance(self, readers: int, waiting: int) -> int:
        """Prompt tokens for a step with this many answers read along, while so many wait for their first token."""
        if not readers:
            return sys.maxsize
        if self.plain_s is None or self._mixed >= PLAIN_EVERY:
            return 0
        return int(self.chunk * max(1.0, waiting / readers))

    def took(self, seconds: float, decoding: int, prefill: int) -> None:
        """A step took so long, with this many sequences that decoded and this many tokens of prompts."""
        if not decoding:
            return
        if not prefill:
            self._mixed = 0
            self.plain_s = seconds if self.plain_s is None else self.plain_s + FRESH * (seconds - self.plain_s)
            return
        self._mixed += 1
        if self.plain_s is None:
            return
        allowed_s = (self.slowdown - 1) * self.plain_s
        # What a token of the prompt costs grows with what stands before it, so the latest chunk tells most. Half as
        # much again is the most that one step may add: it could have been a lucky one.
        fitting = prefill * allowed_s / max(seconds - self.plain_s, 1e-9)
        self.chunk = max(LEAST, min(fitting, 1.5 * self.chunk))
