"""What all filters have in common: which documents they judge, and how a verdict is counted."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.config.parts import Part
from tokenmill.data.curate.step import Document, Tally


class FilterOptions(Part):
    """Options of every filter."""

    languages: list[str] | None = None
    """Judge only documents whose ``language`` (set by the step of that name) is among these; the others go on. Limits
    found on English do harm elsewhere. Without it every document is judged."""
    tag: bool = False
    """Write the reason into ``meta["flags"]`` instead of dropping the document."""


def judged(documents: Sequence[Document], languages: Sequence[str] | None) -> list[Document]:
    """Those that the filter looks at."""
    if languages is None:
        return list(documents)
    return [document for document in documents if document.meta.get("language") in languages]


def settle(
    documents: Sequence[Document], verdicts: dict[str, str], tally: Tally, *, tag: bool = False
) -> list[Document]:
    """Drop (or flag) the documents that have a verdict: id → reason. Returns those that go on."""
    going = []
    for document in documents:
        reason = verdicts.get(document.id)
        if reason is not None and not tag:
            tally.drop(document, reason)
            continue
        if reason is not None:
            document.meta["flags"] = [*document.meta.get("flags", ()), reason]
            tally.change(document, f"flagged_{reason}", document.text)
        going.append(document)
    tally.keep(len(going))
    return going
