"""Formulas in which Python and JavaScript differ, for the test of what the planner's page computes."""

BASE = 10
LOW, HIGH = -3.5, 2e5


def rest(a: float, b: float = 3) -> float:
    return a % b


def down(a: float, b: float) -> float:
    return a // b


def cut(a: float) -> float:
    return int(a)


def minus_power(a: float) -> float:
    return -(a**2)


def power_of_minus(a: float) -> float:
    return (-a) ** 2


def tower(a: float, b: float) -> float:
    return a**b**0.5  # type: ignore[no-any-return]


def chain(a: float) -> float:
    return 1 if 0 < a <= BASE else -1


def either(a: float, b: float) -> float:
    return 1 if not ((a > 1 and b > 1) or a == b) else 0


def total(n: int) -> float:
    """The body changes the counter, which in Python does not change the count."""
    s = 0.0
    for i in range(1, n + 1):
        s += i
        i = 0
    while s > HIGH:
        s -= HIGH
    return s


def swap(a: float, b: float) -> float:
    a, b = b, a
    if a > b:
        return a - b
    elif a == b:
        return LOW
    else:
        return b


def named(a: float) -> float:
    return rest(b=a, a=17)


def table(a: float) -> dict:  # type: ignore[type-arg]
    return {"one": a, "two": {"three": a / 4}}


def read(a: float) -> float:
    return table(a)["two"]["three"] + min(a, 1, 7) + abs(LOW)
