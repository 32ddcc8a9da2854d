"""T5 and T5 v1.1 (Flan-T5): relative bias, RMSNorm, unscaled attention; v1.1 has gated GELU and a head of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import MAX_LAYERS, Family
from tokenmill.models.weights import Table, row
from tokenmill.nn.config import (
    AttentionConfig,
    EncoderDecoderConfig,
    LayerConfig,
    MLPConfig,
    NormConfig,
    RelativeBias,
)
from tokenmill.ops.activation import ACTIVATIONS


def read(r: ConfigReader) -> EncoderDecoderConfig:
    r.only("is_encoder_decoder", True)
    hidden, heads, head_dim = r.integer("d_model"), r.integer("num_heads"), r.integer("d_kv")
    layers = r.integer("num_layers", most=MAX_LAYERS)
    decoder_layers = r.integer("num_decoder_layers", layers, most=MAX_LAYERS)
    # T5's initialisation makes up for the missing 1/sqrt(head size)
    attention = AttentionConfig(heads, heads, head_dim, scale=1.0)
    layer = LayerConfig(attention, _mlp(r))
    # Only the first T5 ties its head and scales its output; transformers 5 keeps the second fact in a key of its own
    first = r.flag("scale_decoder_outputs", r.flag("tie_word_embeddings", True))
    return EncoderDecoderConfig(
        vocab_size=r.integer("vocab_size"),
        hidden_size=hidden,
        layers=(layer,) * layers,
        decoder_layers=(layer,) * decoder_layers,
        norm=NormConfig("rms", r.number("layer_norm_epsilon", 1e-6)),
        relative_bias=RelativeBias(
            r.integer("relative_attention_num_buckets", 32), r.integer("relative_attention_max_distance", 128)
        ),
        max_position=r.integer("n_positions", 512),
        tied_embeddings=first,
        logit_scale=hidden**-0.5 if first else 1.0,
    )


def _mlp(r: ConfigReader) -> MLPConfig:
    kind = r.text("feed_forward_proj", "relu")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = "gelu_new" if kind == "gated-gelu" else name
    if name not in ACTIVATIONS:
        r.problem(f"'feed_forward_proj' = {kind!r} is not supported; relu and gated-gelu are")
    r.only("dense_act_fn", name, None)
    r.only("is_gated_act", gated, None)
    return MLPConfig(r.integer("d_ff"), name, gated=gated)


def _stack(side: str, feed_forward: int, *more: tuple[str, str]) -> Table:
    block, ours = f"{side}.block.{{layer}}.layer", f"{side}.layers.{{layer}}"
    names = (
        ("0.layer_norm", "attn_norm"),
        *((f"0.SelfAttention.{theirs}", f"attn.{our}") for theirs, our in ATTENTION),
        *more,
        (f"{feed_forward}.layer_norm", "mlp_norm"),
        (f"{feed_forward}.DenseReluDense.wi", "mlp.up"),
        (f"{feed_forward}.DenseReluDense.wo", "mlp.down"),
    )
    return (
        row(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias", f"{side}.bias"),
        *(row(f"{block}.{theirs}", f"{ours}.{our}") for theirs, our in names),
        row(f"{side}.final_layer_norm", f"{side}.norm"),
    )


ATTENTION = (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))
CROSS = (
    ("1.layer_norm", "cross_norm"),
    *((f"1.EncDecAttention.{theirs}", f"cross.{our}") for theirs, our in ATTENTION),
)
WEIGHTS: Table = (
    row("shared", "embed"),
    *_stack("encoder", 1),
    *_stack("decoder", 2, *CROSS),
    row("lm_head", "head"),
)


def _gated(table: Table) -> Table:
    """v1.1's names: two input matrices, of which the first is the gate."""
    wi = [entry for entry in table if entry.theirs.endswith(".wi")]
    gates = [row(f"{entry.theirs}_0", entry.ours[0].replace(".up", ".gate")) for entry in wi]
    renamed = [replace(entry, theirs=f"{entry.theirs}_1") if entry in wi else entry for entry in table]
    return (*renamed, *gates)


# copies of the shared embedding, and a bias that the first files carry and nothing reads
IGNORED = (
    r"^(encoder|decoder)\.embed_tokens\.weight$|^lm_head\.weight$"
    r"|^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)

GATED = Family("t5", "T5ForConditionalGeneration", read, _gated(WEIGHTS), ignored=IGNORED, task="SEQ_2_SEQ_LM")


def variant(config: Mapping[str, Any]) -> Family:
    """The table of names that this configuration's files have."""
    return GATED if str(config.get("feed_forward_proj", "relu")).startswith("gated-") else FAMILY


FAMILY = replace(GATED, weights=WEIGHTS, variant=variant)
