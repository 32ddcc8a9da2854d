"""Bank accounts (IBAN) and payment cards: shape, issuer, check digits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenmill.data.curate.pii.checksums import luhn, mod_97
from tokenmill.data.curate.pii.hit import Hit, said_before

_IBAN = re.compile(r"[A-Z](?<![A-Za-z0-9][A-Z])[A-Z]\d{2}(?=[ -]?[A-Z0-9])")
_IBAN_REST = re.compile(r"(?:[ \u00a0-]?[A-Z0-9]){1,34}")
_CARD = re.compile(r"(?<![\w.,+/$€£-])(?<!\d )\d(?:[ \u00a0-]?\d){11,18}(?![\w]|[-.,/ ]\d)")
_GROUPS = re.compile(r"\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|\d{4}([ \u00a0-])\d{6}\2\d{4,5}|\d{12,19}")
_CARD_WORDS = re.compile(r"card|visa|maestro|master|amex|karte|carte|tarjeta|carta|kaart|cvv|credit|debit|pan\b")

# ISO 13616 registry: length of the IBAN of each country
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ DJ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def find_iban(text: str) -> Iterator[Hit]:
    """International bank account numbers, in groups or not."""
    for found in _IBAN.finditer(text):
        length = _LENGTHS.get(found.group()[:2])
        rest = None if length is None else _IBAN_REST.match(text, found.end())
        if length is None or rest is None:
            continue
        end, left = found.end(), length - 4
        for character in rest.group():
            if left == 0:
                break
            end += 1
            left -= character.isalnum()
        number = re.sub(r"[ \u00a0-]", "", text[found.start() : end])
        glued = end < len(text) and text[end].isalnum()
        if left == 0 and not glued and mod_97(number):
            yield Hit(found.start(), end, "iban", number[:2])


def issuer(digits: str) -> str | None:
    """Who issues cards of these digits, by prefix and length (ISO/IEC 7812); None where nobody does."""
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    rules = (
        ("visa", digits[0] == "4" and size in (13, 16, 19)),
        ("mastercard", (51 <= two <= 55 or 2221 <= four <= 2720) and size == 16),
        ("amex", two in (34, 37) and size == 15),
        ("discover", (four == 6011 or 644 <= three <= 649 or two == 65) and 16 <= size <= 19),
        ("diners", (300 <= three <= 305 or two in (36, 38, 39)) and 14 <= size <= 19),
        ("jcb", 3528 <= four <= 3589 and 16 <= size <= 19),
        ("unionpay", two == 62 and 16 <= size <= 19),
        ("maestro", (two in (50, 56, 57, 58) or four in (6304, 6759, 6761, 6762, 6763)) and 12 <= size <= 19),
    )
    return next((name for name, fits in rules if fits), None)


def find_card(text: str, start: int, end: int) -> Iterator[Hit]:
    """Payment cards between two places of the text. Rare lengths and Maestro, whose shape says little, need a word."""
    for found in _CARD.finditer(text, start, end):
        digits = re.sub(r"\D", "", found.group())
        name = issuer(digits)
        if name is None or not _GROUPS.fullmatch(found.group()) or len(set(digits)) < 2 or not luhn(digits):
            continue
        usual = (len(digits) in (15, 16) and name != "maestro") or (name == "diners" and len(digits) == 14)
        if usual or said_before(text, found.start(), _CARD_WORDS):
            yield Hit(found.start(), found.end(), "card", name)
