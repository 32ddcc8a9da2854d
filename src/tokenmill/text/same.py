"""Whether two tokenizers are the same where it counts: the same string behind every id, the same ids for the same text.

Equal sizes say nothing (Qwen2.5's models share one vocabulary and have tables of 151,936 and of 152,064 rows), and
equal vocabularies may still cut a text in different ways.
"""

from __future__ import annotations

from tokenmill.text.compare import sample_texts
from tokenmill.text.tokenizer import Tokenizer

SHOWN = 3
"""Differing ids that are named."""


def differences(one: Tokenizer, other: Tokenizer) -> list[str]:
    """What differs, a sentence each, ``one`` named first; empty where a distribution over ids means the same to both.

    Ids that only one of them has are differences too: tables may be padded, tokenizers are not.
    """
    found = []
    common = min(one.vocab_size, other.vocab_size)
    odd = [i for i in range(common) if one.id_to_token(i) != other.id_to_token(i)]
    if odd:
        shown = ", ".join(f"{i} is {one.id_to_token(i)!r} and {other.id_to_token(i)!r}" for i in odd[:SHOWN])
        found.append(f"{len(odd):,} ids stand for different tokens: {shown}{', …' if len(odd) > SHOWN else ''}")
    if one.vocab_size != other.vocab_size:
        larger = max(one, other, key=lambda tokenizer: tokenizer.vocab_size)
        found.append(
            f"{one.vocab_size:,} and {other.vocab_size:,} tokens: {common} is {larger.id_to_token(common)!r} in one of "
            "them only"
        )
    if not found:
        texts = (text for group in sample_texts().values() for text in group)
        cut = next((text for text in texts if _ids(one, text) != _ids(other, text)), None)
        if cut is not None:
            found.append(f"the same tokens, but {cut[:40]!r} is cut into different ones")
    return found


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
