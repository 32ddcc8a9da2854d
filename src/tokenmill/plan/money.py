"""For how much: pure arithmetic from tokens, watts and prices to money a month, and where two ways cost the same.

The same part of Python as ``plan/rates.py``. Money is in the currency of the catalogs (US dollars), power in watts,
electricity in money a kWh, a month is a twelfth of 365 days.
"""

from __future__ import annotations

from math import ceil

DAYS_A_MONTH = 30.416666666666668


def blended_price(
    price_in: float, price_out: float, price_cached: float, cached_share: float, output_share: float
) -> float:
    """Money a million tokens: ``output_share`` of them written, ``cached_share`` of those read come from a cache."""
    read = (1 - cached_share) * price_in + cached_share * price_cached
    return (1 - output_share) * read + output_share * price_out


def api_month(tokens_a_day: float, price: float) -> float:
    """Money a month for tokens at ``price`` a million."""
    return tokens_a_day * DAYS_A_MONTH * price / 1e6


def electricity_month(
    busy_watts: float, idle_watts: float, busy_hours: float, on_hours: float, overhead: float, price: float
) -> float:
    """Money a month for power: ``busy_hours`` and ``on_hours`` a day (24 at most), ``overhead`` the ratio of what the
    building draws to what the machine does (PUE), ``price`` a kWh."""
    idle_hours = max(0.0, on_hours - busy_hours)
    kwh_a_day = (busy_watts * busy_hours + idle_watts * idle_hours) * overhead / 1000
    return kwh_a_day * DAYS_A_MONTH * price


def purchase_month(price: float, residual_share: float, years: float, interest: float) -> float:
    """Money a month for a machine that is worth ``residual_share`` of its price after ``years``: straight depreciation,
    and ``interest`` a year on the mean of what is tied up in it."""
    lost = price * (1 - residual_share)
    return lost / (12 * years) + interest / 12 * price * (1 + residual_share) / 2


def rent_month(price_an_hour: float, on_hours: float) -> float:
    """Money a month for a rented machine that runs ``on_hours`` a day."""
    return price_an_hour * on_hours * DAYS_A_MONTH


def busy_hours(tokens_a_day: float, machine_tokens_s: float, machines: float, on_hours: float) -> float:
    """Hours a day that each of the machines computes; no more than it is on."""
    return min(on_hours, tokens_a_day / (machine_tokens_s * machines * 3600))


def machines_for(tokens_a_day: float, machine_tokens_s: float, on_hours: float, peak_factor: float) -> float:
    """Machines whose rate carries the day's tokens when the busiest hour has ``peak_factor`` times the mean; 1 at
    least, because something has to stand there."""
    mean = tokens_a_day / (on_hours * 3600)
    return max(1.0, ceil(mean * peak_factor / machine_tokens_s))


def own_month(
    tokens_a_day: float,
    machine_tokens_s: float,
    machine_month: float,
    busy_watts: float,
    idle_watts: float,
    on_hours: float,
    overhead: float,
    price_kwh: float,
    peak_factor: float,
    staff_month: float,
) -> float:
    """Money a month for own machines, as many as the load takes; ``machine_month`` is depreciation or rent of one."""
    count = machines_for(tokens_a_day, machine_tokens_s, on_hours, peak_factor)
    hours = busy_hours(tokens_a_day, machine_tokens_s, count, on_hours)
    power = electricity_month(busy_watts, idle_watts, hours, on_hours, overhead, price_kwh)
    return count * (machine_month + power) + staff_month


def break_even_tokens(
    api_price: float,
    machine_tokens_s: float,
    machine_month: float,
    busy_watts: float,
    idle_watts: float,
    on_hours: float,
    overhead: float,
    price_kwh: float,
    peak_factor: float,
    staff_month: float,
) -> float:
    """Tokens a day from which own machines cost no more than an API at ``api_price`` a million, ever after; 0 where
    they never do.

    With one number of machines the cost is a line in the tokens: fixed, and what a token's electricity adds. Machines
    at their full load have to bring in the next one's fixed cost too, else the step up to that one is above the API's
    line again: so the crossing counts from the first number of machines that does.
    """
    token_kwh = (busy_watts - idle_watts) * overhead / 1000 / (machine_tokens_s * 3600)
    gain_a_token = (api_price / 1e6 - token_kwh * price_kwh) * DAYS_A_MONTH
    fixed = machine_month + electricity_month(busy_watts, idle_watts, 0.0, on_hours, overhead, price_kwh)
    margin = gain_a_token * machine_tokens_s * on_hours * 3600 / peak_factor - fixed
    if margin <= 0:
        return 0.0
    count = max(1.0, ceil((fixed + staff_month) / margin))
    return (count * fixed + staff_month) / gain_a_token


def payback_months(price: float, api_cost: float, running_cost: float) -> float:
    """Months until what is saved each month has paid a machine; 0 where nothing is saved."""
    saved = api_cost - running_cost
    if saved <= 0:
        return 0.0
    return price / saved
