"""BERT with its masked-language-model head: post-norm blocks, learned positions, segment embeddings."""

from __future__ import annotations

from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import MAX_LAYERS, OURS, Family, Shape, read_activation, read_attention
from tokenmill.models.weights import Table, row
from tokenmill.nn.config import EncoderConfig, LayerConfig, MLPConfig, NormConfig


def read(r: ConfigReader) -> EncoderConfig:
    return read_encoder(r, position_offset=0, head_activation=read_activation(r, "hidden_act", "gelu"))


def read_encoder(r: ConfigReader, *, position_offset: int, head_activation: str) -> EncoderConfig:
    """The configuration keys that BERT's relatives share."""
    hidden, heads = r.integer("hidden_size"), r.integer("num_attention_heads")
    if hidden % heads:
        r.problem(f"hidden_size {hidden} is no multiple of {heads} attention heads")
    r.only("position_embedding_type", "absolute", None)
    shape = Shape(hidden, r.integer("num_hidden_layers", most=MAX_LAYERS), heads, heads, max(1, hidden // heads))
    attention = read_attention(r, shape, qkv_bias=True, out_bias=True)
    mlp = MLPConfig(
        r.integer("intermediate_size"), read_activation(r, "hidden_act", "gelu"), gated=False, bias=True
    )  # fmt: skip
    return EncoderConfig(
        vocab_size=r.integer("vocab_size"),
        hidden_size=hidden,
        layers=(LayerConfig(attention, mlp),) * shape.num_layers,
        max_position=r.integer("max_position_embeddings", 512) - position_offset,
        norm=NormConfig("layer", r.number("layer_norm_eps", 1e-12), bias=True),
        token_types=r.integer("type_vocab_size", 2),
        position_offset=position_offset,
        head_activation=head_activation,
        tied_embeddings=r.flag("tie_word_embeddings", True),
    )


def encoder_weights(prefix: str) -> Table:
    """The rows below the head, which BERT's relatives name alike."""
    layer = f"{prefix}.encoder.layer.{{layer}}"
    return (
        row(f"{prefix}.embeddings.word_embeddings", "embed"),
        row(f"{prefix}.embeddings.position_embeddings", "positions"),
        row(f"{prefix}.embeddings.token_type_embeddings", "types"),
        row(f"{prefix}.embeddings.LayerNorm", "embed_norm"),
        row(f"{layer}.attention.self.query", f"{OURS}.attn.q"),
        row(f"{layer}.attention.self.key", f"{OURS}.attn.k"),
        row(f"{layer}.attention.self.value", f"{OURS}.attn.v"),
        row(f"{layer}.attention.output.dense", f"{OURS}.attn.out"),
        row(f"{layer}.attention.output.LayerNorm", f"{OURS}.attn_norm"),
        row(f"{layer}.intermediate.dense", f"{OURS}.mlp.up"),
        row(f"{layer}.output.dense", f"{OURS}.mlp.down"),
        row(f"{layer}.output.LayerNorm", f"{OURS}.mlp_norm"),
    )


WEIGHTS: Table = (
    *encoder_weights("bert"),
    row("cls.predictions", "head"),
    row("cls.predictions.transform.dense", "head.dense"),
    row("cls.predictions.transform.LayerNorm", "head.norm"),
    row("cls.predictions.decoder", "head.out"),
)
# copies of tied tensors, the position counter of old files, and the parts of pretraining that this head has not
IGNORED = r"^cls\.predictions\.decoder\.(weight|bias)$|\.position_ids$|^bert\.pooler\.|^cls\.seq_relationship\."

FAMILY = Family("bert", "BertForMaskedLM", read, WEIGHTS, ignored=IGNORED, task="FEATURE_EXTRACTION")
