"""What ``generation_config.json`` says of a model that is written: programs stop at the ids that it names, and at no
others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.text.tokenizer import Tokenizer


def generation_config(own: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """``own``, with the ids that begin, end and pad a text where it does not say them: a GGUF file has them in its
    tokenizer, and transformers looks for them here."""
    ends = sorted(tokenizer.eos_token_ids)
    known = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {key: value for key, value in known.items() if value is not None} | dict(own)
