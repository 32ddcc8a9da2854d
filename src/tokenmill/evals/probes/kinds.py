"""The probes by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.evals.probes.certainty import calibration, consistency, cost
from tokenmill.evals.probes.finding import Finding, Options
from tokenmill.evals.probes.needle import needle
from tokenmill.evals.probes.trust import injection, safety
from tokenmill.evals.subject import Progress, Subject

Probe = Callable[[Subject, Options, Progress | None], Finding]
KINDS: dict[str, Probe] = {
    "needle": needle,
    "injection": injection,
    "safety": safety,
    "consistency": consistency,
    "calibration": calibration,
    "cost": cost,
}
CHATTING = tuple(kind for kind in KINDS if kind != "calibration")
"""Probes that hold a conversation."""


def run_probes(
    subject: Subject,
    kinds: Sequence[str],
    options: Options,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Finding]:
    """What each probe finds, in order. UsageError: an unknown probe, or one that needs a chat template without one."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"there is no probe {kind!r}{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}")
    if not subject.has_chat and (chatting := [kind for kind in kinds if kind in CHATTING]):
        raise UsageError(f"{subject.identity.name} has no chat template, which {', '.join(chatting)} need")

    def told(kind: str) -> Progress | None:
        return None if progress is None else lambda done, total: progress(kind, done, total)

    return [KINDS[kind](subject, options, told(kind)) for kind in kinds]
