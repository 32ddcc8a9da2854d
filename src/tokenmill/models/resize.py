"""A larger vocabulary for a model that learns new tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tokenmill.core.errors import ConfigError
from tokenmill.models.load import Model
from tokenmill.nn.linear import Linear


def grow_vocabulary(model: Model, size: int) -> None:
    """Give embedding and output matrix rows up to ``size``, in place; new rows are the mean of the old ones.

    The mean is a token that is as likely as the others on average, so that nothing else becomes likelier (Hewitt 2021).
    ConfigError where the vocabulary is larger already.
    """
    decoder = model.decoder
    if size < decoder.config.vocab_size:
        raise ConfigError(f"this model has {decoder.config.vocab_size} tokens; a vocabulary cannot shrink to {size}")
    decoder.embed.weight = _grown(decoder.embed.weight, size)
    if isinstance(decoder.head, Linear):
        decoder.head.weight = _grown(decoder.head.weight, size)
        decoder.head.out_features = size
        if decoder.head.bias is not None:
            decoder.head.bias = _grown(decoder.head.bias, size)
    decoder.config = replace(decoder.config, vocab_size=size)
    model.config["vocab_size"] = size


def _grown(rows: Tensor, size: int) -> nn.Parameter:
    mean = rows.detach().float().mean(0, keepdim=True).to(rows.dtype)
    new = mean.expand(size - len(rows), *rows.shape[1:])
    return nn.Parameter(torch.cat((rows.detach(), new)), requires_grad=rows.requires_grad)
