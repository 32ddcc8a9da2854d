"""A teacher behind a server: asked for the likeliest tokens at every place of a text that is given by its ids.

``/completions`` with ``echo`` and ``logprobs`` scores a prompt, and ``return_tokens_as_token_ids`` names what it says
by id; tokenmill's and vLLM's servers do both. The tokenizers are compared by what the server calls tokens: the string
of every id that the data has, and how sample texts are cut. Strings that are no whole characters look alike (U+FFFD)
and say nothing; so does the space that some servers take off a token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tokenmill.config.parts import DistillConfig
from tokenmill.core.endpoint import Answer, Endpoint
from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import home
from tokenmill.data.batch import Batch
from tokenmill.data.dataset import Dataset
from tokenmill.data.taught import TaughtBatch
from tokenmill.text.compare import sample_texts
from tokenmill.text.same import SHOWN
from tokenmill.text.tokenizer import Tokenizer

NAMED = "token_id:"
IDS_AT_ONCE = 512
"""Ids whose strings are asked for together."""
NOTHING = -100.0
"""The log-probability of an id that fills up a list which the server left short: next to none."""


class RemoteTeacher:
    """The model ``config.teacher`` of the server at ``config.url``. ``keep``: answers, for a run that was stopped; of
    what a student wrote nobody will ask again."""

    def __init__(self, config: DistillConfig, tokenizer: Tokenizer, *, keep: bool = True) -> None:
        assert config.url is not None
        self.config, self.tokenizer = config, tokenizer
        self.endpoint = Endpoint(
            config.url,
            home() / "cache" / "teacher" / "answers" if keep else None,
            route="/completions",
            read=_read,
            key_variable=config.key_variable,
        )

    def check(self, datasets: Iterable[Dataset | None]) -> None:
        """ConfigError: the server scores no prompts, or means other tokens by these ids."""
        seen = np.unique(np.concatenate([d[i].tokens for d in datasets if d is not None for i in range(len(d))]))
        asked: list[Any] = [part.tolist() for part in np.split(seen, range(IDS_AT_ONCE, len(seen), IDS_AT_ONCE))]
        odd = list[str]()
        for ids, scored in zip(asked, self._asked(asked, 1, named=False), strict=True):
            odd += self._different(ids, scored["tokens"])
        if odd:
            shown = ", ".join(odd[:SHOWN])
            self._refuse(f"{len(odd):,} ids stand for different tokens: {shown}{', …' if len(odd) > SHOWN else ''}")
        texts = [text for group in sample_texts().values() for text in group if text.strip()]
        for text, scored in zip(texts, self._asked(texts, 1, named=True), strict=True):
            theirs = [_id(one) for one in scored["tokens"]][:-1]
            if theirs != self.tokenizer.encode(text):
                self._refuse(f"the same tokens, but {text[:40]!r} is cut into different ones")

    def likeliest(self, batch: Batch) -> Iterator[tuple[slice, tuple[torch.Tensor, torch.Tensor]]]:
        """Ids and log-probabilities [T, K] of what follows every token of a batch."""
        documents = [part.tolist() for part in batch.tokens_T.cpu().split(batch.lengths)]
        count, rows = self.config.top_k, list[tuple[list[int], list[float]]]()
        for ids, scored in zip(documents, self._asked(documents, count, named=True), strict=True):
            tops = scored.get("top_logprobs") or []
            if len(tops) != len(ids) + 1:
                raise ConfigError(f"{self.endpoint.url} gave {len(tops)} places of a text of {len(ids)} tokens, where "
                                  "one more was asked for")  # fmt: skip
            rows += [_row(top, count, self.tokenizer.vocab_size) for top in tops[1:]]
        ids_TK = torch.tensor([ids for ids, _ in rows])
        yield slice(0, len(rows)), (ids_TK, torch.tensor([values for _, values in rows]))

    def taught(self, batch: Batch) -> TaughtBatch:
        """A batch with the teacher's lists."""
        [(_, (ids_TK, logprobs_TK))] = self.likeliest(batch)
        return TaughtBatch(
            batch.tokens_T, batch.labels_T, batch.lengths, batch.indices, ids_TK, logprobs_TK, written=batch.written
        )

    def _asked(self, prompts: Sequence[Any], count: int, *, named: bool) -> list[dict[str, Any]]:
        """The scores of prompts (texts or ids) and of the token that follows each, in OpenAI's older shape."""
        how = {"model": self.config.teacher, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": count}
        if named:
            how["return_tokens_as_token_ids"] = True
        answers = self.endpoint.ask_all([{**how, "prompt": prompt} for prompt in prompts])
        refused = next((one for one in answers if one.finish_reason == "refused"), None)
        if refused is not None:
            raise ConfigError(f"{self.endpoint.url} will not score a prompt: {refused.text}")
        return [json.loads(one.text) for one in answers]

    def _different(self, ids: Sequence[int], tokens: Sequence[str]) -> list[str]:
        """Ids that the server calls something else."""
        if len(tokens) < len(ids):
            self._refuse(f"it scored {len(tokens)} of {len(ids)} tokens that were given by their ids")
        pairs = [
            (i, self.tokenizer.token_bytes(i).decode("utf-8", "replace"), theirs)
            for i, theirs in zip(ids, tokens, strict=False)
        ]
        return [f"{i} is {theirs!r} and {ours!r}" for i, ours, theirs in pairs if not _same(ours, theirs)]

    def _refuse(self, why: str) -> None:
        raise ConfigError(f"distill.teacher={self.config.teacher} at {self.endpoint.url} has another tokenizer than "
                          f"the student, so what it says of a token means nothing to it: {why}")  # fmt: skip


def _same(ours: str, theirs: str) -> bool:
    if "\ufffd" in ours or "\ufffd" in theirs:
        return True
    return ours.strip() == theirs.replace("\u2581", " ").strip()


def _row(top: Mapping[str, float], count: int, tokens: int) -> tuple[list[int], list[float]]:
    """The likeliest ``count`` of a place. A server adds the token that stands there, which may be one more, and may
    name rows that only pad its table: what they have goes to the tail."""
    every = sorted(((value, _id(name)) for name, value in top.items()), reverse=True)
    found = [(value, token_id) for value, token_id in every if token_id < tokens][:count]
    ids = [token_id for _, token_id in found]
    unused = (i for i in range(count * 2) if i not in set(ids))
    ids += [next(unused) for _ in range(count - len(ids))]
    return ids, [max(value, NOTHING) for value, _ in found] + [NOTHING] * (count - len(found))


def _id(name: str) -> int:
    if not name.startswith(NAMED):
        raise ConfigError(f"the server calls a token {name!r}, not by its id: it does not know "
                          "return_tokens_as_token_ids (tokenmill's and vLLM's do)")  # fmt: skip
    return int(name.removeprefix(NAMED))


def _read(reply: Any) -> Answer | None:
    """The scores alone; None where there are none."""
    try:
        scores = reply.json()["choices"][0]["logprobs"]
        kept = {name: scores[name] for name in ("tokens", "top_logprobs")}
    except (ValueError, LookupError, TypeError):
        return None
    return Answer(json.dumps(kept), "stop") if all(map(_finite, kept["top_logprobs"])) else None


def _finite(top: Mapping[str, float] | None) -> bool:
    return top is None or all(math.isfinite(value) for value in top.values())
