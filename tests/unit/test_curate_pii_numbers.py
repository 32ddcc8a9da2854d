"""Check digits agree with python-stdnum, for every kind of national number that it knows."""

from __future__ import annotations

import random

import pytest
from stdnum import iban, luhn, verhoeff
from tests.planted import numbers

from tokenmill.data.curate.pii import checksums
from tokenmill.data.curate.pii.money import find_iban
from tokenmill.data.curate.pii.national import KINDS

OURS = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("name", sorted(numbers.STDNUM))
def test_national_number(name: str) -> None:
    kind, rng = OURS[name], random.Random(name)
    seen = {True: 0, False: 0}
    for _ in range(150):
        made = numbers.shape(name, rng)
        for number in {made, numbers.valid(name, rng)}:
            plain = number.replace("-", "")
            expected = numbers.is_valid(name, number)
            assert kind.valid(plain) == expected, (number, expected)
            seen[expected] += 1
    assert seen[True] > 20
    assert seen[False] > 5


def test_luhn_and_verhoeff() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        number = numbers.digits(rng, rng.randrange(2, 20))
        assert checksums.luhn(number) == luhn.is_valid(number)
        assert checksums.verhoeff(number) == verhoeff.is_valid(number)


@pytest.mark.parametrize("country", ["DE", "FR", "GB", "NL", "ES", "IT", "PL", "CH", "NO", "MT"])
def test_iban(country: str) -> None:
    from tokenmill.data.curate.pii.money import _LENGTHS

    rng = random.Random(country)
    for _ in range(50):
        body = numbers.digits(rng, _LENGTHS[country] - 4)
        number = country + iban.calc_check_digits(f"{country}00{body}") + body
        wrong = country + f"{(int(number[2:4]) + 7) % 97:02d}" + body
        grouped = " ".join(number[k : k + 4] for k in range(0, len(number), 4))
        for written in (number, grouped):
            (hit,) = find_iban(f"to {written} BIC NOTADEFF.")
            assert hit.end - hit.start == len(written)
        assert not list(find_iban(f"to {wrong} please"))
