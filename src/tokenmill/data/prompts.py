"""Prompts that a policy is to answer, with the other columns of their rows, which say what a good answer is.

A row is ``{"prompt": text or messages, …}`` or ``{"messages": […], …}``, which ends before the assistant speaks (an
answer at the end is cut off). Columns that are not part of the prompt go to the rewards as they are. Prompts are few
and short beside the tokens of other data, so they are read into memory, and nothing is cached on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenmill.config.parts import DataConfig, Source
from tokenmill.core.errors import ConfigError, TemplateError
from tokenmill.data.batch import NO_LABEL, Sample
from tokenmill.data.dataset import Dataset, passes
from tokenmill.data.files import TEXTS, Broken, Row, find_files, kind_of, read_rows
from tokenmill.data.formats import Message, RowError, parse_message, parse_tools
from tokenmill.data.prepare import Splits, byte_lengths, draw_of, sources_of
from tokenmill.data.render import Renderer
from tokenmill.data.report import SHOWN, DataReport, Side
from tokenmill.text.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """One row."""

    ids: np.ndarray
    """int64: as the model reads it, up to where it is to write."""
    text: str
    messages: Sequence[Message]
    """Empty where the prompt is plain text."""
    row: Mapping[str, Any] = field(repr=False)
    """The other columns."""
    where: str
    content: int
    """A hash of the whole row."""
    source: int = 0
    tools: Sequence[str] = ()
    """Names of the tools on offer, of those that the run can call."""


class Prompts(Dataset):
    """Prompts by number. A sample's tokens are the prompt; it has no labels, since what follows is not written yet."""

    def __init__(self, prompts: Sequence[Prompt], weights: Sequence[float], *, seed: int, seq_len: int) -> None:
        sources = np.array([prompt.source for prompt in prompts], np.int64)
        times = passes(weights, sources, seed) if len(prompts) else np.zeros(0, np.int64)
        self.prompts = [prompt for prompt, count in zip(prompts, times, strict=True) for _ in range(count)]
        self.lengths = np.array([len(prompt.ids) for prompt in self.prompts], np.int64)
        self.seq_len, self.causal = seq_len, True

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Sample:
        ids = self.prompts[index].ids
        return Sample(index, ids, np.full(len(ids), NO_LABEL, np.int64))

    def where(self, index: int) -> str:
        """``file:line`` of a prompt."""
        return self.prompts[index].where

    @property
    def num_labels(self) -> int:
        """Prompts are read, never learned."""
        return 0

    @property
    def fingerprint(self) -> str:
        """Names these prompts in this order."""
        digest = hashlib.blake2b(digest_size=8)
        for prompt in self.prompts:
            digest.update(prompt.content.to_bytes(8, "little"))
            digest.update(prompt.ids.tobytes())
        return digest.hexdigest()


def load_prompts(config: DataConfig, tokenizer: Tokenizer, *, seq_len: int, room: int, tools: Tools = ()) -> Splits:
    """Read the prompts of a recipe. Those that leave less than ``room`` of ``seq_len`` tokens are left out, counted.
    ``tools``: what the run can call; a row's column ``tools`` (names or schemas) may offer fewer of them.

    ConfigError: no prompts, too many broken rows. NotFoundError, FormatError: files that are not there or cannot be
    read.
    """
    report = DataReport(policies={"duplicates": config.duplicates, "leakage": config.leakage, "truncate": "drop"})
    renderer = Renderer(tokenizer, chat_template=config.chat_template, prompts=config.prompts)
    sources = sources_of(config.path)
    every = _read(config, sources, renderer, report, tools)
    train, held_out = _split(every, config)
    if config.eval is not None:
        held_out = _read(config, sources_of(config.eval), renderer, report, tools)
    train = _clean(train, held_out, config, report)
    weights = [source.weight for source in sources]
    how: dict[str, Any] = {"seed": config.seed, "seq_len": seq_len}
    trained = Prompts(_fitting(train, report.train, seq_len - room), weights, **how)
    evaluated = Prompts(_fitting(held_out, report.eval, seq_len - room), [1.0] * len(sources), **how)
    for side, prompts in ((report.train, trained), (report.eval, evaluated)):
        side.samples, side.tokens = len(prompts), prompts.num_tokens
    if not len(trained):
        raise ConfigError(
            f"there is no prompt to train on in {config.path}: {report.rows} rows, {report.broken} broken, "
            f"{report.train.truncated} longer than {seq_len - room} tokens (seq_len less policy.completion_tokens)"
        )
    return Splits(trained, evaluated if len(evaluated) else None, report, byte_lengths(tokenizer))


