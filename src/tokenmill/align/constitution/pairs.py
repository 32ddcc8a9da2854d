"""Transcripts to preference pairs: which revisions count, and why the others do not.

Of several rounds the last revision that counts is taken. On a harmless prompt the pair is the other way round: the
answer that helped is chosen over a revision that declined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tokenmill.align.constitution.revise import Round, Transcript
from tokenmill.align.constitution.rules import Constitution
from tokenmill.data.curate.shingles import plain_words, shingle_hashes

COPIED = 0.5
"""Share of a revision's runs of five words that may stand in the answer, its critique or its request."""
COPIED_EXAMPLE = 0.8
"""The same for the revisions of the examples: a form is meant to be learned from them."""
LONGER = 3.0
"""Times as many words as the first answer that a revision may have; short answers may grow to `SHORT` words."""
SHORT = 60
REPEATED = 0.5
"""Share of a revision's runs of three words that has to be there only once: less is a loop."""
Reason = Literal[
    "cut_off", "empty", "unchanged", "copied_answer", "copied_critique", "copied_example", "too_long", "loops",
    "fails_check", "already_good", "not_declined", "first_declined", "repeated",
]  # fmt: skip
"""Why a transcript gives no pair."""


@dataclass(frozen=True)
class Judgement:
    """What a transcript is good for: a pair, or the reason why there is none."""

    transcript: Transcript
    reason: Reason | None
    """None: it is a pair."""
    principle: str = ""
    """Whose revision was taken."""
    chosen: str = ""
    rejected: str = ""

    def row(self) -> dict[str, Any]:
        """A row to train on."""
        return {"prompt": self.transcript.prompt, "chosen": self.chosen, "rejected": self.rejected}


def judge(transcripts: Sequence[Transcript], constitution: Constitution) -> list[Judgement]:
    """A judgement on each transcript, in order."""
    judged: list[Judgement] = []
    seen: set[tuple[str, str, str]] = set()
    for transcript in transcripts:
        found = _harmless(transcript, constitution) if transcript.harmless else _harmful(transcript, constitution)
        said = (transcript.prompt, found.chosen, found.rejected)
        if found.reason is None and said in seen:
            found = Judgement(transcript, "repeated")
        seen.add(said)
        judged.append(found)
    return judged


def training_rows(judged: Sequence[Judgement]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs (prompt, chosen, rejected), and what is chosen alone (prompt, completion) for supervised training."""
    pairs = [one.row() for one in judged if one.reason is None]
    return pairs, [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]


def _harmful(transcript: Transcript, constitution: Constitution) -> Judgement:
    if not transcript.first:
        return Judgement(transcript, "empty")
    if constitution.checks.is_good(transcript.first):
        return Judgement(transcript, "already_good")
    reasons = [reason_against(transcript, one, constitution) for one in transcript.rounds]
    for one, reason in zip(reversed(transcript.rounds), reversed(reasons), strict=True):
        if reason is None:
            return Judgement(transcript, None, one.principle, one.revision, transcript.first)
    return Judgement(transcript, reasons[-1] if reasons else "unchanged")


def _harmless(transcript: Transcript, constitution: Constitution) -> Judgement:
    if not transcript.first:
        return Judgement(transcript, "empty")
    if constitution.checks.is_good(transcript.first):
        return Judgement(transcript, "first_declined")
    for one in reversed(transcript.rounds):
        if constitution.checks.is_good(one.revision) and one.finish_reason != "length":
            return Judgement(transcript, None, one.principle, transcript.first, one.revision)
    return Judgement(transcript, "not_declined")


def reason_against(transcript: Transcript, one: Round, constitution: Constitution) -> Reason | None:
    """Why a revision does not count; None if it does."""
    if one.finish_reason in ("length", "refused"):
        return "cut_off" if one.finish_reason == "length" else "empty"
    words, first = plain_words(one.revision).split(), plain_words(transcript.first).split()
    if not words:
        return "empty"
    if words == first:
        return "unchanged"
    principle = next(found for found in constitution.principles if found.name == one.principle)
    if _shared(one.revision, [transcript.first]) > COPIED:
        return "copied_answer"
    if _shared(one.revision, [one.critique, principle.critique, principle.revision]) > COPIED:
        return "copied_critique"
    if _shared(one.revision, [shown.revision for shown in constitution.examples_for(principle)]) > COPIED_EXAMPLE:
        return "copied_example"
    if len(words) > max(SHORT, LONGER * len(first)):
        return "too_long"
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if runs and len(set(runs)) / len(runs) < REPEATED:
        return "loops"
    return None if constitution.checks.accepts(one.revision) else "fails_check"


def _shared(text: str, others: Sequence[str]) -> float:
    """The largest share of the text's runs of five words that stands in one of the others."""
    hashes, counts = shingle_hashes([text, *others], 5)
    ends = np.cumsum(counts)
    mine = hashes[: ends[0]]
    if not len(mine):
        return 0.0
    return max(
        (float(np.isin(mine, hashes[ends[i] : ends[i + 1]]).mean()) for i in range(len(others))),
        default=0.0,
    )
