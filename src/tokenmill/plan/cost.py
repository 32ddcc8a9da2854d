"""``plan cost``: the same tokens from an API or from own machines, where they cost the same, and what that hangs on.

The arithmetic is ``plan/money.py``. Own machines: bought (depreciation, interest, electricity), rented by the hour, or
for a monthly sum. Their rate is what they write *and* read: tokens a second of prompt and answer together under the
load that ``plan serve`` finds, or as given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenmill.plan import money
from tokenmill.plan.prices import Api, Machine

VOLUMES = (1e5, 1e6, 1e7, 1e8, 1e9)
"""Tokens a day that the table shows."""
VARIED = 0.25
"""How far each input is moved, up and down, to see what the answer hangs on."""


@dataclass(frozen=True)
class Case:
    """Everything that the two bills depend on; each number may be moved by itself."""

    tokens_a_day: float
    """Read and written together."""
    api_price: float
    """Money a million tokens, of the mix that is read and written."""
    machine_tokens_s: float
    machine_price: float
    """To buy one; 0 for rented ones."""
    rent_hour: float
    month_fee: float
    years: float
    residual_share: float
    interest: float
    busy_w: float
    idle_w: float
    on_hours: float
    power_overhead: float
    """What the building draws over what the machine does (PUE)."""
    price_kwh: float
    peak_factor: float
    """Load of the busiest hour over the mean."""
    staff_month: float

    @property
    def machine_month(self) -> float:
        """One machine, without electricity."""
        bought = money.purchase_month(self.machine_price, self.residual_share, self.years, self.interest)
        return bought + money.rent_month(self.rent_hour, self.on_hours) + self.month_fee

    @property
    def machines(self) -> int:
        return int(money.machines_for(self.tokens_a_day, self.machine_tokens_s, self.on_hours, self.peak_factor))

    def api_month(self) -> float:
        return money.api_month(self.tokens_a_day, self.api_price)

    def electricity_month(self) -> float:
        """Of all machines."""
        hours = money.busy_hours(self.tokens_a_day, self.machine_tokens_s, self.machines, self.on_hours)
        return self.machines * money.electricity_month(
            self.busy_w, self.idle_w, hours, self.on_hours, self.power_overhead, self.price_kwh
        )

    def own_month(self) -> float:
        return money.own_month(self.tokens_a_day, *self._own)

    def break_even(self) -> float:
        """Tokens a day from which own machines are cheaper; 0 for never."""
        return money.break_even_tokens(self.api_price, *self._own)

    @property
    def _own(self) -> tuple[float, float, float, float, float, float, float, float, float]:
        """What own machines cost, as the formulas take it."""
        return (
            self.machine_tokens_s,
            self.machine_month,
            self.busy_w,
            self.idle_w,
            self.on_hours,
            self.power_overhead,
            self.price_kwh,
            self.peak_factor,
            self.staff_month,
        )


@dataclass(frozen=True)
class Move:
    """What happens when one input is a quarter lower, and a quarter higher."""

    name: str
    value: float
    low: float
    """Break-even with the lower value; 0 for never."""
    high: float

    @property
    def swing(self) -> float:
        """How far apart they are, as a factor; infinite where one of them is never."""
        if min(self.low, self.high) <= 0:
            return float("inf")
        return max(self.low, self.high) / min(self.low, self.high)


@dataclass(frozen=True)
class Bill:
    """A month at some volume."""

    tokens_a_day: float
    api: float
    own: float
    machines: int


@dataclass(frozen=True)
class CostPlan:
    """What ``plan cost`` answers."""

    case: Case
    bill: Bill
    electricity_month: float
    break_even_tokens_a_day: float
    payback_months: float
    """Of bought machines, at the given volume; 0 where nothing is saved or nothing bought."""
    own_price: float
    """Money a million tokens from own machines at the given volume."""
    volumes: tuple[Bill, ...]
    moves: tuple[Move, ...]
    """Those that matter first."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``; a swing that is infinite is null."""
        moves = [asdict(m) | {"swing": m.swing if m.swing < float("inf") else None} for m in self.moves]
        return asdict(self) | {"moves": moves}


VARIES: dict[str, str] = {
    "api_price": "API price",
    "machine_tokens_s": "tokens a second of a machine",
    "machine_price": "price of a machine",
    "rent_hour": "rent an hour",
    "month_fee": "monthly fee",
    "years": "years of use",
    "price_kwh": "electricity price",
    "on_hours": "hours a day",
    "peak_factor": "peak over mean load",
    "staff_month": "people's time",
}


def case_of(api: Api, machine: Machine, *, machine_tokens_s: float, tokens_a_day: float, **given: float) -> Case:
    """A case from two catalog entries. ``given`` are ``output_share`` and ``cached_share`` of the tokens, and any other
    field of :class:`Case` that is not the entries' own."""
    output_share, cached_share = given.pop("output_share"), given.pop("cached_share")
    price = money.blended_price(api.input_usd, api.output_usd, api.cached, cached_share, output_share)
    return Case(
        tokens_a_day=tokens_a_day,
        api_price=price,
        machine_tokens_s=machine_tokens_s,
        machine_price=machine.price_usd or 0.0,
        rent_hour=machine.rent_usd_hour or 0.0,
        month_fee=machine.month_usd or 0.0,
        busy_w=machine.busy_w,
        idle_w=machine.idle_w,
        **given,
    )


def plan_cost(case: Case, volumes: Sequence[float] = VOLUMES) -> CostPlan:
    """Both bills, the volume from which own machines pay, and what moves it."""
    api, own = case.api_month(), case.own_month()
    running = own - case.machines * money.purchase_month(
        case.machine_price, case.residual_share, case.years, case.interest
    )
    return CostPlan(
        case=case,
        bill=_bill(case, case.tokens_a_day),
        electricity_month=case.electricity_month(),
        break_even_tokens_a_day=case.break_even(),
        payback_months=money.payback_months(case.machines * case.machine_price, api, running),
        own_price=own / (case.tokens_a_day * money.DAYS_A_MONTH) * 1e6,
        volumes=tuple(_bill(case, volume) for volume in volumes),
        moves=tuple(sorted(_moves(case, Case.break_even), key=lambda move: -move.swing)),
    )


def _bill(case: Case, volume: float) -> Bill:
    at = replace(case, tokens_a_day=volume)
    return Bill(volume, at.api_month(), at.own_month(), at.machines)


def _moves(case: Case, answer: Callable[[Case], float]) -> list[Move]:
    found = []
    for field, name in VARIES.items():
        value = getattr(case, field)
        if value:
            most = 24.0 if field == "on_hours" else float("inf")
            low, high = (replace(case, **{field: min(most, value * (1 + by))}) for by in (-VARIED, VARIED))
            found.append(Move(name, value, answer(low), answer(high)))
    return found
