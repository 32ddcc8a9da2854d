"""The AI doctor: what a small model makes of a patient's record, before and after it was taught.

    python examples/ai-doctor/doctor.py

Three ways are compared on patients that no model has seen: the record in the context of the base model, which is told
all the rules; a LoRA adapter that learned briefings; the same adapter asked for checks, which a JSON schema made for
the patient holds to every lab and every drug. Dangers are planted, so what is found and what is missed can be counted.

This is a demonstration on invented records. It is NOT A MEDICAL DEVICE, and nothing in it is medical advice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from briefing import BRIEF, CHECK, FORM, RULES, named_in_checks, named_in_text, question, rows, schema, target
from patients import Patient, held_out, patients
from worked import Clock, Figure, answers, bootstrap, keep_settings, report, share, table, train_lora, write_rows

WARNING = "Not a medical device: invented patients, toy rules, no medical advice."
ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "epochs=1",
    "lr=8e-4",
    "seq_len=256",
    "micro_batch=1",
    "batch_tokens=512",
    "eval_every=50",
    "sample_tokens=0",
)
Named = Sequence[frozenset[str]]


def named_by(way: str, text: str, patient: Patient) -> frozenset[str]:
    """The dangers that an answer names; checks that are cut off name none."""
    if way != "structured":
        return named_in_text(text, patient)
    try:
        return named_in_checks(text)
    except ValueError:
        return frozenset()


def has_form(way: str, text: str) -> bool:
    """Whether an answer has exactly the form that was asked for."""
    if way != "structured":
        return FORM.fullmatch(text.strip()) is not None
    try:
        return set(json.loads(text)) == {"labs", "drugs"}
    except ValueError:
        return False


def score(found: Named, planted: Named) -> dict[str, Figure]:
    """Recall (of all dangers, of interactions, of labs) and precision, by patients drawn anew."""

    def part(numerator: Named, denominator: Named, kind: str = "") -> Figure:
        def figure(chosen: Sequence[int]) -> float:
            hits = [danger for n in chosen for danger in numerator[n] & denominator[n] if _is(danger, kind)]
            all_of = [danger for n in chosen for danger in denominator[n] if _is(danger, kind)]
            return len(hits) / len(all_of) if all_of else 0.0

        return bootstrap(figure, len(planted))

    return {
        "recall": part(found, planted),
        "of interactions": part(found, planted, "drug"),
        "of labs": part(found, planted, "lab"),
        "precision": part(planted, found),
    }


def gain(after: Named, before: Named, planted: Named) -> Figure:
    """What recall gained, patient by patient."""

    def figure(chosen: Sequence[int]) -> float:
        hits = sum(len(after[n] & planted[n]) - len(before[n] & planted[n]) for n in chosen)
        return hits / max(1, sum(len(planted[n]) for n in chosen))

    return bootstrap(figure, len(planted))


def _is(danger: str, kind: str) -> bool:
    return not kind or (kind == "drug") == (" + " in danger)


def ask_all(folder: Path, unseen: list[Patient], adapter: Path, clock: Clock) -> dict[str, list[str]]:
    """Each way's answers."""

    def ask(way: str, system: str, **how: Any) -> list[str]:
        asked = [question(one, system) for one in unseen]
        return clock.measure(f"answers, {way}", lambda: answers(folder / f"answers-{way}.jsonl", asked, **how))

    return {
        "base": ask("base", RULES, max_tokens=120),
        "lora": ask("lora", BRIEF, adapter=adapter, max_tokens=120),
        "structured": ask("structured", CHECK, adapter=adapter, max_tokens=160, schemas=[schema(p) for p in unseen]),
    }


def main() -> None:
    """All of it; what is there already is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ai-doctor", help="folder of everything it makes")
    parser.add_argument("--patients", type=int, default=600, help="to learn from")
    parser.add_argument("--held-out", type=int, default=40, help="to be asked about")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder, clock = given.out, Clock(given.out / "seconds.json")
    settings = {"patients": given.patients, "held_out": given.held_out, "seed": given.seed, "training": TRAINING}
    keep_settings(folder, json.loads(json.dumps(settings)))
    print(WARNING, file=sys.stderr)

    seen = patients(given.patients, given.seed)
    unseen = held_out(given.held_out, given.seed + 1, seen)
    write_rows(folder / "train.jsonl", rows(seen))
    write_rows(folder / "held_out.jsonl", [{"record": p.record, "dangers": sorted(p.dangers)} for p in unseen])
    adapter = clock.measure("training", lambda: train_lora(folder, folder / "train.jsonl", *TRAINING))
    said = ask_all(folder, unseen, adapter, clock)

    planted = [one.dangers for one in unseen]
    found = {way: [named_by(way, t, p) for t, p in zip(texts, unseen, strict=True)] for way, texts in said.items()}
    ways = {
        way: {"exact form": share([has_form(way, text) for text in texts]), **score(found[way], planted)}
        for way, texts in said.items()
    }
    gains = {way: gain(found[way], found["base"], planted) for way in ("lora", "structured")}
    _tell(folder, unseen, said, ways, gains, clock)


def _tell(
    folder: Path,
    unseen: list[Patient],
    said: dict[str, list[str]],
    ways: dict[str, dict[str, Figure]],
    gains: dict[str, Figure],
    clock: Clock,
) -> None:
    results = {
        "ways": {way: {name: asdict(figure) for name, figure in figures.items()} for way, figures in ways.items()},
        "recall gained over base": {way: asdict(figure) for way, figure in gains.items()},
        "patients": len(unseen),
        "dangers": sum(len(one.dangers) for one in unseen),
        "seconds": clock.seconds,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    header = ["way", *ways["base"], "recall gained"]
    lines = [
        [way, *map(str, figures.values()), str(gains[way]) if way in gains else ""] for way, figures in ways.items()
    ]
    about = f"{len(unseen)} patients that no model has seen, {results['dangers']} planted dangers; 95 % intervals"
    page = report(
        folder,
        title="AI doctor",
        subtitle=f"{about}; {sum(clock.seconds.values()):.0f} s in all",
        warning=WARNING,
        about="Recall: of the planted dangers, those named. Precision: of those named, the planted. Intervals by "
        "bootstrap over patients; of the exact form by Wilson. Gained: over the base model, patient by patient.",
        header=header,
        rows=lines,
        samples=[
            {
                "title": f"Patient {n + 1}",
                "asked": one.record,
                "answers": [("as it should be", target(one)), *((way, texts[n]) for way, texts in said.items())],
            }
            for n, one in enumerate(unseen[:6])
        ],
        files=[
            ("results.json", "all figures"),
            ("train.jsonl", "what was learned"),
            ("held_out.jsonl", "who was asked about, with the planted dangers"),
            *((f"answers-{way}.jsonl", "what was answered") for way in said),
            ("training/latest/report.html", "the training's own report"),
        ],
    )
    table(f"AI doctor: {about}", header, lines)
    print(WARNING)
    print(f"Report: {page}")


if __name__ == "__main__":
    main()