def _read(
    config: DataConfig, sources: Sequence[Source], renderer: Renderer, report: DataReport, tools: Tools
) -> list[Prompt]:
    prompts: list[Prompt] = []
    rows = broken = 0
    for number, source in enumerate(sources):
        for file in find_files(source.path):
            if kind_of(file) in TEXTS:
                raise ConfigError(f"{file}: a plain text asks nothing; give rows with a prompt (.jsonl, .parquet)")
            for row in read_rows(file):
                rows += 1
                try:
                    if isinstance(row, Broken):
                        raise RowError(row.problem)
                    prompts.append(_prompt(row, renderer, number, tools))
                except (RowError, TemplateError) as error:
                    broken += 1
                    if len(report.broken_rows) < SHOWN:
                        report.broken_rows.append(str(Broken(file, row.line, str(error))))
    report.rows, report.broken = report.rows + rows, report.broken + broken
    if broken > config.max_broken * rows:
        named = "\n  ".join(report.broken_rows[:5])
        raise ConfigError(
            f"{broken} of {rows} rows cannot be used, more than data.max_broken={config.max_broken} allows:\n  {named}"
        )
    return prompts


def _prompt(row: Row, renderer: Renderer, source: int, tools: Tools) -> Prompt:
    """A row as a prompt; RowError says what is wrong with it."""
    value = row.value
    given = value.get("prompt", value.get("messages"))
    rest = {key: item for key, item in value.items() if key not in ("prompt", "messages")}
    messages: list[Message] = []
    if isinstance(given, str) and given.strip():
        messages = [{"role": "user", "content": given}] if renderer.as_chat else []
    elif isinstance(given, list) and given:
        messages = [parse_message(one, f"messages[{i}]") for i, one in enumerate(given)]
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    offered = _offered(value.get("tools"), tools) if tools else parse_tools(value.get("tools"))
    if messages:
        ids, text = renderer.prompt(messages, offered)
    elif isinstance(given, str) and given.strip():
        ids, text = renderer.tokenizer.encode(given, parse_special=False), given
    else:
        raise RowError(f"keys {', '.join(map(str, value)) or '(none)'}: a prompt is text, or messages that ask for one")
    said = hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    content = int.from_bytes(said.digest()[:8], "little")
    where = f"{row.file}:{row.line}"
    names = [tool["function"]["name"] for tool in offered or ()] if tools else []
    return Prompt(np.array(ids, np.int64), text, messages, rest, where, content, source, names)


def _offered(given: Any, tools: Tools) -> list[Mapping[str, Any]]:
    """Those of the run's tools that a row names; all of them where it names none."""
    known = {tool["function"]["name"]: tool for tool in tools}
    if isinstance(given, list) and all(isinstance(one, str) for one in given):
        names = given
    else:
        names = [tool["function"].get("name") for tool in parse_tools(given) or ()]
    if unknown := [name for name in names if name not in known]:
        raise RowError(f"it offers the tool {unknown[0]!r}, which the run cannot call; there are {', '.join(known)}")
    return [known[name] for name in names or known]


def _split(prompts: list[Prompt], config: DataConfig) -> tuple[list[Prompt], list[Prompt]]:
    """What is trained on and what is held out: by a hash of the row, as for all data."""
    if config.eval is not None or config.eval_share == 0 or not prompts:
        return prompts, []
    draw = draw_of(np.array([prompt.content for prompt in prompts], np.uint64), config.seed)
    chosen = draw < config.eval_share
    if not chosen.any() and len({prompt.content for prompt in prompts}) > 1:
        chosen = draw == draw.min()
    kept = ([p for p, out in zip(prompts, chosen, strict=True) if bool(out) == side] for side in (False, True))
    train, held_out = kept
    return train, held_out


def _clean(train: list[Prompt], held_out: list[Prompt], config: DataConfig, report: DataReport) -> list[Prompt]:
    """Training prompts without duplicates and leaked ones, as the policies say; both are counted."""
    others, seen = {prompt.content for prompt in held_out}, set[int]()
    kept: list[Prompt] = []
    for prompt in train:
        leaked, repeated = prompt.content in others, prompt.content in seen
        seen.add(prompt.content)
        report.leaked += leaked
        report.train.duplicates += repeated
        if leaked and config.leakage == "error":
            raise ConfigError(f"a training prompt is in the evaluation too: {prompt.where}")
        if not (leaked and config.leakage == "drop") and not (repeated and config.duplicates == "drop"):
            kept.append(prompt)
    return kept


def _fitting(prompts: list[Prompt], side: Side, longest: int) -> list[Prompt]:
    side.documents = len(prompts)
    side.longest = max((len(prompt.ids) for prompt in prompts), default=0)
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= longest]
    side.truncated = len(prompts) - len(fitting)
    return fitting
