"""A measured model that answers by a script, and notes what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenmill.evals.subject import Ask, Identity, Likelihood, Progress, Reply, Writing

FAKE = Identity("fake", "content")


@dataclass
class FakeSubject:
    """``say`` makes the replies, ``like`` the log-probability of a continuation."""

    say: Callable[[Ask], Reply | str] = lambda ask: ""
    like: Callable[[Ask, str], float] = lambda ask, text: -float(len(text))
    identity: Identity = FAKE
    has_chat: bool = True
    asked: list[Ask] = field(default_factory=list)
    hows: list[Writing] = field(default_factory=list)

    def likelihoods(self, pairs: Sequence[tuple[Ask, str]], progress: Progress | None = None) -> list[Likelihood]:
        self.asked += [ask for ask, _ in pairs]
        return [Likelihood(self.like(ask, text), max(1, len(text.split())), False) for ask, text in pairs]

    def write(self, asks: Sequence[Ask], how: Writing, progress: Progress | None = None) -> list[list[Reply]]:
        self.asked += asks
        self.hows.append(how)
        said = [self.say(ask) for ask in asks for _ in range(how.samples)]
        replies = [Reply(one) if isinstance(one, str) else one for one in said]
        return [replies[n : n + how.samples] for n in range(0, len(replies), how.samples)]
