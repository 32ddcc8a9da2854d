"""Reward models: Hugging Face's ``…ForSequenceClassification`` with one label, for every decoder family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tokenmill.core.errors import ConfigError
from tokenmill.models.config_reader import ConfigReader
from tokenmill.models.family import Family
from tokenmill.models.weights import row
from tokenmill.nn.config import Config, DecoderConfig
from tokenmill.nn.scorer import Scorer

if TYPE_CHECKING:
    from tokenmill.models.load import Model

ENDING = "ForSequenceClassification"


def is_scorer(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of a model that scores."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(ENDING) for name in names)


def scorer_family(family: Family) -> Family:
    """The family with its head replaced."""
    stem = family.architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    stem = "Gemma3Text" if stem == "Gemma3" else stem  # the hub's Gemma3For… also takes images
    return replace(family, architecture=stem + ENDING, weights=(*family.weights, row("score", "score")), task="SEQ_CLS")


def read_scorer(reader: ConfigReader, family: Family, config: Config) -> tuple[Family, DecoderConfig]:
    """Family and configuration of a scorer, from those of its decoder; ConfigError unless it has one label."""
    labels = reader.get("num_labels")
    labels = len(reader.get("id2label") or (0, 1)) if labels is None else labels  # two is transformers' default
    if not isinstance(config, DecoderConfig) or labels != 1:
        raise ConfigError(
            f"{reader.source}: a classifier with {labels} labels; of these, decoders with one label (reward models) "
            "are supported"
        )
    return scorer_family(family), replace(config, num_labels=1)


def add_score_head(model: Model, *, seed: int, pad_token_id: int | None) -> Model:
    """The model with a new scalar head instead of its own; they share the other weights.

    The head is drawn from a normal with variance 1/(C + 1) (Stiennon et al. 2020). ``pad_token_id``: what other
    programs find the end of a padded text by. ConfigError where the model is no decoder.
    """
    decoder = model.decoder
    if isinstance(decoder, Scorer):
        return model
    with torch.device("meta"):
        network = Scorer(replace(decoder.config, num_labels=1))
    for name in ("embed", "positions", "layers", "norm", "rotaries", "prompt"):
        setattr(network, name, getattr(decoder, name))
    size = decoder.config.hidden_size
    draw = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * (size + 1) ** -0.5
    network.score.weight = nn.Parameter(draw.to(decoder.device), requires_grad=False)
    family = scorer_family(model.family)
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config = {**model.config, **labels, "architectures": [family.architecture], "pad_token_id": pad_token_id}
    return replace(model, network=network.train(decoder.training), family=family, config=config, generation_config={})
