"""Reward models as people use them: conversations in, scores out; one model, or several that vote.

    model = RewardModel.load("runs/latest/model")
    model.score([[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]])

An ensemble is harder to fool than any of its members: where they disagree, nobody knows (Coste et al. 2023, arXiv
2310.02743). Its members need not share a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.data.formats import Chat, Completion, Document
from tokenmill.data.preferences import parse_pair
from tokenmill.data.render import Renderer
from tokenmill.data.tool_formats import write_tools
from tokenmill.engine.reward import reward
from tokenmill.models import load_model, load_tokenizer
from tokenmill.nn.scorer import Scorer
from tokenmill.store import Store
from tokenmill.text.tokenizer import Tokenizer

Conversation = Sequence[Mapping[str, Any]]
Voting = Literal["mean", "min", "cautious"]
"""How an ensemble's scores become one: their mean, the lowest (worst case), the mean less their standard deviation."""


class Scores(Protocol):
    """What gives conversations scores."""

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """A number each, in order; higher is better."""
        ...


@dataclass(frozen=True)
class RewardModel:
    """A decoder with a scalar head, and the tokenizer whose template it was trained with."""

    network: Scorer
    tokenizer: Tokenizer

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        store: Store | None = None,
    ) -> RewardModel:
        """From a folder that the recipe ``reward`` wrote, or any other sequence classification with one label.

        ConfigError where the model writes text instead.
        """
        loaded = load_model(model, device=device, dtype=dtype, store=store)
        if not isinstance(loaded.network, Scorer):
            raise ConfigError(f"{model}: {loaded.family.architecture} is no reward model; train one with the recipe "
                              "reward")  # fmt: skip
        return cls(loaded.network, load_tokenizer(model, store=store))

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """Scores of conversations that end with an answer, rendered with the model's own template."""
        renderer = Renderer(self.tokenizer, train_on="all")
        return self.score_documents([Chat(list(map(dict, one))) for one in conversations], renderer)

    def score_documents(self, documents: Sequence[Document], renderer: Renderer | None = None) -> list[float]:
        """The same for rows as training reads them: texts where there is no template. Calls of tools are told in
        Hermes' words where the template has no place for them."""
        renderer = renderer or Renderer(self.tokenizer, train_on="all")
        told = documents if renderer.tells_tools else [_in_words(document) for document in documents]
        texts = [renderer.encode(document)[0].ids.tolist() for document in told]
        return reward(self.network, texts)


@dataclass(frozen=True)
class Ensemble:
    """Several reward models as one. ``voting``: see :data:`Voting`."""

    members: Sequence[RewardModel]
    voting: Voting = "mean"

    def score(self, conversations: Sequence[Conversation]) -> list[float]:
        """One score a conversation."""
        return vote([member.score(conversations) for member in self.members], self.voting)

    def score_documents(self, documents: Sequence[Document]) -> list[float]:
        """The same for rows as training reads them."""
        return vote([member.score_documents(documents) for member in self.members], self.voting)


def _in_words(document: Document) -> Document:
    if isinstance(document, Chat) and any(message.get("tool_calls") for message in document.messages):
        return Chat(write_tools(document, "hermes")["messages"])
    return document


def vote(scores: Sequence[Sequence[float]], voting: Voting = "mean") -> list[float]:
    """Members' scores, [members][texts], as one list."""
    if not scores:
        raise UsageError("an ensemble needs at least one reward model")
    scores_MN = torch.tensor([list(one) for one in scores], dtype=torch.float64)
    if voting == "min":
        return scores_MN.amin(0).tolist()
    mean_N = scores_MN.mean(0)
    if voting == "cautious":
        mean_N = mean_N - scores_MN.std(0, correction=0)
    return mean_N.tolist()


def pair_documents(row: Mapping[str, Any]) -> tuple[Document, Document]:
    """Both sides of a row of pairs; RowError where it is none."""
    chosen, rejected = parse_pair(row)
    return chosen.document, rejected.document


def length_of(document: Document) -> int:
    """Characters of the answer, for measures of length bias."""
    if isinstance(document, Completion):
        return len(document.completion)
    assert isinstance(document, Chat)
    return sum(len(str(message.get("content") or "")) for message in document.messages[document.context :])
