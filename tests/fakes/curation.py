"""Two small curation steps, one of each kind, and a set of documents to run them on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenmill.config.parts import Part
from tokenmill.data.curate.step import Context, Document, GlobalStep, Step, Tally
from tokenmill.data.curate.steps import Entry


class ShortOptions(Part):
    least: int = 20


def short(options: ShortOptions, context: Context) -> Step:
    """Drops short documents and turns the word foo into bar."""

    def run(documents: list[Document], tally: Tally) -> list[Document]:
        kept = []
        for document in documents:
            if len(document.text) < options.least:
                tally.drop(document, "short")
                continue
            if "foo" in document.text:
                before, document.text = document.text, document.text.replace("foo", "bar")
                tally.change(document, "foo", before, before.count("foo"))
            kept.append(document)
        tally.keep(len(kept))
        return kept

    return run


class SameOptions(Part):
    pass


class Same:
    """Drops documents whose text an earlier one has."""

    def observe(self, documents: list[Document]) -> bytes:
        return json.dumps([document.text for document in documents]).encode()

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        assert not any(folder.iterdir())
        seen: set[str] = set()
        for shard, path in enumerate(observed):
            keep = []
            for text in json.loads(path.read_bytes()):
                keep.append(text not in seen)
                seen.add(text)
            (folder / f"{shard}.json").write_text(json.dumps(keep))
        (folder / "output").mkdir()
        (folder / "output" / "count.txt").write_text(str(len(seen)))

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        keep = json.loads((folder / f"{shard}.json").read_text())
        kept = []
        for document, stays in zip(documents, keep, strict=True):
            if stays:
                kept.append(document)
            else:
                tally.drop(document, "same")
        tally.keep(len(kept))
        return kept


def same(options: SameOptions, context: Context) -> GlobalStep:
    return Same()


ENTRIES = {
    "short": Entry("tests.fakes.curation:ShortOptions", "tests.fakes.curation:short", "Drop short documents"),
    "same": Entry("tests.fakes.curation:SameOptions", "tests.fakes.curation:same", "Drop what came before"),
}


def rows(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Documents of which some are short, some have a foo, and a tenth are copies of others."""
    random_ = random.Random(seed)
    words = [" ".join(f"word{n * 7 % m}" for n in range(m)) for m in range(1, 40)] + ["foo"]
    texts: list[str] = []
    for number in range(count):
        if texts and random_.random() < 0.1:
            text = random_.choice(texts)
        else:
            text = " ".join(random_.choices(words, k=random_.randint(0, 12)))
            texts.append(text)
        yield {"text": text, "number": number}


def write_jsonl(path: Path, values: Iterator[dict[str, Any]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
