"""A tokenizer for a new model, trained on its own data: byte-level BPE, so that any text can be written with it.

Text is cut by Llama 3's pattern with numbers in ones and twos, which is better than ones or threes at vocabularies of
this size (nanochat's log: 0.965 bits a byte, 0.969, 0.972). Other kinds: ``tokenmill tokenizer train``.
"""

from __future__ import annotations

from typing import Any

from tokenmill.config.parts import DataConfig, Source
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.data.texts import Texts
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.train import TokenizerSpec
from tokenmill.text.train import train_tokenizer as train
from tokenmill.text.train.spec import TURNS

MOST_BYTES = 200 << 20
"""Text that is looked at: beyond it the merges hardly change."""

MASK = "<|mask|>"
NUM_SPANS = 100
"""Sentinels of span corruption, named as T5's."""


def train_tokenizer(config: DataConfig, vocab_size: int, *, objective: str = "next_token") -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens for the training data of `config`.

    Every text begins with BOS, as documents in training do. `objective` adds what it needs: a mask token for ``mlm``,
    a hundred sentinels for ``span``. ChatML's tokens are kept free for a later fine-tuning on conversations, so that it
    needs no new rows. The ends of plain texts that are held out are not looked at.

    Raises:
        ConfigError: there is no text, or `vocab_size` is too small for bytes and control tokens.
    """
    extra = {"mlm": [MASK], "span": [f"<extra_id_{n}>" for n in range(NUM_SPANS)]}.get(objective, [])
    try:
        spec = TokenizerSpec(
            vocab_size=vocab_size,
            cut="llama3",
            digits=2,
            special=(*TURNS, *extra),
            names={"mask_token": MASK} if MASK in extra else {},
            pad_to=1,
            min_frequency=1,
        )
    except UsageError as error:
        raise ConfigError(str(error)) from error
    texts = _texts(config)
    return train(spec, lambda: texts).tokenizer


def text_bytes(config: DataConfig) -> int:
    """Bytes of text in the training data, counted up to `MOST_BYTES`."""
    texts = _texts(config)
    for _ in texts:
        pass
    return texts.bytes


def paths_of(config: DataConfig) -> list[str]:
    """The paths of the training data, without weights."""
    sources: list[Any] = config.path if isinstance(config.path, list) else [config.path]
    return [source.path if isinstance(source, Source) else source for source in sources]


def _texts(config: DataConfig) -> Texts:
    return Texts(
        paths_of(config),
        format=config.format,
        text_field=config.text_field,
        most_bytes=MOST_BYTES,
        until=1 - config.eval_share,
    )
