"""Street addresses: a house number beside the name of a street, in the order of the language.

A word for a street is looked for first; only around it does an expression look for the name and the number.
"""

# ruff: noqa: E501, RUF001
from __future__ import annotations

import re
from collections.abc import Iterator

from tokenmill.data.curate.pii.hit import Hit

_ENGLISH_WORDS = (
    "Street", "St", "Avenue", "Ave", "Road", "Rd", "Boulevard", "Blvd", "Lane", "Ln", "Drive", "Dr", "Court", "Ct",
    "Square", "Sq", "Place", "Pl", "Terrace", "Parkway", "Pkwy", "Highway", "Hwy", "Circle", "Crescent", "Close",
    "Gardens", "Mews", "Way",
)  # fmt: skip
_ENGLISH = re.compile(
    r"\d(?<![\w.,/$€£#-]\d)\d{0,4}[A-Za-z]?,? (?:(?:[NSEW]\.?|North|South|East|West) )?"
    r"(?:(?:[A-Z][\w'’-]+|\d{1,3}(?:st|nd|rd|th)|Mt\.|St\.) ){1,3}(?:" + "|".join(_ENGLISH_WORDS) + r")(?![\w'’-])"
)
_UNIT = r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Floor|Fl|Flat|#)\.? ?#?\w{1,5})?"
_ENGLISH_AFTER = re.compile(
    r"\.?"
    + _UNIT
    + r"(?:,? [A-Z][a-z]+(?: [A-Z][a-z]+){0,2},? (?:[A-Z]{2},? \d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}))?"
)
_POSTAL = r"(?:,? (?:[A-Z]{1,2}-)?\d{4,5}(?: ?[A-Z]{2})? [A-ZÀ-Ý][\w'’-]+(?:[ -][A-ZÀ-Ý][\w'’-]+){0,2})?"
_NAME = r"[A-ZÀ-Ý][\w'’.-]*"
_ENDS = (
    "straße ", "Straße ", "strasse ", "Strasse ", "str. ", "Str. ", "weg ", "Weg ", "allee ", "Allee ", "platz ",
    "Platz ", "gasse ", "Gasse ", "Ring ", "ufer ", "Ufer ", "damm ", "Damm ", "straat ", "laan ", "plein ", "gracht ", "kade ", "dijk ", "singel ",
)  # fmt: skip
_CAPITAL = re.compile(r"(?:(?:[A-ZÄÖÜ][\wäöüß-]+|[A-ZÄÖÜ][a-z]{0,2}\.)[ -]){0,3}[A-ZÄÖÜ][\wäöüß'.-]*\Z")
_NUMBER = re.compile(r"\d(?<=[a-zß.] \d)\d{0,3}(?: ?[a-h]|-\d{1,4})?(?![\w.]|-\d)" + _POSTAL)
_FRENCH = re.compile(
    r"\d(?<![\w.,/-]\d)\d{0,3}(?: ?(?:bis|ter))?,? (?:rue|avenue|boulevard|place|impasse|chemin|allée|quai|cours|route)"
    rf" (?:(?:de la|de l['’]|du|des|de|d['’]|la|le|les) ?)?{_NAME}(?:[ -](?:de |du |la |le )?{_NAME}){{0,3}}" + _POSTAL
)
_ITALIAN = re.compile(
    rf"(?<![\w-])(?:Via|Viale|Piazza|Corso|Largo|Vicolo) (?:(?:del|della|dei|delle|di|dell['’]) ?)?{_NAME}(?: {_NAME}){{0,3}},? (?:n\. ?)?(?!(?:19|20)\d\d)\d{{1,4}}(?:/?[a-zA-Z])?(?![\w.])"
    + _POSTAL
)
_SPANISH = re.compile(
    rf"(?<![\w-])(?:Calle|C/|Avenida|Avda\.|Av\.|Paseo|Plaza|Rua|Avenida|Praça|Travessa) ?(?:(?:de la|de los|del|de|da|do|das|dos) )?{_NAME}(?: (?:de |del |la |da |do )?{_NAME}){{0,3}},? (?:n[.º°]? ?)?(?!(?:19|20)\d\d)\d{{1,4}}(?![\w.])"
    + _POSTAL
)
_POLISH = re.compile(
    rf"[uapo](?<!\w[uapo])[ls]\. ?{_NAME}(?: {_NAME}){{0,3}} \d{{1,4}}[a-zA-Z]?(?:/\d{{1,4}})?(?![\w.])(?:, \d\d-\d{{3}} {_NAME})?"
)
_BOX = re.compile(r"P(?<!\wP)\.? ?O\.? Box \d{1,6}(?!\w)")

_OTHERS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    ((" rue ", " avenue ", " boulevard ", " place ", " impasse ", " chemin ", " allée ", " quai ", " cours ", " route "),
     _FRENCH),
    (("Via ", "Viale ", "Piazza ", "Corso ", "Largo ", "Vicolo "), _ITALIAN),
    (("Calle ", "C/", "Avenida ", "Avda.", "Av.", "Paseo ", "Plaza ", "Rua ", "Praça ", "Travessa "), _SPANISH),
    (("ul. ", "al. ", "pl. ", "os. "), _POLISH),
    ((" Box ",), _BOX),
)  # fmt: skip


def find_address(text: str) -> Iterator[Hit]:
    """Street addresses of English, German, Dutch, French, Italian, Spanish, Portuguese and Polish form, and boxes."""
    for found in _ENGLISH.finditer(text):
        after = _ENGLISH_AFTER.match(text, found.end())
        yield Hit(found.start(), found.end() if after is None else after.end(), "address", "en")
    for found in _NUMBER.finditer(text):
        before = text[max(0, found.start() - 60) : found.start()]
        if before.endswith(_ENDS):
            yield from _ended(before, found)
    for words, pattern in _OTHERS:
        if any(word in text for word in words):
            for found in pattern.finditer(text):
                yield Hit(found.start(), found.end(), "address")


def _ended(before: str, number: re.Match[str]) -> Iterator[Hit]:
    """A German or Dutch name before its number: it begins with a capital letter."""
    name = _CAPITAL.search(before[:-1])
    if name is not None:
        yield Hit(number.start() - len(before) + name.start(), number.end(), "address", "de")
