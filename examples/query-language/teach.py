"""A base model is taught Rill, a query language that it cannot know.

    python examples/query-language/teach.py

Before: the model is told the language and shown three examples. After: a LoRA adapter has learned six hundred questions
with their queries. What is asked about needs queries that are in none of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rill import DESCRIPTION, GRAMMAR, SHORT, Pair, held_out, messages, pairs, rows
from worked import Clock, Figure, answers, keep_settings, report, share, table, train_lora, write_rows

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "epochs=1",
    "lr=1e-3",
    "seq_len=256",
    "micro_batch=1",
    "batch_tokens=256",
    "eval_every=50",
    "sample_tokens=0",
)


def score(said: list[str], asked: list[Pair]) -> dict[str, Figure]:
    """Shares of answers that are the query, blanks aside, and that are a query of the language at all."""
    return {
        "exact match": share([text.split() == one.query.split() for text, one in zip(said, asked, strict=True)]),
        "well formed": share([GRAMMAR.fullmatch(text.strip()) is not None for text in said]),
    }


def main() -> None:
    """All of it; what is there already is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "query-language", help="folder of what it makes")
    parser.add_argument("--questions", type=int, default=600, help="to learn from")
    parser.add_argument("--held-out", type=int, default=100, help="to be asked")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder, clock = given.out, Clock(given.out / "seconds.json")
    settings = {"questions": given.questions, "held_out": given.held_out, "seed": given.seed, "training": TRAINING}
    keep_settings(folder, json.loads(json.dumps(settings)))

    learned = pairs(given.questions, given.seed)
    asked = held_out(given.held_out, given.seed + 1, learned)
    write_rows(folder / "train.jsonl", list(rows(learned)))
    write_rows(folder / "held_out.jsonl", [asdict(one) for one in asked])
    adapter = clock.measure("training", lambda: train_lora(folder, folder / "train.jsonl", *TRAINING))
    said = {}
    for way, system, put in (("before", DESCRIPTION, None), ("after", SHORT, adapter)):
        questions, path = [messages(one.question, system) for one in asked], folder / f"answers-{way}.jsonl"
        said[way] = clock.measure(f"answers {way}", lambda q=questions, p=path, a=put: answers(p, q, a, max_tokens=48))
    _tell(folder, asked, said, clock)


def _tell(folder: Path, asked: list[Pair], said: dict[str, list[str]], clock: Clock) -> None:
    ways = {way: score(texts, asked) for way, texts in said.items()}
    results = {
        **{way: {name: asdict(figure) for name, figure in figures.items()} for way, figures in ways.items()},
        "questions": len(asked),
        "seconds": clock.seconds,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    header = ["", *ways["before"]]
    lines = [[way, *map(str, figures.values())] for way, figures in ways.items()]
    about = f"{len(asked)} questions whose queries were not learned; 95 % intervals"
    page = report(
        folder,
        title="A new query language",
        subtitle=f"{about}; {sum(clock.seconds.values()):.0f} s in all",
        warning="",
        about="Before: told the language, with three examples. After: a LoRA adapter, told nothing.",
        header=header,
        rows=lines,
        samples=[
            {
                "title": f"Question {n + 1}",
                "asked": one.question,
                "answers": [("as it should be", one.query), *((way, texts[n]) for way, texts in said.items())],
            }
            for n, one in enumerate(asked[:12])
        ],
        files=[
            ("results.json", "all figures"),
            ("train.jsonl", "what was learned"),
            ("held_out.jsonl", "what was asked"),
            *((f"answers-{way}.jsonl", "what was answered") for way in said),
            ("training/latest/report.html", "the training's own report"),
        ],
    )
    table(f"Rill: {about}", header, lines)
    print(f"Report: {page}")


if __name__ == "__main__":
    main()
