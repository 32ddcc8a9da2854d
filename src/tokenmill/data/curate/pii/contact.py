"""How a person is reached: e-mail, phone, IP address."""

# ruff: noqa: E501, RUF001, SIM905
from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import pairwise

from tokenmill.data.curate.pii.domains import is_top_level
from tokenmill.data.curate.pii.hit import Hit, said_before

_LOCAL = re.compile(r"[\w.!#$%&'*+=?^`{|}~-]{1,64}\Z")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.)+([^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?![\w])")
_SPELLED = re.compile(
    r"([\w.+-]{1,64})\s?[\[({<]\s?at\s?[\])}>]\s?((?:[\w-]+(?:\.|\s?[\[({<]\s?(?:dot|punkt)\s?[\])}>]\s?))+)([a-z]{2,24})\b",
    re.IGNORECASE,
)


def find_email(text: str) -> Iterator[Hit]:
    """E-mail addresses, also as ``name [at] host [dot] org``. The name must end in a top-level domain that exists, so
    that ``getty@tty1.service`` is none."""
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text[max(0, at - 64) : at])
        domain = _DOMAIN.match(text, at + 1)
        if local is not None and domain is not None and is_top_level(domain.group(1).lower()):
            name = local.group().lstrip(".'`*{|=&?#")
            if name and not name.endswith(".") and ".." not in name and name != "git":
                yield Hit(at - len(name), domain.end(), "email")
        at = text.find("@", at + 1)
    lower = text.lower()
    if any(mark in lower for mark in ("[at]", "(at)", "{at}", "<at>", "[ at ]", "( at )")):
        for found in _SPELLED.finditer(text):
            if is_top_level(found.group(3).lower()):
                yield Hit(found.start(), found.end(), "email", "spelled")


# Expressions begin with the character that is looked for and look back from it: only so does re skip to the next one.
_V4 = re.compile(r"\d(?<![\w.-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_VERSION = re.compile(
    r"(?:\b(?:v|ver\.?|version|release|rev|revision|firmware|build|section|chapter|kernel)|§|>=|==|<=|~)[\s:=]*$"
)
_HOST_WORDS = re.compile(r"\bip\b|address|host|server|dns|gateway|peer|client|ping|connect|login|logged|source|@")
_V6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|:(?=:)){1,7}(?:(?<=:):?(?:[0-9A-Fa-f]{1,4}:){0,6})?"
    r"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"
)
_V6_PUBLIC = re.compile(
    r"[23](?<![\w:.][23])[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"
)
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")


def find_ip(text: str, *, public_only: bool = True) -> Iterator[Hit]:
    """IP addresses of both versions. Four small numbers (``2.4.1.0``) are more often a version: they need a word before
    them that speaks of hosts, and none before them that speaks of versions."""
    if text.count(".") >= 3:
        for found in _V4.finditer(text):
            parts = found.group().split(".")
            if any(int(part) > 255 or (part[0] == "0" and part != "0") for part in parts):
                continue
            address = ipaddress.IPv4Address(found.group())
            if public_only and (not address.is_global or address.is_multicast):
                continue
            before = text[max(0, found.start() - 24) : found.start()].lower()
            small = address.is_global and (int(parts[0]) < 10 or max(map(int, parts)) < 32)
            if _VERSION.search(before) or (small and not said_before(text, found.start(), _HOST_WORDS)):
                continue
            yield Hit(found.start(), found.end(), "ip", "v4")
    if text.count(":") >= 2:
        for found in (_V6_PUBLIC if public_only else _V6).finditer(text):
            if found.group().count(":") >= 2 and _is_v6(found.group(), public_only):
                yield Hit(found.start(), found.end(), "ip", "v6")


def _is_v6(word: str, public_only: bool) -> bool:
    try:
        address = ipaddress.IPv6Address(word)
    except ValueError:
        return False
    if not public_only:
        return sum(character.isdigit() for character in word) > 1
    return address in _GLOBAL_V6 and address.is_global


_INTERNATIONAL = re.compile(
    r"(?<![\w+.~])\+\d{1,3}(?:[ \u00a0.\-/]?\(0?\d{0,4}\))?(?:[ \u00a0.\-/]{0,3}\d){5,13}(?![\w]|[.,]\d)"
)
_NANP = re.compile(
    r"(?<![\w.+-])(?<!\d[ /(])(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?-?[2-9]\d\d[-. ]|[2-9]\d\d([-.])[2-9]\d\d\1)\d{4}(?![\w-]|[.,]\d)"
)
_TRUNK = re.compile(
    r"(?<![\w.,+/-])(?<!\d[ /])(?:"
    r"0[1-9](?:[ .]\d\d){4}"  # France
    r"|\(?0(?:20 ?\)? ?\d{4} \d{4}|1\d{3}\)? \d{6}|1\d{2}\)? \d{3} \d{4}|7\d{3} \d{6}|7\d{3} \d{3} ?\d{3})"  # Britain
    r")(?![\w]|[-.,/ ]\d)"
)
_LOOSE = re.compile(r"(?<![\w.,+#-])\(?\d(?:[ \u00a0.\-/()]{0,2}\d){5,14}(?![\w]|[.,]\d)")
_PHONE_WORDS = re.compile(
    r"(?:\btel\b|phone|\bcall\b|calling|\bfax\b|mobil|\bcell\b|handy|t[ée]l[ée]f|telefon|whats ?app|\bsms\b|rufnummer|\bdial|"
    r"\bring\b|hotline|\bтел|電話|电话|전화|\btlf|\bpuh)[^\d\n#]{0,16}$"
)
_DATE = re.compile(
    r"(?:19|20)\d\d[-./ ](?:0?[1-9]|1[0-2])[-./ ]\d\d?|\d\d?[-./](?:0?[1-9]|1[0-2])[-./](?:19|20)?\d\d(?:[ ,]+\d\d)?"
)

_CALLING = frozenset(
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 "
    "90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 "
    "238 239 240 241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 "
    "269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 "
    "385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 "
    "673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880 "
    "881 882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 "
    "998".split()
)  # fmt: skip
"""ITU-T E.164 country codes."""


def find_phone(text: str, start: int, end: int) -> Iterator[Hit]:
    """Phone numbers between two places of the text: international ones, North American, French and British ones by
    their shape, all others where a word before them says that they are."""
    for found in _INTERNATIONAL.finditer(text, start, end):
        digits = re.sub(r"\D", "", found.group())
        if 8 <= len(digits) <= 13 and any(digits[:size] in _CALLING for size in (1, 2, 3)):
            yield Hit(found.start(), found.end(), "phone", "international")
    for found in _NANP.finditer(text, start, end):
        digits = re.sub(r"\D", "", found.group())[-10:]
        if digits[1:3] != "11" and digits[4:6] != "11":  # N11 are services, never an area or exchange
            yield Hit(found.start(), found.end(), "phone", "nanp")
    for found in _TRUNK.finditer(text, start, end):
        pairs = re.findall(r"\d\d", found.group())
        if not all(int(b) - int(a) == 1 for a, b in pairwise(pairs)):  # 01 02 03 04 05 counts
            yield Hit(found.start(), found.end(), "phone", "national")
    for found in _LOOSE.finditer(text, start, end):
        digits = re.sub(r"\D", "", found.group())
        fits = 7 <= len(digits) <= 15 and len(set(digits)) > 1 and not _DATE.fullmatch(found.group())
        if fits and said_before(text, found.start(), _PHONE_WORDS):
            yield Hit(found.start(), found.end(), "phone", "named")
