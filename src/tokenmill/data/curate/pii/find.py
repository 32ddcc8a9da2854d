"""All finders together, on one text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from tokenmill.data.curate.pii.contact import find_email, find_ip, find_phone
from tokenmill.data.curate.pii.hit import Hit
from tokenmill.data.curate.pii.money import find_card, find_iban
from tokenmill.data.curate.pii.national import find_national
from tokenmill.data.curate.pii.secrets import find_secret
from tokenmill.data.curate.pii.streets import find_address

KINDS = ("secret", "email", "iban", "card", "national", "ip", "phone", "address")
"""In the order in which they win where two overlap."""

# Six digits or more with little between them: only here are numbers looked for.
_NUMBERS = re.compile(r"\d(?:[^a-z\n\d]{0,3}\d){5,}")
_BEFORE, _AFTER = 12, 16


def find(text: str, kinds: Collection[str] = KINDS, *, public_ips_only: bool = True) -> list[Hit]:
    """Personal data in the text, in order and without overlaps.

    Args:
        kinds: which of `KINDS`.
        public_ips_only: addresses of private networks and documentation are nobody's.
    """
    hits = list(_all(text, kinds, public_ips_only))
    if len(hits) < 2:
        return hits
    rank = {kind: place for place, kind in enumerate(KINDS)}
    hits.sort(key=lambda hit: (rank[hit.kind], hit.start - hit.end, hit.start))
    taken: list[Hit] = []
    covered = bytearray(len(text))  # not a search through all that was taken: there may be a hit every few characters
    for hit in hits:
        if 1 not in covered[hit.start : hit.end]:
            covered[hit.start : hit.end] = b"\1" * (hit.end - hit.start)
            taken.append(hit)
    return sorted(taken)


def _all(text: str, kinds: Collection[str], public_ips_only: bool) -> Iterator[Hit]:
    if "secret" in kinds:
        yield from find_secret(text)
    if "email" in kinds and ("@" in text or "at" in text):
        yield from find_email(text)
    if "ip" in kinds:
        yield from find_ip(text, public_only=public_ips_only)
    if "address" in kinds:
        yield from find_address(text)
    if "iban" in kinds:
        yield from find_iban(text)
    if not {"card", "national", "phone"}.isdisjoint(kinds):
        for start, end in _places(text):
            if "card" in kinds:
                yield from find_card(text, start, end)
            if "national" in kinds:
                yield from find_national(text, start, end)
            if "phone" in kinds:
                yield from find_phone(text, start, end)


def _places(text: str) -> Iterator[tuple[int, int]]:
    """Where numbers are, with room for signs and letters around them; no two overlap."""
    low = high = -1
    for found in _NUMBERS.finditer(text):
        start, end = max(0, found.start() - _BEFORE), min(len(text), found.end() + _AFTER)
        if start > high:
            if high >= 0:
                yield low, high
            low = start
        high = end
    if high >= 0:
        yield low, high
