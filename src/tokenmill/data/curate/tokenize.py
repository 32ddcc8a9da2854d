"""The step ``tokenize``: the documents also as token shards, in the folder ``tokenize`` beside the output.

Documents go on as they are. Tokens are made where the documents are, in all processes; the shards are put in order
once (see `data.sharding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pydantic import Field

from tokenmill.config.parts import Count, Part
from tokenmill.core.errors import ConfigError
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.sharding import Shardable, write_shards
from tokenmill.text.load import tokenizer_from_folder


class TokenizeOptions(Part):
    """What becomes token shards."""

    tokenizer: str = Field(min_length=1)
    """The folder of a tokenizer, as ``tokenmill tokenizer train`` writes it; a model's folder has one too."""
    shard_mtokens: Count = 64
    """Million tokens of a shard, about."""


class Tokenize:
    """See the module."""

    def __init__(self, options: TokenizeOptions, context: Context) -> None:
        self._options, self._seed = options, context.seed
        if not Path(options.tokenizer).is_dir():
            raise ConfigError(
                f"tokenize: {options.tokenizer} is no folder with a tokenizer; tokenmill tokenizer train writes one"
            )

    @cached_property
    def _shardable(self) -> Shardable:
        return Shardable(tokenizer_from_folder(Path(self._options.tokenizer)), seed=self._seed)

    def observe(self, documents: list[Document]) -> bytes:
        """Their tokens. ConfigError for conversations, which are trained on by turns and not as one text."""
        if found := next((document for document in documents if document.derived), None):
            raise ConfigError(
                f"tokenize: {found.id} is no plain text; conversations and prompts are trained on as they are "
                "(recipe sft), not as token shards"
            )
        return self._shardable.observe((document.id, document.text) for document in documents)

    def decide(self, observed: Sequence[Path], folder: Path) -> None:
        """Write the shards."""
        tokenizer, tokens = self._shardable.tokenizer, self._options.shard_mtokens * 10**6
        write_shards(observed, folder / "output", tokenizer, seed=self._seed, shard_tokens=tokens)

    def apply(self, documents: list[Document], tally: Tally, folder: Path, shard: int) -> list[Document]:
        """All of them."""
        tally.keep(len(documents))
        return documents


def build(options: TokenizeOptions, context: Context) -> Tokenize:
    """The step."""
    return Tokenize(options, context)
