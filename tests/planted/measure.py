"""Precision and recall of every map step on the planted corpus: ``python -m tests.planted.measure`` prints them."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.planted import corpus, personal

from tokenmill.data.curate.pii.find import KINDS, find
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.curate.steps import entry

DROPS: tuple[tuple[str, frozenset[str]], ...] = (
    ("gopher", frozenset({"gibberish", "symbols", "list"})),
    ("repetition", frozenset({"spam"})),
    ("fineweb", frozenset({"spam", "list", "symbols"})),
    ("c4", frozenset({"gibberish", "list", "symbols"})),
)
"""Step → what it has to drop; it has to keep ``prose``. Of the other kinds nothing is asked."""


def made(name: str, **options: Any) -> Any:
    """A step by its name."""
    found = entry(name)
    return found.builder()(found.options_class().model_validate(options), Context())


def score(
    step: Any, documents: Sequence[Document], bad: Callable[[Document], bool], good: Callable[[Document], bool]
) -> dict[str, float]:
    """Recall over the documents that have to go, precision over all that it drops of the two sorts."""
    chosen = [Document(d.id, d.text, dict(d.meta)) for d in documents if bad(d) or good(d)]
    stays = {document.id for document in step(list(chosen), Tally())}
    dropped = [document for document in chosen if document.id not in stays]
    right = sum(bad(document) for document in dropped)
    wanted = sum(bad(document) for document in chosen)
    return {"recall": right / wanted, "precision": right / max(len(dropped), 1), "documents": len(chosen)}


def measure(count: int = 40, seed: int = 1) -> dict[str, dict[str, float]]:
    """Step (``pii`` by kind) → recall, precision, documents."""
    documents = list(corpus.planted(count, seed))
    found: dict[str, dict[str, float]] = {}
    for name, bad in DROPS:
        judge = made(name, min_words=20) if name == "gopher" else made(name)
        found[name] = score(
            judge, documents, lambda d, bad=bad: d.meta["planted"] in bad, lambda d: d.meta["planted"] == "prose"
        )
    for code in corpus.SENTENCES:
        judge = made("language", keep=[other for other in corpus.SENTENCES if other != code], unknown=True)
        spoken = [d for d in documents if d.meta["planted"] == "language"]
        found[f"language {code}"] = score(
            judge, spoken, lambda d, code=code: d.meta["true_language"] == code, lambda d: True
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "evaluation.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in corpus.evaluation_rows()))
        judge = made("decontaminate", against=[str(file)])
        found["decontaminate"] = score(
            judge, documents, lambda d: d.meta["planted"] == "leak", lambda d: d.meta["planted"] != "leak"
        )
    return {**found, **measure_personal(count * 5, seed)}


def measure_personal(count: int, seed: int) -> dict[str, dict[str, float]]:
    """Recall and precision of each kind of personal data; a hit inside what was planted counts as no mistake."""
    right, planted, said = Counter[str](), Counter[str](), Counter[str]()
    for kind, sentence, value in personal.planted(count, seed):
        start = sentence.index(value)
        planted[kind] += 1
        for hit in find(sentence):
            covers = hit.start <= start + 1 and hit.end >= start + len(value) - 1
            inside = hit.start >= start and hit.end <= start + len(value)
            right[hit.kind] += hit.kind == kind and covers
            said[hit.kind] += (hit.kind == kind and covers) or not inside
    return {
        f"pii {kind}": {
            "recall": right[kind] / planted[kind],
            "precision": right[kind] / max(said[kind], 1), "documents": planted[kind]
        }
        for kind in KINDS
    }  # fmt: skip


if __name__ == "__main__":
    for name, values in measure(100, 7).items():
        print(f"{name:16}" + "".join(f"  {key} {value:8.3f}" for key, value in values.items()))
