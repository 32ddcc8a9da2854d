"""The step ``pii``: personal data and secrets replaced by typed placeholders, or their documents dropped."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import Field

from tokenmill.config.parts import Count, Part
from tokenmill.data.curate.pii.find import KINDS, find
from tokenmill.data.curate.pii.hit import Hit
from tokenmill.data.curate.rewrite import rewrite
from tokenmill.data.curate.step import Context, Document, Tally

PiiKind = Literal["secret", "email", "iban", "card", "national", "ip", "phone", "address"]


class PiiOptions(Part):
    """What is looked for and what happens to it."""

    kinds: list[PiiKind] = Field(default_factory=lambda: list(KINDS))  # type: ignore[arg-type]
    """Which kinds; all by default."""
    action: Literal["replace", "drop", "tag"] = "replace"
    """Replace each by its placeholder, drop documents with ``min_hits`` or more, or only count into ``meta["pii"]``."""
    min_hits: Count = 1
    """``action: drop``: from how many on."""
    placeholder: str = "<{kind}>"
    """What is put in its place; ``{kind}`` becomes EMAIL, PHONE, IP, IBAN, CARD, NATIONAL, ADDRESS or SECRET."""
    public_ips_only: bool = True
    """Leave addresses of private networks, documentation and this machine alone."""


def build(options: PiiOptions, context: Context) -> Pii:
    """The step."""
    return Pii(options)


class Pii:
    """Replaces in plain documents and in every message of conversations; counts by kind."""

    def __init__(self, options: PiiOptions) -> None:
        self.options = options

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        going = []
        for document in documents:
            counts: Counter[str] = Counter()
            if self.options.action == "replace":
                before = document.text
                rewrite(document, lambda text: self.replaced(text, counts))  # noqa: B023 called at once
                for kind, count in counts.items():
                    tally.change(document, kind, before, count)
            else:
                counts.update(hit.kind for hit in self._find(document.text))
                if self.options.action == "tag" and counts:
                    document.meta["pii"] = dict(sorted(counts.items()))
                elif counts.total() >= self.options.min_hits:
                    tally.drop(document, counts.most_common(1)[0][0])
                    continue
            going.append(document)
        tally.keep(len(going))
        return going

    def replaced(self, text: str, counts: Counter[str]) -> str:
        """The text with placeholders; `counts` grows by what was found."""
        hits = self._find(text)
        if not hits:
            return text
        parts, last = [], 0
        for hit in hits:
            parts += [text[last : hit.start], self.options.placeholder.replace("{kind}", hit.kind.upper())]
            last = hit.end
            counts[hit.kind] += 1
        return "".join([*parts, text[last:]])

    def _find(self, text: str) -> list[Hit]:
        return find(text, self.options.kinds, public_ips_only=self.options.public_ips_only)
