"""Invented patients: records drawn from a seed, and the dangers in them found by rules. No real person is in here.

The rules are a toy: a few well-known interactions and coarse limits, with values drawn well away from them. Nothing in
this folder is a medical device or medical advice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

INTERACTIONS = {
    ("warfarin", "ibuprofen"): "bleeding",
    ("simvastatin", "clarithromycin"): "muscle damage",
    ("lisinopril", "spironolactone"): "high potassium",
    ("digoxin", "verapamil"): "slow heart",
    ("sertraline", "tramadol"): "serotonin syndrome",
    ("sildenafil", "nitroglycerin"): "low pressure",
}
HARMLESS = ("metformin", "amlodipine", "paracetamol", "levothyroxine", "furosemide", "omeprazole")
HISTORY = ("hypertension", "gout", "asthma", "type 2 diabetes", "depression", "arthritis", "heart failure", "angina")


@dataclass(frozen=True)
class Lab:
    """A value that is measured: the limits of what is normal, and what is drawn below, within and above them."""

    low: float
    high: float
    below: tuple[float, float] | None
    within: tuple[float, float]
    above: tuple[float, float] | None
    digits: int

    def flag(self, value: float) -> str:
        """``low``, ``normal`` or ``high``."""
        return "low" if value < self.low else "high" if value > self.high else "normal"


LABS = {
    "K": Lab(3.5, 5.0, (2.3, 3.0), (3.7, 4.8), (5.8, 6.9), 1),
    "Na": Lab(135, 145, (116, 129), (136, 144), (151, 162), 0),
    "Hb": Lab(12.0, 17.0, (6.1, 9.4), (12.2, 16.4), None, 1),
    "Glu": Lab(70, 180, (35, 58), (75, 160), (261, 460), 0),
    "Plt": Lab(150, 400, (18, 88), (160, 380), None, 0),
}


@dataclass(frozen=True)
class Patient:
    """One invented record."""

    sex: str
    age: int
    history: tuple[str, ...]
    vitals: str
    drugs: tuple[str, ...]
    labs: tuple[tuple[str, float], ...]

    @property
    def record(self) -> str:
        """What a model is given."""
        return "\n".join(
            [
                f"Patient: {self.sex}, {self.age}",
                f"History: {', '.join(self.history)}",
                f"Vitals: {self.vitals}",
                f"Drugs: {', '.join(self.drugs)}",
                f"Labs: {', '.join(self.measured)}",
            ]
        )

    @property
    def measured(self) -> tuple[str, ...]:
        """Labs as the record writes them: ``K 6.1``."""
        return tuple(f"{name} {value:.{LABS[name].digits}f}" for name, value in self.labs)

    @property
    def flags(self) -> tuple[str, ...]:
        """For each lab: low, normal or high."""
        return tuple(LABS[name].flag(value) for name, value in self.labs)

    @property
    def interactions(self) -> tuple[tuple[str, str], ...]:
        """Pairs of drugs that do not go together, in the table's order."""
        return tuple(pair for pair in INTERACTIONS if set(pair) <= set(self.drugs))

    @property
    def dangers(self) -> frozenset[str]:
        """All that a briefing has to name: ``K high``, ``warfarin + ibuprofen``."""
        labs = {f"{name} {flag}" for (name, _), flag in zip(self.labs, self.flags, strict=True) if flag != "normal"}
        return frozenset(labs | {" + ".join(pair) for pair in self.interactions})


def patients(count: int, seed: int) -> list[Patient]:
    """Different patients, the same for the same seed."""
    draw = random.Random(seed)
    found: dict[str, Patient] = {}
    while len(found) < count:
        one = _patient(draw)
        found.setdefault(one.record, one)
    return list(found.values())


def held_out(count: int, seed: int, seen: list[Patient]) -> list[Patient]:
    """Patients of another seed, none of whom has a record that was `seen`."""
    records = {one.record for one in seen}
    return [one for one in patients(count + len(seen), seed) if one.record not in records][:count]


def _patient(draw: random.Random) -> Patient:
    pressure = draw.randrange(104, 158)
    return Patient(
        sex=draw.choice(("woman", "man")),
        age=draw.randrange(31, 90),
        history=tuple(draw.sample(HISTORY, 2)),
        vitals=f"BP {pressure}/{pressure - draw.randrange(42, 58)}, HR {draw.randrange(56, 104)}",
        drugs=_drugs(draw),
        labs=tuple((name, _value(draw, LABS[name])) for name in draw.sample(sorted(LABS), 4)),
    )


def _drugs(draw: random.Random) -> tuple[str, ...]:
    """Three drugs. Half of the lists hold a planted interaction, the others halves of two different ones, which is
    harmless: a drug's name alone tells nothing."""
    pair = draw.choice(list(INTERACTIONS))
    chosen = [*pair, draw.choice(HARMLESS)]
    if draw.random() < 0.5:
        kept = draw.choice(pair)
        partners = {drug for one in INTERACTIONS if kept in one for drug in one}
        strangers = sorted({drug for one in INTERACTIONS for drug in one} - partners)
        chosen = [kept, draw.choice(strangers), chosen[2]]
    draw.shuffle(chosen)
    return tuple(chosen)


def _value(draw: random.Random, lab: Lab) -> float:
    """Normal three times in five, so that a patient has one or two values to worry about."""
    outside = [span for span in (lab.below, lab.above) if span is not None]
    low, high = draw.choice(outside) if draw.random() < 0.4 else lab.within
    return round(draw.uniform(low, high), lab.digits)
