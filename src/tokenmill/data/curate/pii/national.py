"""National numbers of people: one row a kind. A number whose shape and check digits say little by themselves is taken
only where a word before it says what it is.
"""

# ruff: noqa: E501
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tokenmill.data.curate.pii.checksums import ean, is_date, is_short_date, luhn, mod_11_10, verhoeff, weighted
from tokenmill.data.curate.pii.hit import Hit, said_before

_DROP = str.maketrans("", "", " \u00a0.-/()")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of number."""

    name: str
    pattern: re.Pattern[str]
    valid: Callable[[str], bool]
    """Given the number without separators."""
    words: re.Pattern[str] | None = None
    """One of these has to stand before it, unless ``strong`` matches it whole."""
    strong: re.Pattern[str] | None = None
    """The written form that needs no word before it."""


def find_national(text: str, start: int, end: int) -> Iterator[Hit]:
    """National numbers between two places of the text."""
    for kind in KINDS:
        for found in kind.pattern.finditer(text, start, end):
            if not kind.valid(found.group().translate(_DROP)):
                continue
            alone = kind.words is None or (kind.strong is not None and kind.strong.fullmatch(found.group()))
            if alone or (kind.words is not None and said_before(text, found.start(), kind.words)):
                yield Hit(found.start(), found.end(), "national", kind.name)


def us_ssn(n: str) -> bool:
    """Area not 000, 666 or 9xx, no group or serial of zeros (SSA); two numbers that advertisements made famous."""
    return n[:3] not in ("000", "666") and n[0] != "9" and n[3:5] != "00" and n[5:] != "0000" and n not in _FAMOUS


_FAMOUS = ("078051120", "219099999")


def uk_nino(n: str) -> bool:
    """Prefixes that HMRC does not give out."""
    return n[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def uk_nhs(n: str) -> bool:
    """Mod 11 with weights 10 to 2."""
    return weighted(n, range(10, 0, -1)) % 11 == 0


def de_tax(n: str) -> bool:
    """MOD 11,10; exactly one digit comes twice or three times among the first ten."""
    repeated = sorted(n[:10].count(digit) for digit in set(n[:10]) if n[:10].count(digit) > 1)
    return n[0] != "0" and repeated in ([2], [3]) and mod_11_10(n)


def de_pension(n: str) -> bool:
    """Rentenversicherungsnummer: cross sums with weights 2 1 2 5 7 1 2 1 2 1 2 1."""
    letter = ord(n[8]) - 64
    digits = n[:8] + f"{letter:02d}" + n[9:11]
    weights = (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1)
    total = sum(sum(divmod(int(digit) * weight, 10)) for digit, weight in zip(digits, weights, strict=True))
    return 1 <= int(n[4:6]) <= 12 and 1 <= int(n[2:4]) <= 31 and total % 10 == int(n[11])


def fr_nir(n: str) -> bool:
    """97 minus the number modulo 97; Corsica's 2A and 2B count as 19 and 18."""
    plain = n.replace("2A", "19").replace("2B", "18")
    return plain.isdecimal() and (97 - int(plain[:13]) % 97) == int(plain[13:])


def es_dni(n: str) -> bool:
    """The letter is the number modulo 23; X, Y and Z of foreigners count as 0, 1 and 2."""
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(n[:-1].translate(_NIE)) % 23] == n[-1]


_NIE = str.maketrans("XYZ", "012")


def it_codice(n: str) -> bool:
    """Codice fiscale: odd places by a table, even ones by their value."""
    total = 0
    for place, character in enumerate(n[:15]):
        value = int(character, 36) - 10 * character.isalpha()
        total += _ODD[value] if place % 2 == 0 else value
    return chr(65 + total % 26) == n[15]


