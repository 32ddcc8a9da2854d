"""RoBERTa and models of the same make, with the masked-language-model head: BERT with positions from pad + 1."""

from __future__ import annotations

from tokenmill.models.bert import encoder_weights, read_encoder
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import Family
from tokenmill.models.weights import Table, row
from tokenmill.nn.config import EncoderConfig


def read(r: ConfigReader) -> EncoderConfig:
    pad = r.get("pad_token_id", 1)
    offset = pad + 1 if isinstance(pad, int) and pad >= 0 else 2
    return read_encoder(r, position_offset=offset, head_activation="gelu")


WEIGHTS: Table = (
    *encoder_weights("roberta"),
    row("lm_head", "head"),
    row("lm_head.dense", "head.dense"),
    row("lm_head.layer_norm", "head.norm"),
    row("lm_head.decoder", "head.out"),
)
IGNORED = r"^lm_head\.decoder\.(weight|bias)$|\.position_ids$|^roberta\.pooler\."

FAMILY = Family("roberta", "RobertaForMaskedLM", read, WEIGHTS, ignored=IGNORED, task="FEATURE_EXTRACTION")
