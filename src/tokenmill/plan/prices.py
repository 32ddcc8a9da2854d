"""Catalogs of what costs money: models behind an API, and whole machines. ``plan/catalog.py`` reads and checks them."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from tokenmill.plan.catalog import Catalog, Entry, read_catalog

PRICES = ("input_usd", "output_usd", "cached_usd", "price_usd", "rent_usd_hour", "month_usd")
"""Figures whose age is told."""


class Api(Entry):
    """A model that a provider serves; money a million tokens."""

    provider: str
    input_usd: float = Field(ge=0)
    output_usd: float = Field(ge=0)
    cached_usd: float | None = Field(default=None, ge=0)
    """Of prompt tokens that the provider still has computed; None: it says nothing of them."""
    context: int = Field(gt=0)
    tasks: tuple[Literal["chat", "code", "agentic-code", "reasoning", "tools", "documents", "base"], ...] = ()
    scores: dict[str, float] = Field(default_factory=dict)
    """Benchmark: percent."""

    @property
    def cached(self) -> float:
        """The price of cached tokens; the full one where there is no other."""
        return self.input_usd if self.cached_usd is None else self.cached_usd


class Machine(Entry):
    """A machine with GPUs: bought, rented by the hour, or for a monthly sum with everything in it."""

    gpu: str
    count: int = Field(gt=0)
    price_usd: float | None = Field(default=None, ge=0)
    rent_usd_hour: float | None = Field(default=None, ge=0)
    month_usd: float | None = Field(default=None, ge=0)
    busy_w: float = Field(default=0, ge=0)
    """The whole machine's power while it computes; 0 where the rent pays for it."""
    idle_w: float = Field(default=0, ge=0)
    host_memory_gib: float = Field(gt=0)
    """For what sleeps: weights that are kept in the host's memory."""
    disk_gb_s: float = Field(gt=0)
    """Reading weights, 10^9 bytes a second."""
    host_link_gb_s: float = Field(gt=0)
    """From the host's memory to one GPU (PCIe), 10^9 bytes a second, as measured rather than as named."""

    @model_validator(mode="after")
    def _one_price(self) -> Machine:
        if sum(value is not None for value in (self.price_usd, self.rent_usd_hour, self.month_usd)) != 1:
            raise ValueError("exactly one of price_usd, rent_usd_hour and month_usd says what the machine costs")
        return self


def apis() -> Catalog[Api]:
    """Models behind APIs."""
    return read_catalog("apis.yaml", Api, kind="API model")


def machines() -> Catalog[Machine]:
    """Whole machines."""
    return read_catalog("machines.yaml", Machine, kind="machine")


def old_prices(catalog: Catalog[Api] | Catalog[Machine], entry: Api | Machine, today: date | None = None) -> list[str]:
    """A sentence for each price of an entry that may have changed since it was read."""
    return catalog.stale(entry, (name for name in PRICES if name in type(entry).model_fields), today or date.today())
