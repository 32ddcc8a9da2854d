"""What a new model is before it has weights: its tokenizer and the ``config.json`` of its family."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.config import sizes
from tokenmill.config.recipe import Recipe, Shape
from tokenmill.core.errors import ConfigError
from tokenmill.data.shards import shard_folders, tokenizer_of
from tokenmill.data.vocabulary import paths_of, text_bytes, train_tokenizer
from tokenmill.models.load import FAMILIES, load_tokenizer
from tokenmill.store import Store
from tokenmill.text.tokenizer import Tokenizer

ROW = 512
"""Tokens of a row where neither the recipe nor a size says."""


@dataclass
class Derivations:
    """Values by dotted key, and why each is what it is."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, reason: str) -> Any:
        """Remember a value and its reason; returns the value."""
        self.values[key], self.reasons[key] = value, reason
        return value


def new_model(recipe: Recipe, found: Derivations, store: Store | None) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the configuration that a model of this size has."""
    wanted = sizes.target_parameters(recipe.size) if recipe.size is not None else None
    name = recipe.tokenizer
    if name is None and recipe.objective == "distill":
        name = found.put("tokenizer", recipe.distill.teacher, "the teacher's")
    if name is not None:
        folder = Path(name)  # a folder may hold a tokenizer alone, which no store would take for a model
        tokenizer = load_tokenizer(folder if folder.is_dir() else name, store=store)
    elif shards := shard_folders(paths_of(recipe.data)):
        if recipe.vocab_size is not None:
            raise ConfigError(f"vocab_size={recipe.vocab_size} has no effect here: the tokens of {shards[0]} are there")
        folder = shards[0] / "tokenizer"
        found.put("tokenizer", str(folder), "the one that the token shards were made with")
        tokenizer = tokenizer_of(shards[0])
    else:
        vocab_size = recipe.vocab_size
        if vocab_size is None:
            # without a size the dimensions are given, and the smallest vocabulary does for whatever they are
            derived = sizes.vocabulary(wanted or 0, text_bytes(recipe.data))
            vocab_size = found.put("vocab_size", derived.value, derived.reason)
        tokenizer = train_tokenizer(recipe.data, vocab_size, objective=recipe.objective)
    shape = _shape(recipe, wanted, tokenizer, found)
    if shape.vocab_size is not None and shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"shape.vocab_size={shape.vocab_size} is less than the tokenizer's {tokenizer.vocab_size} tokens"
        )
    return tokenizer, model_config(shape, tokenizer)


def _shape(recipe: Recipe, wanted: int | None, tokenizer: Tokenizer, found: Derivations) -> Shape:
    """All dimensions: given ones as they are, the others from the size."""
    given = recipe.shape.model_dump()
    rows = -(-tokenizer.vocab_size // 64) * 64
    if given["vocab_size"] is None:
        reason = f"the tokenizer's {tokenizer.vocab_size} tokens, rounded up to a multiple of 64"
        given["vocab_size"] = found.put("shape.vocab_size", rows, reason)
    names = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "mlp_size")
    if wanted is not None:
        derived = sizes.dimensions(wanted, given["vocab_size"])
        for name in names:
            if given[name] is None:
                given[name] = found.put(f"shape.{name}", getattr(derived.value, name), derived.reason)
    elif given["hidden_size"] is not None:
        width = given["hidden_size"]
        guesses = {
            "num_layers": (max(1, width // 64), "width / 64"),
            "num_heads": (max(1, width // sizes.HEAD_DIM), f"width / {sizes.HEAD_DIM}"),
            "mlp_size": (round(width * 8 / 3 / 64) * 64 or 64, "width x 8/3, a multiple of 64"),
        }
        for name, (value, reason) in guesses.items():
            if given[name] is None:
                given[name] = found.put(f"shape.{name}", value, reason)
        if given["num_kv_heads"] is None:
            given["num_kv_heads"] = found.put("shape.num_kv_heads", given["num_heads"], "as many as num_heads")
    if given["hidden_size"] % given["num_heads"]:
        raise ConfigError(f"hidden_size {given['hidden_size']} is no multiple of {given['num_heads']} heads")
    if given["max_position"] is None:
        length = recipe.seq_len or (sizes.row_length(wanted).value if wanted is not None else ROW)
        reason = "twice a row, at least 1,024: rotary positions cost nothing"
        given["max_position"] = found.put("shape.max_position", max(1024, 2 * length), reason)
    return Shape.model_validate(given)


def model_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``config.json`` of a new model with all dimensions given, in the words of its family."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {
        "model_type": shape.family,
        "vocab_size": shape.vocab_size,
        "initializer_range": shape.init_std,
        "tie_word_embeddings": shape.tied_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
        **{name: token for name, token in ids.items() if token is not None},
    }
    if shape.family == "t5":
        return common | {
            "architectures": ["T5ForConditionalGeneration"],
            "d_model": shape.hidden_size,
            "d_kv": _head_dim(shape),
            "d_ff": shape.mlp_size,
            "num_layers": shape.num_layers,
            "num_decoder_layers": shape.num_layers,
            "num_heads": shape.num_heads,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": True,
            "decoder_start_token_id": tokenizer.pad_token_id,
        }
    dimensions = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.mlp_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.max_position,
    }
    if shape.family == "bert":
        return common | dimensions | {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu"}
    return (
        common
        | dimensions
        | {
            "architectures": [FAMILIES[shape.family].architecture],
            "num_key_value_heads": shape.num_kv_heads,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": shape.rope_theta,
        }
        | ({"head_dim": _head_dim(shape)} if shape.family == "qwen3" else {})
    )


def _head_dim(shape: Shape) -> int:
    assert shape.hidden_size is not None
    assert shape.num_heads is not None
    return shape.hidden_size // shape.num_heads
