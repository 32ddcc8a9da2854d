"""National numbers, cards and accounts that are valid, made with python-stdnum's check digits (none of ours)."""

# ruff: noqa: E501
from __future__ import annotations

import random
from importlib import import_module
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def digits(rng: random.Random, count: int) -> str:
    """That many random digits."""
    return "".join(rng.choice("0123456789") for _ in range(count))


def born(rng: random.Random, form: str = "%y%m%d") -> str:
    """A date of birth between 1950 and 1999, by strftime-like fields."""
    fields = {"%y": rng.randrange(50, 100), "%m": rng.randrange(1, 13), "%d": rng.randrange(1, 29)}
    text = form.replace("%Y", f"19{fields['%y']}")
    for name, value in fields.items():
        text = text.replace(name, f"{value:02d}")
    return text


def shape(kind: str, rng: random.Random) -> str:
    """A number of that kind's shape whose check digits are random; without separators."""
    d, b = digits, born
    makers: dict[str, Any] = {
        "us_ssn": lambda: f"{rng.choice((0, 666, 901, *range(1, 40))):03d}{rng.randrange(0, 9):02d}{rng.randrange(1, 9999):04d}",
        "uk_nhs": lambda: d(rng, 10),
        "de_tax": lambda: _tax(rng),
        "fr_nir": lambda: rng.choice("12") + born(rng, "%y%m") + f"{rng.randrange(1, 95):02d}" + d(rng, 8),
        "es_dni": lambda: d(rng, 8) + rng.choice("TRWAGMYFPDXBNJZSQVHLCKE"),
        "it_codice": lambda: _name(rng, 6) + f"{rng.randrange(50, 99)}{rng.choice('ABCDEHLMPRST')}{rng.randrange(1, 29):02d}"
        + rng.choice("ABCDEFGHIL") + d(rng, 3) + rng.choice(LETTERS),
        "nl_bsn": lambda: d(rng, 9),
        "be_rrn": lambda: b(rng) + d(rng, 5),
        "pl_pesel": lambda: b(rng) + d(rng, 5),
        "se_personnummer": lambda: b(rng) + "-" + d(rng, 4),
        "no_fodselsnummer": lambda: b(rng, "%d%m%y") + f"{rng.randrange(0, 500):03d}" + d(rng, 2),
        "fi_hetu": lambda: b(rng, "%d%m%y") + "-" + f"{rng.randrange(2, 900):03d}" + rng.choice("0123456789ABCDEFHJKLMNPRSTUVWXY"),
        "ch_ahv": lambda: "756" + d(rng, 10),
        "cz_rodne": lambda: b(rng) + d(rng, 4),
        "ro_cnp": lambda: rng.choice("12") + b(rng) + f"{rng.randrange(1, 47):02d}" + f"{rng.randrange(1, 999):03d}" + d(rng, 1),
        "tr_kimlik": lambda: rng.choice("123456789") + d(rng, 10),
        "pt_nif": lambda: rng.choice("123") + d(rng, 8),
        "ca_sin": lambda: rng.choice("1234567") + d(rng, 8),
        "br_cpf": lambda: d(rng, 11),
        "ar_cuit": lambda: rng.choice(("20", "23", "24", "27")) + d(rng, 9),
        "cl_rut": lambda: f"{rng.randrange(3, 26)}" .rjust(2, "1") + d(rng, 6) + rng.choice("0123456789K"),
        "mx_curp": lambda: rng.choice("BCDG") + rng.choice("AEIOU") + _name(rng, 2) + b(rng) + rng.choice("HM")
        + rng.choice(("DF", "JC", "NL", "PL")) + _name(rng, 3) + rng.choice("0123456789") + d(rng, 1),
        "in_aadhaar": lambda: rng.choice("23456789") + d(rng, 11),
        "cn_resident": lambda: "110101" + b(rng, "%Y%m%d") + d(rng, 3)
        + rng.choice("0123456789X"),
        "kr_rrn": lambda: b(rng) + rng.choice("12") + f"{rng.randrange(0, 96):02d}" + d(rng, 4),
        "jp_number": lambda: d(rng, 12),
        "th_id": lambda: rng.choice("12345678") + d(rng, 12),
        "za_id": lambda: b(rng) + d(rng, 4) + rng.choice("01") + rng.choice("89") + d(rng, 1),
        "il_id": lambda: d(rng, 9),
        "au_tfn": lambda: d(rng, 9),
    }  # fmt: skip
    made: str = makers[kind]()
    return made


STDNUM = {
    "us_ssn": "us.ssn", "uk_nhs": "gb.nhs", "de_tax": "de.idnr", "fr_nir": "fr.nir", "es_dni": "es.dni",
    "it_codice": "it.codicefiscale", "nl_bsn": "nl.bsn", "be_rrn": "be.nn", "pl_pesel": "pl.pesel",
    "se_personnummer": "se.personnummer", "no_fodselsnummer": "no.fodselsnummer", "fi_hetu": "fi.hetu",
    "ch_ahv": "ch.ssn", "cz_rodne": "cz.rc", "ro_cnp": "ro.cnp", "tr_kimlik": "tr.tckimlik", "pt_nif": "pt.nif",
    "ca_sin": "ca.sin", "br_cpf": "br.cpf", "ar_cuit": "ar.cuit", "cl_rut": "cl.rut", "mx_curp": "mx.curp",
    "in_aadhaar": "in_.aadhaar", "cn_resident": "cn.ric", "kr_rrn": "kr.rrn", "jp_number": "jp.in_", "th_id": "th.pin",
    "za_id": "za.idnr", "il_id": "il.idnr", "au_tfn": "au.tfn",
}  # fmt: skip
"""Kind → module of python-stdnum."""


def is_valid(kind: str, number: str) -> bool:
    """What python-stdnum says."""
    found: bool = import_module("stdnum." + STDNUM[kind]).is_valid(number)
    return found


def valid(kind: str, rng: random.Random) -> str:
    """A valid number: shapes are tried until python-stdnum agrees."""
    while True:
        number = shape(kind, rng)
        for ending in _endings(number):
            if is_valid(kind, ending):
                return ending


def _endings(number: str) -> list[str]:
    """The number with every last character of its kind, and with every last two digits."""
    last = LETTERS if number[-1] in LETTERS else "0123456789"
    found = [number, *(number[:-1] + character for character in last)]
    if number[-2:].isdecimal():
        found += [number[:-2] + f"{value:02d}" for value in range(100)]
    return found


def _tax(rng: random.Random) -> str:
    """Ten digits of which exactly one comes twice, and a check digit."""
    order = rng.sample("0123456789", 10)
    order[order.index(rng.choice(order[1:]))] = order[0]
    rng.shuffle(order)
    return "".join(order) + digits(rng, 1)


def _name(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("BCDFGLMNPRSTVZ") for _ in range(count))
