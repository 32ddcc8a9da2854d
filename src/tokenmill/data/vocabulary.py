"""A tokenizer for a new model, trained on its own data: byte-level BPE, so that any text can be written with it.

Small on purpose: the tokenizers library does the work. Text is cut by Llama 3's pattern with numbers in ones and twos,
which is better than ones or threes at vocabularies of this size (nanochat's log: 0.965 bits a byte, 0.969, 0.972).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokenmill.config.parts import DataConfig, Source
from tokenmill.core.errors import ConfigError
from tokenmill.data.files import Broken, find_files, read_rows
from tokenmill.data.formats import Chat, Completion, Document, RowError, Text, parse_row
from tokenmill.text.backend import framing
from tokenmill.text.pretokenizers import KINDS
from tokenmill.text.tokenizer import Tokenizer

MOST_BYTES = 200 << 20
"""Text that is looked at: beyond it the merges hardly change."""

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
TURNS = ("<|im_start|>", "<|im_end|>")
"""Kept free for a later fine-tuning on conversations (ChatML), so that it needs no new rows."""
MASK = "<|mask|>"
NUM_SPANS = 100
"""Sentinels of span corruption, named as T5's."""


def train_tokenizer(config: DataConfig, vocab_size: int, *, objective: str = "next_token") -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens for the training data of `config`.

    Every text begins with BOS, as documents in training do. `objective` adds what it needs: a mask token for ``mlm``,
    a hundred sentinels for ``span``. The ends of plain texts that are held out are not looked at.

    Raises:
        ConfigError: there is no text, or `vocab_size` is too small for bytes and control tokens.
    """
    extra = {"mlm": [MASK], "span": [f"<extra_id_{n}>" for n in range(NUM_SPANS)]}.get(objective, [])
    specials = [BOS, EOS, *TURNS, *extra]
    if vocab_size < 256 + len(specials):
        raise ConfigError(f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} control tokens")
    texts = _texts(config)
    first = next(texts, None)
    if first is None:
        raise ConfigError(f"there is no text in {config.path} to train a tokenizer on")
    backend = Backend(models.BPE())
    kind = KINDS["llama3"]
    patterns = [pattern.replace("{1,3}", "{1,2}") for pattern in kind.patterns]
    backend.pre_tokenizer = type(kind)(tuple(patterns)).pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    backend.train_from_iterator(chain([first], texts), trainer)
    backend.post_processor = framing({BOS: specials.index(BOS)}, {})
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS} | ({"mask_token": MASK} if MASK in extra else {})
    return Tokenizer(backend, origin="the tokenizer trained here", names=names)


def text_bytes(config: DataConfig) -> int:
    """Bytes of text in the training data, counted up to `MOST_BYTES`."""
    return sum(len(text.encode()) for text in _texts(config))


def _texts(config: DataConfig) -> Iterator[str]:
    sources: list[Any] = config.path if isinstance(config.path, list) else [config.path]
    seen = 0
    for source in sources:
        for file in find_files(source.path if isinstance(source, Source) else source):
            for row in read_rows(file):
                if isinstance(row, Broken) or (row.at is not None and row.at >= 1 - config.eval_share):
                    continue
                for text in _parts(row.value, config):
                    seen += len(text)
                    yield text
                if seen > MOST_BYTES:
                    return


def _parts(row: dict[str, Any], config: DataConfig) -> list[str]:
    try:
        document: Document = parse_row(row, format=config.format, text_field=config.text_field)
    except RowError:
        return []  # `tokenise` counts and names it
    if isinstance(document, Text):
        return [document.text]
    if isinstance(document, Completion):
        return [document.prompt, document.completion]
    assert isinstance(document, Chat)
    return [message["content"] for message in document.messages if isinstance(message.get("content"), str)]
