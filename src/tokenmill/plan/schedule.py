"""Several models on one machine by the clock: does each slot fit, where do the others sleep, what does a switch take.

The sleep levels are vLLM's. Level 0, here called ``stop``: the program ends and is started again. Level 1: the weights
go to the host's memory and the caches are dropped. Level 2: both are dropped and the weights come from the disk again.
Every stretch between two boundaries is checked: what is awake against the devices' memory, with what a sleeping
program keeps there; what sleeps at level 1 against the host's.

Times are bytes over roads (PCIe to every device at once, disk once), and fixed parts whose source stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from tokenmill.core.errors import UsageError
from tokenmill.plan import rates

Level = Literal["stop", "1", "2"]
LEVELS: dict[Level, str] = {
    "stop": "stop and start again",
    "1": "sleep level 1: weights to the host's memory",
    "2": "sleep level 2: weights from the disk again",
}
SLEEP_S = 0.1
"""To free the caches and unmap memory, the least that the lesson reports for level 1 (0.1 to 0.5 s)."""
WAKE_S = {"1": 0.4, "2": 0.8}
"""Beside the bytes: vLLM's blog of 2025-10-26 reports 0.1 to 6 s and 0.8 to 2.6 s with them."""
STOP_S, START_S = 5.0, 45.0
"""To end a program and begin one beside reading weights: imports, compiling, graphs (vllm#19824 adds up to 145 s for
70B on 8 devices; the lesson has 20 to 50 s of stopping and warming up)."""
RESIDUE = 1.0e9
"""Bytes that a sleeping program keeps on every device: context, graphs, libraries."""
HOST_RESERVE = 8.0e9
"""Bytes of the host's memory that the system and the programs themselves need."""
_SLOT = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)=(.+)")


@dataclass(frozen=True)
class Need:
    """What a model takes when it is awake. Bytes over all devices of the machine together."""

    name: str
    weights: float
    cache: float
    """Keys and values of all its users at full context."""
    overhead: float
    """Activations and the framework, on each device."""


@dataclass(frozen=True)
class Slot:
    """A model that has to answer from ``begin`` to ``end``, minutes after midnight; ``end`` may lie past it."""

    begin: int
    end: int
    need: Need


@dataclass(frozen=True)
class Stretch:
    """Between two boundaries nothing changes."""

    begin: int
    end: int
    awake: tuple[str, ...]
    asleep: tuple[str, ...]
    device_bytes: float
    """On each device."""
    device_free: float
    """Negative where it does not fit."""
    host_bytes: float
    host_free: float

    @property
    def fits(self) -> bool:
        return self.device_free >= 0 and self.host_free >= 0


@dataclass(frozen=True)
class Switch:
    """At a boundary."""

    at: int
    leaves: tuple[str, ...]
    enters: tuple[str, ...]
    seconds: dict[str, float]
    """By level: the one planned and, for comparison, the others."""


@dataclass(frozen=True)
class Schedule:
    """What ``plan serve --slot`` answers."""

    level: Level
    stretches: tuple[Stretch, ...]
    switches: tuple[Switch, ...]
    """Of a day like every other: the first follows on the last of the day before."""
    start_s: dict[str, float]
    """Once, before the first day: seconds to start each model, after which it can sleep."""
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return asdict(self) | {
            "stretches": [asdict(s) | {"fits": s.fits} for s in self.stretches],
            "switching_s": {level: sum(s.seconds[level] for s in self.switches) for level in LEVELS},
        }


@dataclass(frozen=True)
class Roads:
    """The machine of a schedule: memory in bytes, roads in bytes a second."""

    devices: int
    device_memory: float
    host_memory: float
    disk: float
    host_link: float
    """To each device, all at once."""


