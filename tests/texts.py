"""Texts that tokenizers get wrong, and a helper that writes a GGUF's tokenizer keys from a tokenizers object."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

DATA = Path(__file__).parent / "data"


def corpus() -> list[str]:
    """Code, emoji, scripts, odd white space (``data/texts/corpus.json``), then seeded noise."""
    texts: list[str] = json.loads((DATA / "texts" / "corpus.json").read_text())
    return texts + noise()


def noise(count: int = 120, seed: int = 7) -> list[str]:
    """Random bytes read as UTF-8 with replacement, random code points of all planes, random ASCII soup."""
    rng = random.Random(seed)
    found = []
    for n in range(count):
        length = rng.randrange(1, 60)
        if n % 3 == 0:
            found.append(rng.randbytes(length).decode("utf-8", "replace"))
        elif n % 3 == 1:
            points = (
                rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x110000)])
                for _ in range(length)
            )
            found.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
        else:
            found.append("".join(rng.choice("ab c1.\n'\t_S<|>") for _ in range(length)))
    return found


def training_text() -> list[str]:
    """What small vocabularies are trained on: some of the corpus, often enough to give merges."""
    texts = json.loads((DATA / "texts" / "corpus.json").read_text())
    return [text for text in texts if text.strip()] * 4


def bpe_metadata(backend: Backend, pre: str, **extra: Any) -> dict[str, Any]:
    """The ``tokenizer.*`` keys that a GGUF of this byte-level BPE would have."""
    data = json.loads(backend.to_str())
    vocab = sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    special = {token["content"]: 3 if token["special"] else 4 for token in data["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in vocab],
        "tokenizer.ggml.token_type": [special.get(token, 1) for token, _ in vocab],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["model"]["merges"]],
        **{f"tokenizer.{key}": value for key, value in extra.items()},
    }
