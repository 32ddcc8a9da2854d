"""Synthetic data: prompts made of documents, answers from any OpenAI-compatible server, checked before they count.

For every document a prompt is written by a template (Jinja, in the sandbox of chat templates; the columns are its
variables, the text is ``text``) and asked ``samples`` times. An answer becomes a text, a prompt with its completion, a
conversation, or (``parse: json``) rows of its own. It is dropped, with a count for each reason, if it was cut off, is
too short, does not match, breaks its format, repeats an answer of the same batch or copies its source. What is alike
across batches is for ``exact`` and ``minhash`` behind this step. A row's column ``synthetic`` says where it is from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from tokenmill.config.parts import Count, Part, Positive, Share
from tokenmill.core.endpoint import Answer, Endpoint
from tokenmill.core.errors import ConfigError
from tokenmill.core.paths import home
from tokenmill.data.curate.convert import convert_row, kind_of_row
from tokenmill.data.curate.copies import hash64
from tokenmill.data.curate.read import contents
from tokenmill.data.curate.shingles import plain_words, shingle_hashes
from tokenmill.data.curate.step import Context, Document, Tally
from tokenmill.data.formats import RowError


class SynthesizeOptions(Part):
    """Synthetic data from a served model."""

    model: Annotated[str, Field(min_length=1)]
    """The model's name on the server."""
    prompt: Annotated[str, Field(min_length=1)]
    """Template of the user's message: ``Write a question that this text answers.\\n\\n{{ text }}``."""
    system: str | None = None
    """Template of a system message."""
    url: str = "http://127.0.0.1:11434/v1"
    """The server; the default is ``tokenmill serve`` on this machine."""
    key_variable: str | None = None
    """Environment variable that holds the server's key."""
    samples: Count = 1
    """Answers to each prompt, each under a seed of its own."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Count = 512
    """Of an answer; longer ones are cut off there by the server, and dropped."""
    into: Literal["text", "completion", "messages"] = "text"
    """What an answer becomes: a text, or the completion (the last message) to its prompt."""
    parse: Literal["text", "json"] = "text"
    """``json``: the answer holds an object, or a list of them, each a row (``into`` then has no say); a fence around
    it is taken off."""
    fields: list[str] = Field(default_factory=list)
    """``json``: columns that every row needs, not empty."""
    match: str | None = None
    """A regular expression that an answer has to match somewhere."""
    refuse: str | None = None
    """A regular expression that no answer may match, such as ``As an AI``."""
    min_chars: Annotated[int, Field(ge=0)] = 1
    max_source: Share = 0.8
    """Of the answer's runs of five words, the most that may stand in the source: above it the source was copied."""
    keep_source: bool = False
    """The documents that prompts were made of go on too."""
    concurrency: Count = 8
    """Questions under way at a time, for each worker."""
    per_minute: Count | None = None
    """Questions begun in a minute at most, for each worker."""
    retries: Annotated[int, Field(ge=0)] = 5
    """After a failure that may pass: no connection, too many requests, an overloaded server."""
    timeout_s: Positive = 300.0
    """For one answer."""
    cache: str | None = None
    """Folder of answers, by question; None is ``TOKENMILL_HOME/cache/synthesize``. Nothing is asked twice."""

    @field_validator("match", "refuse")
    @classmethod
    def _is_an_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


def build(options: SynthesizeOptions, context: Context) -> Synthesize:
    """The step ``synthesize``."""
    if options.fields and options.parse != "json":
        raise ConfigError("synthesize: fields are columns of parse: json")
    return Synthesize(options, context.seed)


class _Refused(Exception):
    """An answer that does not count; the text is the reason that is counted."""