_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def nl_bsn(n: str) -> bool:
    """The eleven-test, with -1 for the last digit."""
    return int(n) > 0 and weighted(n, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def be_rrn(n: str) -> bool:
    """97 minus the number modulo 97, with a 2 before it for births from 2000 on."""
    check = int(n[9:])
    born = [97 - int(prefix + n[:9]) % 97 == check for prefix in ("", "2")]
    return any(born) and is_short_date(n[:2], n[2:4], n[4:6])


def pl_pesel(n: str) -> bool:
    """Weights 1 3 7 9; the month tells the century."""
    return (
        is_short_date(n[:2], f"{int(n[2:4]) % 20:02d}", n[4:6])
        and weighted(n, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )


def se_personnummer(n: str) -> bool:
    """Luhn over the last ten digits, and a date (day + 60 of a coordination number)."""
    n = n.replace("+", "")[-10:]
    return luhn(n) and is_short_date(n[:2], n[2:4], f"{int(n[4:6]) % 60:02d}")


def no_fodselsnummer(n: str) -> bool:
    """Two check digits modulo 11, and a date (day + 40 of a D number)."""
    return (
        weighted(n, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
        and weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
        and is_short_date(n[4:6], n[2:4], f"{int(n[:2]) % 40:02d}")
    )


def dk_cpr(n: str) -> bool:
    """A date; the old check digit is no longer given."""
    return is_short_date(n[4:6], n[2:4], n[:2])


def fi_hetu(n: str) -> bool:
    """Modulo 31. The century's sign may be a hyphen, which is no longer there."""
    digits = n[:6] + n[-4:-1]
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(digits) % 31] == n[-1] and is_short_date(n[4:6], n[2:4], n[:2])


def cz_rodne(n: str) -> bool:
    """Modulo 11 and a date (month + 50 of women, + 20 when a day's numbers run out)."""
    month = int(n[2:4]) % 50
    good = is_short_date(n[:2], f"{month % 20:02d}", n[4:6])
    return good and (int(n) % 11 == 0 or (len(n) == 10 and int(n[:9]) % 11 == 10 and n[9] == "0"))


def ro_cnp(n: str) -> bool:
    """Weights 2 7 9 1 4 6 3 5 8 2 7 9, modulo 11, and a date."""
    check = weighted(n, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return check % 10 + (check == 10) == int(n[12]) and is_short_date(n[1:3], n[3:5], n[5:7])


def tr_kimlik(n: str) -> bool:
    """Two check digits."""
    tenth = (7 * sum(map(int, n[:9:2])) - sum(map(int, n[1:8:2]))) % 10
    return n[0] != "0" and tenth == int(n[9]) and sum(map(int, n[:10])) % 10 == int(n[10])


def pt_nif(n: str) -> bool:
    """Modulo 11 with weights 9 to 2."""
    return (11 - weighted(n, range(9, 1, -1)) % 11) % 11 % 10 == int(n[8])


def br_cpf(n: str) -> bool:
    """Two check digits modulo 11; not eleven equal digits."""
    first = (11 - weighted(n, range(10, 1, -1)) % 11) % 11 % 10
    second = (11 - weighted(n, range(11, 1, -1)) % 11) % 11 % 10
    return len(set(n)) > 1 and n[9:] == f"{first}{second}"


def ar_cuit(n: str) -> bool:
    """Modulo 11 with weights 5 4 3 2 7 6 5 4 3 2."""
    return "012345678990"[11 - weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11] == n[10]


def cl_rut(n: str) -> bool:
    """Modulo 11 with weights 2 to 7 from the right; K is ten."""
    total = sum(int(digit) * (2 + place % 6) for place, digit in enumerate(reversed(n[:-1])))
    return "0123456789K0"[11 - total % 11] == n[-1].upper()


def mx_curp(n: str) -> bool:
    """Base 37 with Ñ between N and O, weights 18 to 2, and a date."""
    values = ["0123456789ABCDEFGHIJKLMN&OPQRSTUVWXYZ".index(character) for character in n[:17]]
    total = sum(value * (18 - place) for place, value in enumerate(values))
    return (10 - total % 10) % 10 == int(n[17]) and is_short_date(n[4:6], n[6:8], n[8:10])


def cn_resident(n: str) -> bool:
    """ISO/IEC 7064 MOD 11-2, and a date of birth."""
    weights = [2**k % 11 for k in range(17, 0, -1)]
    check = (12 - weighted(n[:17], weights) % 11) % 11
    return "0123456789X"[check] == n[17].upper() and is_date(int(n[6:10]), int(n[10:12]), int(n[12:14]))


def kr_rrn(n: str) -> bool:
    """Modulo 11 with weights 2 to 9 and 2 to 5, and a date."""
    total = weighted(n, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5))
    return (11 - total % 11) % 10 == int(n[12]) and is_short_date(n[:2], n[2:4], n[4:6])


def jp_number(n: str) -> bool:
    """My Number: modulo 11 with weights 6 5 4 3 2 7 6 5 4 3 2."""
    rest = weighted(n, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if rest <= 1 else 11 - rest) == int(n[11])


def sg_nric(n: str) -> bool:
    """Weights 2 7 6 5 4 3 2; the letter from the table of the first one."""
    offset = {"S": 0, "T": 4, "F": 0, "G": 4, "M": 3}[n[0]]
    total = (weighted(n[1:8], (2, 7, 6, 5, 4, 3, 2)) + offset) % 11
    table = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "F": "XWUTRQPNMLK", "G": "XWUTRQPNMLK", "M": "XWUTRQPNJLK"}[n[0]]
    return table[10 - total if n[0] == "M" else total] == n[8]


def hk_id(n: str) -> bool:
    """Weights 9 (a space for a missing letter) to 2, modulo 11; A is ten."""
    body = n[:-1].rjust(8)
    values = [36 if character == " " else int(character, 36) for character in body]
    total = sum(value * (9 - place) for place, value in enumerate(values))
    return "0123456789A0"[11 - total % 11] == n[-1]


def th_id(n: str) -> bool:
    """(11 - sum modulo 11) modulo 10, weights 13 to 2."""
    return (11 - weighted(n, range(13, 1, -1)) % 11) % 10 == int(n[12])


def za_id(n: str) -> bool:
    """Luhn and a date."""
    return luhn(n) and is_short_date(n[:2], n[2:4], n[4:6])


def il_id(n: str) -> bool:
    """Luhn over nine digits."""
    return int(n) > 0 and luhn(n)


def au_tfn(n: str) -> bool:
    """Weights 1 4 3 7 5 8 6 9 10, modulo 11."""
    return weighted(n, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _kind(
    name: str, pattern: str, valid: Callable[[str], bool], words: str | None = None, strong: str | None = None
) -> Kind:
    return Kind(
        name,
        re.compile(rf"(?<![\w.,+@#$€£-])(?<!\d/){pattern}(?![\w@]|[-.,/]\d)"),
        valid,
        None if words is None else re.compile(words),
        None if strong is None else re.compile(strong),
    )


_S = r"[ \u00a0-]?"  # an optional separator
KINDS = (
    _kind("us_ssn", r"\d{3}[ -]?\d{2}[ -]?\d{4}", us_ssn, r"\bssn\b|social.?sec", r"\d{3}-\d{2}-\d{4}"),
    _kind("uk_nino", rf"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]{_S}\d\d{_S}\d\d{_S}\d\d{_S}[A-D]", uk_nino),
    _kind("uk_nhs", rf"\d{{3}}{_S}\d{{3}}{_S}\d{{4}}", uk_nhs, r"\bnhs\b"),
    _kind("de_tax", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", de_tax, r"steuer|\bidnr|tax (?:id|number)|\btin\b"),
    _kind("de_pension", r"\d{2} ?\d{6} ?[A-Z] ?\d{3}", de_pension),
    _kind("fr_nir", r"(?:[12]\d{2}(?:0[1-9]|1[0-2]|[2-9]\d)(?:\d{2}|2[AB])\d{6} ?\d{2}|[12] \d{2} (?:0[1-9]|1[0-2]|[2-9]\d) (?:\d{2}|2[AB]) \d{3} \d{3} \d{2})", fr_nir),
    _kind("es_dni", r"(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]", es_dni),
    _kind("it_codice", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", it_codice),
    _kind("nl_bsn", r"\d{4}[. ]?\d{2}[. ]?\d{3}", nl_bsn, r"\bbsn\b|burgerservice|sofinummer"),
    _kind("be_rrn", r"\d{2}\.?\d{2}\.?\d{2}[- ]?\d{3}\.?\d{2}", be_rrn, r"rijksregister|registre national|\brrn\b|\bnn\b", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d"),
    _kind("pl_pesel", r"\d{11}", pl_pesel, r"pesel"),
    _kind("se_personnummer", r"(?:19|20)?\d{6}[-+]?\d{4}", se_personnummer, r"person.?n|\bpnr\b", r"(?:19|20)?\d{6}[-+]\d{4}"),
    _kind("no_fodselsnummer", r"\d{6} ?\d{5}", no_fodselsnummer),
    _kind("dk_cpr", r"\d{6}-?\d{4}", dk_cpr, r"\bcpr\b|personnummer"),
    _kind("fi_hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", fi_hetu),
    _kind("ch_ahv", r"756\.?\d{4}\.?\d{4}\.?\d{2}", ean),
    _kind("cz_rodne", r"\d{6}/?\d{3,4}", cz_rodne, r"rodn", r"\d{6}/\d{3,4}"),
    _kind("ro_cnp", r"[1-8]\d{12}", ro_cnp, r"\bcnp\b|numeric personal"),
    _kind("tr_kimlik", r"[1-9]\d{10}", tr_kimlik, r"kimlik|\btc\b|\bt\.c"),
    _kind("pt_nif", r"[1-3]\d{2} ?\d{3} ?\d{3}", pt_nif, r"\bnif\b|contribuinte"),
    _kind("ca_sin", r"[1-79]\d{2}[- ]?\d{3}[- ]?\d{3}", luhn, r"\bsin\b|social insurance|\bnas\b"),
    _kind("br_cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", br_cpf, r"\bcpf\b", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _kind("ar_cuit", r"(?:2[0347]|3[034])-?\d{8}-?\d", ar_cuit, r"\bcui[tl]\b", r"\d{2}-\d{8}-\d"),
    _kind("cl_rut", r"\d{1,2}\.?\d{3}\.?\d{3}-[\dkK]", cl_rut, r"\bru[tn]\b", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    _kind("mx_curp", r"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{2}[B-DF-HJ-NP-TV-Z]{3}[0-9A-Z]\d", mx_curp),
    _kind("in_aadhaar", rf"[2-9]\d{{3}}{_S}\d{{4}}{_S}\d{{4}}", verhoeff, r"aad?haa?r|uidai|\buid\b"),
    _kind("in_pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", lambda n: n[5:9] != "0000", r"\bpan\b|permanent account"),
    _kind("cn_resident", r"[1-6]\d{5}(?:19|20)\d{9}[\dXx]", cn_resident),
    _kind("kr_rrn", r"\d{6}-[1-8]\d{6}", kr_rrn),
    _kind("jp_number", rf"\d{{4}}{_S}\d{{4}}{_S}\d{{4}}", jp_number, r"my ?number|マイナンバー|個人番号"),
    _kind("sg_nric", r"[STFGM]\d{7}[A-Z]", sg_nric),
    _kind("hk_id", r"[A-Z]{1,2}\d{6}\([0-9A]\)", hk_id),
    _kind("th_id", r"\d-?\d{4}-?\d{5}-?\d{2}-?\d", th_id, r"thai|บัตร|national id", r"\d-\d{4}-\d{5}-\d{2}-\d"),
    _kind("za_id", r"\d{6} ?\d{4} ?\d{3}", za_id, r"\bid\b|identity|south africa"),
    _kind("il_id", r"\d{8}-?\d", il_id, r"teudat|israeli? id|ת\.?ז|תעודת"),
    _kind("au_tfn", r"\d{3} ?\d{3} ?\d{3}", au_tfn, r"\btfn\b|tax file"),
)  # fmt: skip
