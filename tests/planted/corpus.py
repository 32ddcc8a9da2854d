"""Documents of known kinds: prose in ten languages, gibberish, spam, lists, code, leaks of a benchmark, near copies.

    for document in planted(40, seed=1):
        document.meta["planted"]      # what it is

Every document of the kinds ``prose`` and ``language`` is one that a good filter keeps.
"""

# ruff: noqa: E501
from __future__ import annotations

import random
from collections.abc import Iterator

from tests.planted.control import clean_text
from tests.planted.sentences import SENTENCES

from tokenmill.data.curate.step import Document

QUESTIONS = (
    ("Which planet of the solar system has the tallest known volcano, and what is that volcano called by astronomers?", "Mars, Olympus Mons"),
    ("A train leaves the station at nine and travels at sixty kilometres an hour; how far has it come by noon?", "one hundred and eighty kilometres"),
    ("What is the name of the process by which green plants turn light into chemical energy, and where does it happen?", "photosynthesis, in the chloroplasts"),
    ("If all bloops are razzies and all razzies are lazzies, are all bloops then necessarily lazzies as well?", "yes"),
    ("Who wrote the novel in which a captain hunts a white whale across all the oceans of the world?", "Herman Melville"),
    ("Does ice float on water?", "yes"),
)  # fmt: skip
"""An evaluation set; the last row is too short to be looked for."""


def evaluation_rows() -> list[dict[str, str]]:
    """`QUESTIONS` as rows of a file."""
    return [{"question": question, "answer": answer} for question, answer in QUESTIONS]


def planted(count: int, seed: int) -> Iterator[Document]:
    """`count` documents of every kind (of ``language``: of every language), shuffled."""
    rng = random.Random(seed)
    made: list[tuple[str, str, dict[str, str]]] = []
    for number in range(count):
        made.append(("prose", prose(rng), {}))
        made += [
            ("language", " ".join(rng.sample(said, 4)), {"true_language": code}) for code, said in SENTENCES.items()
        ]
        made.append(("gibberish", gibberish(rng), {}))
        made.append(("spam", spam(rng), {}))
        made.append(("list", "\n".join(f"- {rng.choice(_words())} {rng.randrange(999)}" for _ in range(60)), {}))
        made.append(
            ("symbols", " ".join(rng.choice(("###", "{}", "==", "12", "...", "a", "&&")) for _ in range(200)), {})
        )
        question, answer = QUESTIONS[number % 5]
        made.append(("leak", f"{prose(rng, 3)}\n{question} {answer}.\n{prose(rng, 3)}", {}))
    rng.shuffle(made)
    for number, (kind, text, more) in enumerate(made):
        yield Document(f"planted#{number}", text, {"planted": kind, **more})


def prose(rng: random.Random, paragraphs: int = 6) -> str:
    """Paragraphs of full sentences out of the clean control text, each from another place."""
    found = _paragraphs()
    return "\n\n".join(found[rng.randrange(len(found))] for _ in range(paragraphs))


def gibberish(rng: random.Random) -> str:
    """Random letters: words too long, without stop words."""
    letters = "bcdfghjklmnpqrstvwxz"
    return " ".join("".join(rng.choice(letters) for _ in range(rng.randrange(6, 22))) for _ in range(150))


def spam(rng: random.Random) -> str:
    """One offer, again and again."""
    offer = f"Buy cheap {rng.choice(_words())} now, click here for the best price of all and win {rng.randrange(1000)}!"
    return "\n".join([offer] * rng.randrange(10, 30))


def near_copy(text: str, similarity: float, rng: random.Random, n: int = 5) -> str:
    """The text with its end replaced by other words, so that the sets of runs of `n` words have that Jaccard index.

    With N runs in each text, of which s are shared, it is s / (2N - s).
    """
    words = text.split()
    runs = len(words) - n + 1
    shared = round(2 * runs * similarity / (1 + similarity))
    kept = shared + n - 1 if shared else 0
    fresh = [f"{rng.choice(_words())}{rng.randrange(10**6)}" for _ in range(len(words) - kept)]
    return " ".join(words[:kept] + fresh)


_CACHE: dict[str, list[str]] = {}


def _paragraphs() -> list[str]:
    """Paragraphs of the control text that are prose: long, ending as sentences do, and of letters."""
    if "paragraphs" not in _CACHE:
        pieces = (" ".join(piece.split()) for piece in clean_text(1_000_000).split("\n\n"))
        long = {piece for piece in pieces if len(piece) > 200 and piece.endswith(".")}
        _CACHE["paragraphs"] = sorted(p for p in long if sum(c.isalpha() or c == " " for c in p) > 0.96 * len(p))
    return _CACHE["paragraphs"]


def _words() -> list[str]:
    if "words" not in _CACHE:
        _CACHE["words"] = sorted(
            {word for p in _paragraphs() for word in p.split() if word.isalpha() and len(word) > 4}
        )
    return _CACHE["words"]