class Synthesize:
    """See the module."""

    def __init__(self, options: SynthesizeOptions, seed: int) -> None:
        self.options, self.seed = options, seed
        self._prompt = _template("prompt", options.prompt)
        self._system = None if options.system is None else _template("system", options.system)
        self._endpoint: Endpoint | None = None

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        """New documents, each behind the one it was made of if that stays."""
        asked = [(document, number) for document in documents for number in range(self.options.samples)]
        answers = iter(self._server().ask_all([self.question(document, number) for document, number in asked]))
        kept: list[Document] = []
        seen: set[bytes] = set()
        for document in documents:
            if self.options.keep_source:
                kept.append(document)
                tally.keep()
            for number in range(1, self.options.samples + 1):
                kept += self._counted(document, number, next(answers), seen, tally)
        return kept

    def question(self, document: Document, number: int) -> dict[str, Any]:
        """The body of the request for one sample."""
        messages = [{"role": "user", "content": _filled(self._prompt, "prompt", document)}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": _filled(self._system, "system", document)})
        return {
            "model": self.options.model,
            "messages": messages,
            "temperature": self.options.temperature,
            "top_p": self.options.top_p,
            "max_tokens": self.options.max_tokens,
            "seed": hash64(f"{self.seed} {number} {document.id}") & 0x7FFFFFFF,
        }

    def _server(self) -> Endpoint:
        if self._endpoint is None:
            options = self.options
            cache = Path(options.cache) if options.cache is not None else home() / "cache" / "synthesize"
            self._endpoint = Endpoint(
                options.url,
                cache / hashlib.sha256(options.url.encode()).hexdigest()[:16],
                key_variable=options.key_variable,
                concurrency=options.concurrency,
                per_minute=options.per_minute,
                retries=options.retries,
                timeout_s=options.timeout_s,
            )
        return self._endpoint

    def _counted(self, source: Document, number: int, answer: Answer, seen: set[bytes], tally: Tally) -> list[Document]:
        """The documents of one answer; what does not count is counted as dropped, with the answer as sample."""
        name = f"{source.id}/{number}"
        try:
            self._check_answer(answer)
            rows = self._rows(source, answer.text)
        except _Refused as refused:
            tally.drop(Document(name, answer.text), str(refused))
            return []
        kept = []
        for place, row in enumerate(rows, 1):
            row["synthetic"] = {"model": self.options.model, "source": source.id}
            text = row.pop("text", None)
            said = "\n".join(contents(row)) if text is None else text
            made = Document(name if place == 1 else f"{name}.{place}", said, row, text is None)
            try:
                self._check_text(source, answer.text if self.options.parse == "text" else said, seen)
            except _Refused as refused:
                tally.drop(made, str(refused))
                continue
            tally.keep()
            kept.append(made)
        return kept

    def _check_answer(self, answer: Answer) -> None:
        options = self.options
        if answer.finish_reason == "refused":
            raise _Refused("refused_by_server")
        if answer.finish_reason == "length":
            raise _Refused("cut_off")
        if len(answer.text.strip()) < max(options.min_chars, 1):
            raise _Refused("too_short")
        if options.match is not None and not re.search(options.match, answer.text):
            raise _Refused("no_match")
        if options.refuse is not None and re.search(options.refuse, answer.text):
            raise _Refused("refused_pattern")

    def _check_text(self, source: Document, text: str, seen: set[bytes]) -> None:
        words = b" ".join(plain_words(text).split())
        if words in seen:
            raise _Refused("repeated")
        hashes, (mine, _) = shingle_hashes([text, source.text], 5)
        if mine and float(np.isin(hashes[:mine], hashes[mine:]).mean()) > self.options.max_source:
            raise _Refused("copied_source")
        seen.add(words)

    def _rows(self, source: Document, text: str) -> list[dict[str, Any]]:
        if self.options.parse == "json":
            return _json_rows(text, self.options.fields)
        said = text.strip()
        prompt = _filled(self._prompt, "prompt", source)
        if self.options.into == "text":
            return [{"text": said}]
        if self.options.into == "completion":
            return [{"prompt": prompt, "completion": said}]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": _filled(self._system, "system", source)})
        return [{"messages": messages}]


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


def _json_rows(text: str, fields: list[str]) -> list[dict[str, Any]]:
    """The rows in an answer: an object or a list of objects, in a fence or bare, with nothing but talk around."""
    fenced = _FENCE.search(text)
    inner = fenced[1] if fenced else text
    start = min((at for at in (inner.find("{"), inner.find("[")) if at >= 0), default=-1)
    try:
        value: Any = json.JSONDecoder().raw_decode(inner, start)[0] if start >= 0 else None
    except (ValueError, RecursionError) as error:
        raise _Refused("not_json") from error
    rows: list[Any] = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise _Refused("not_json")
    for row in rows:
        if any(row.get(field) in (None, "", [], {}) for field in fields):
            raise _Refused("field_missing")
        if "text" not in row and not "\n".join(contents(row)).strip():
            raise _Refused("nothing_said")
        _check_row(row)
    return rows


def _check_row(row: Mapping[str, Any]) -> None:
    """A row that looks like one of the known formats has to be one."""
    try:
        kind = kind_of_row(row)
    except RowError:
        return  # of no format: columns of the person's own
    try:
        convert_row(row, kind, kind)
    except RowError as error:
        raise _Refused("broken_row") from error


def _template(key: str, source: str) -> Any:
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ConfigError(f"synthesize.{key}: line {error.lineno}: {error.message}") from error


def _filled(template: Any, key: str, document: Document) -> str:
    from jinja2 import TemplateError

    try:
        return str(template.render({**document.meta, "text": document.text}))
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        known = ", ".join(["text", *map(str, document.meta)])
        raise ConfigError(f"synthesize.{key}: {document.id}: {error}; its columns: {known}") from error
