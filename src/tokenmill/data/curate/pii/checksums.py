"""Check digits, as the bodies that issue the numbers define them.

Every function takes what its name says without separators and returns whether the check digits are right; a string of
another shape is simply wrong. Tests hold them against python-stdnum.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date


def luhn(digits: str) -> bool:
    """ISO/IEC 7812: cards, Swedish, Canadian and South African numbers."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def verhoeff(digits: str) -> bool:
    """Verhoeff 1969, the dihedral group D5: Aadhaar."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _D5[check][_PERMUTED[place % 8][int(digit)]]
    return check == 0


def mod_97(text: str) -> bool:
    """ISO/IEC 7064 MOD 97-10 over digits and letters, as IBANs have it (the first four characters go to the end)."""
    moved = text[4:] + text[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def mod_11_10(digits: str) -> bool:
    """ISO/IEC 7064 MOD 11,10: German tax numbers."""
    check = 10
    for digit in digits[:-1]:
        check = (check + int(digit)) % 10 or 10
        check = check * 2 % 11
    return (11 - check) % 10 == int(digits[-1])


def weighted(digits: str, weights: Sequence[int]) -> int:
    """Sum of digits times weights, over as many as there are weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def ean(digits: str) -> bool:
    """GS1: Swiss numbers."""
    return weighted(digits, [1, 3] * 7) % 10 == 0


def is_date(year: int, month: int, day: int) -> bool:
    """Whether there is such a day."""
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def is_short_date(year: str, month: str, day: str) -> bool:
    """Whether there is such a day in this or the last century."""
    return any(is_date(century + int(year), int(month), int(day)) for century in (1900, 2000))


def _dihedral() -> tuple[tuple[int, ...], ...]:
    def product(a: int, b: int) -> int:
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
        return 5 + (a - b) % 5 if b < 5 else (a - b) % 5

    return tuple(tuple(product(a, b) for b in range(10)) for a in range(10))


def _permutations() -> tuple[tuple[int, ...], ...]:
    step = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    rows = [tuple(range(10))]
    for _ in range(7):
        rows.append(tuple(step[value] for value in rows[-1]))
    return tuple(rows)


_D5 = _dihedral()
_PERMUTED = _permutations()