def parse_slot(text: str) -> tuple[int, int, str]:
    """Begin, end and model of ``08:00-12:00=MODEL``. A slot over midnight ends past 1,440.

    Raises:
        UsageError: not of that form, or no time of day.
    """
    match = _SLOT.fullmatch(text.strip())
    hours = [int(match[n]) for n in (1, 2, 3, 4)] if match else [99]
    if match is None or not (hours[0] < 24 and hours[1] < 60 and hours[2] <= 24 and hours[3] < 60):
        raise UsageError(f"--slot {text!r}: write it as 08:00-12:00=MODEL or 08:00-12:00=MODEL:QUANT")
    begin, end = 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]
    if begin == end:
        raise UsageError(f"--slot {text!r} is of no length")
    return begin, end if end > begin else end + 1440, match[5]


def clock(minute: int) -> str:
    """``08:00``."""
    return f"{minute // 60 % 24:02d}:{minute % 60:02d}"


def plan_schedule(slots: Sequence[Slot], roads: Roads, level: Level) -> Schedule:
    """Check every stretch of a day, and time every switch.

    Raises:
        UsageError: no slot.
    """
    if not slots:
        raise UsageError("a schedule needs a slot: --slot 08:00-12:00=MODEL")
    needs = {slot.need.name: slot.need for slot in slots}
    edges = sorted({edge for slot in slots for edge in (slot.begin, slot.end)})
    stretches, switches = [], []
    before = _last(slots, edges)
    for begin, end in pairwise(edges):
        awake = _awake(slots, begin, end)
        if not awake:  # nobody has to answer: who was awake stays so until somebody else needs the room
            continue
        stretches.append(_stretch(begin, end, awake, needs, roads, level))
        if awake != before:
            switches.append(_switch(begin, before, awake, needs, roads))
        before = awake
    starts = {name: enter_seconds(need, roads, "stop") for name, need in needs.items()}
    return Schedule(level, tuple(stretches), tuple(switches), starts, all(stretch.fits for stretch in stretches))


def _awake(slots: Sequence[Slot], begin: int, end: int) -> tuple[str, ...]:
    return tuple(sorted({s.need.name for s in slots if s.begin <= begin and s.end >= end}))


def _last(slots: Sequence[Slot], edges: Sequence[int]) -> tuple[str, ...]:
    """Who is awake at the end of the day."""
    return next(awake for begin, end in reversed(list(pairwise(edges))) if (awake := _awake(slots, begin, end)))


def _stretch(
    begin: int, end: int, awake: tuple[str, ...], needs: dict[str, Need], roads: Roads, level: Level
) -> Stretch:
    asleep = tuple(sorted(set(needs) - set(awake))) if level != "stop" else ()
    on_device = sum((needs[n].weights + needs[n].cache) / roads.devices + needs[n].overhead for n in awake)
    on_device += RESIDUE * len(asleep)
    on_host = sum(needs[n].weights for n in asleep) if level == "1" else 0.0
    return Stretch(
        begin=begin,
        end=end,
        awake=awake,
        asleep=asleep,
        device_bytes=on_device,
        device_free=roads.device_memory - on_device,
        host_bytes=on_host,
        host_free=roads.host_memory - HOST_RESERVE - on_host,
    )


def _switch(at: int, before: tuple[str, ...], awake: tuple[str, ...], needs: dict[str, Need], roads: Roads) -> Switch:
    leaves = tuple(name for name in before if name not in awake)
    enters = tuple(name for name in awake if name not in before)
    seconds: dict[str, float] = {}
    for level in LEVELS:
        out = sum(leave_seconds(needs[name], roads, level) for name in leaves)
        back = sum(enter_seconds(needs[name], roads, level) for name in enters)
        seconds[level] = out + back
    return Switch(at, leaves, enters, seconds)


def leave_seconds(need: Need, roads: Roads, level: Level) -> float:
    """Seconds until a model has left the devices."""
    if level == "stop":
        return STOP_S
    if level == "2":
        return SLEEP_S
    return rates.move_s(need.weights, roads.host_link * roads.devices, SLEEP_S)


def enter_seconds(need: Need, roads: Roads, level: Level) -> float:
    """Seconds until a model answers."""
    if level == "stop":
        return rates.move_s(need.weights, roads.disk, START_S)
    if level == "2":
        return rates.move_s(need.weights, roads.disk, WAKE_S["2"])
    return rates.move_s(need.weights, roads.host_link * roads.devices, WAKE_S["1"])
