"""What a model is asked and has to answer: briefings as text in a fixed form, checks as JSON under a schema made for
the patient; and both read back into the dangers that they name."""

from __future__ import annotations

import json
import re
from typing import Any

from patients import INTERACTIONS, LABS, Patient

Message = dict[str, str]

BRIEF = "Brief the doctor."
CHECK = "Check the record."
RULES = (
    "You brief a doctor on a patient's record in exactly four lines:\n"
    "1. sex, age and history\n"
    "2. Drugs: each drug; behind one that does not go with another, in brackets, what happens and with which\n"
    "3. Labs: each value; behind one out of range the word low or high\n"
    "4. Action: call now if there is any danger, else routine\n"
    + f"What does not go together: {'; '.join(f'{a} with {b} ({why})' for (a, b), why in INTERACTIONS.items())}.\n"
    + f"Normal ranges: {', '.join(f'{name} {lab.low:g}-{lab.high:g}' for name, lab in LABS.items())}."
)
"""What a model that has learned nothing of it is told."""

_DRUG = r"[a-z]+(?: \([a-z ]+ with [a-z]+\))?"
_LAB = r"[A-Z][A-Za-z]* \d+(?:\.\d)?(?: low| high)?"
FORM = re.compile(
    r"(?:Woman|Man), \d+, with [a-z0-9 ,]+\.\n"
    rf"Drugs: {_DRUG}(?:, {_DRUG})*\.\n"
    rf"Labs: {_LAB}(?:, {_LAB})*\.\n"
    r"Action: (?:call now|routine)\."
)
"""The exact form of a briefing."""
_NOTED = re.compile(r"([a-z]+) \([a-z ]+ with ([a-z]+)\)")
_WARNING = re.compile(r"interact|danger|risk|bleed|avoid|together|damage|syndrome|low pressure|slow|potassium")


def target(patient: Patient) -> str:
    """The briefing as it should be."""
    against = _against(patient)
    drugs = [
        f"{drug} ({_effect(drug, other)} with {other})" if (other := against[drug]) else drug for drug in patient.drugs
    ]
    labs = [
        said if flag == "normal" else f"{said} {flag}"
        for said, flag in zip(patient.measured, patient.flags, strict=True)
    ]
    return (
        f"{patient.sex.capitalize()}, {patient.age}, with {', '.join(patient.history)}.\n"
        f"Drugs: {', '.join(drugs)}.\n"
        f"Labs: {', '.join(labs)}.\n"
        f"Action: {'call now' if patient.dangers else 'routine'}."
    )


def _against(patient: Patient) -> dict[str, str]:
    """For each drug the one before it that it does not go with, or nothing."""
    against = dict.fromkeys(patient.drugs, "")
    for pair in patient.interactions:
        first, second = sorted(pair, key=patient.drugs.index)
        against[second] = first
    return against


def _pair(drug: str, other: str) -> tuple[str, str]:
    """Two drugs in the table's order."""
    return next((pair for pair in INTERACTIONS if set(pair) == {drug, other}), (drug, other))


def _effect(drug: str, other: str) -> str:
    return INTERACTIONS[_pair(drug, other)]


def checks(patient: Patient) -> str:
    """The checks as they should be: every lab judged, every drug with the one before it that it does not go with."""
    against = {drug: other or "none" for drug, other in _against(patient).items()}
    return json.dumps({"labs": dict(zip(patient.measured, patient.flags, strict=True)), "drugs": against})


def schema(patient: Patient) -> dict[str, Any]:
    """What the checks of this patient may be: its own labs and drugs, all of them, and nothing else."""
    drugs = patient.drugs
    return _object(
        {
            "labs": _object({said: {"enum": ["low", "normal", "high"]} for said in patient.measured}),
            "drugs": _object({drug: {"enum": ["none", *drugs[:n]]} for n, drug in enumerate(drugs)}),
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def question(patient: Patient, system: str) -> list[Message]:
    """The conversation that a model is to answer."""
    return [{"role": "system", "content": system}, {"role": "user", "content": patient.record}]


def named_in_text(text: str, patient: Patient) -> frozenset[str]:
    """The dangers that a text names, whatever its form: a lab and low, high or a word of that sense close behind it, or
    two drugs of one known interaction in a sentence that warns of them."""
    found = set()
    for name, _ in patient.labs:
        for match in re.finditer(rf"\b{name}\b(?P<after>[^,;\n]*)", text):
            words = match["after"].lower()
            if re.search(r"\b(low|below|decreased)\b", words):
                found.add(f"{name} low")
            if re.search(r"\b(high|above|elevated|increased)\b", words):
                found.add(f"{name} high")
    for sentence in re.split(r"(?<=[.;])\s|\n", text.lower()):
        if noted := _NOTED.findall(sentence):  # in the form: exactly what stands there
            found |= {" + ".join(_pair(drug, other)) for drug, other in noted}
            continue
        for pair in INTERACTIONS:
            if all(drug in sentence for drug in pair) and _WARNING.search(sentence):
                found.add(" + ".join(pair))
    return frozenset(found)


def named_in_checks(text: str) -> frozenset[str]:
    """The dangers that checks name. ValueError: they are not JSON."""
    said = json.loads(text)
    found = {f"{lab.split()[0]} {flag}" for lab, flag in said["labs"].items() if flag != "normal"}
    for drug, other in said["drugs"].items():
        if other != "none":
            found.add(" + ".join(_pair(drug, other)))
    return frozenset(found)


def rows(patients: list[Patient]) -> list[dict[str, Any]]:
    """What is learned: of every other patient the briefing, of the rest the checks."""
    return [
        {
            "messages": [
                *question(patient, CHECK if number % 2 else BRIEF),
                {"role": "assistant", "content": checks(patient) if number % 2 else target(patient)},
            ]
        }
        for number, patient in enumerate(patients)
    ]
