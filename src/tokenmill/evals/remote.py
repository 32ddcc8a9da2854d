"""A model behind any server that speaks OpenAI's protocol, as a :class:`~tokenmill.evals.subject.Subject`.

Conversations go to ``/chat/completions``, plain texts to ``/completions``. Likelihoods need a server whose
``/completions`` scores prompts (``echo`` with ``logprobs``): tokenmill's and vLLM's do; chats alone cannot be scored.
Where a continuation begins is found by counting: the server is asked how many tokens the context has by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenmill.core.endpoint import Answer, Endpoint
from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.evals.local import parse_calls
from tokenmill.evals.subject import Ask, Call, Identity, Likelihood, Progress, Reply, Writing

MOST_STOPS = 4
"""Texts that end an answer, as many as OpenAI takes."""


class EndpointSubject:
    """The model ``name`` of the server at ``url``; ``at_once`` questions are under way at a time."""

    def __init__(self, url: str, name: str, cache: Path, *, at_once: int = 16, key_variable: str | None = None) -> None:
        def endpoint(route: str, read: Any) -> Endpoint:
            return Endpoint(
                url, cache / route.strip("/"), route=route, read=read, concurrency=at_once, key_variable=key_variable
            )

        self._name = name
        self._chat = endpoint("/chat/completions", _read_chat)
        self._text = endpoint("/completions", _read_text)
        self._identity = Identity(f"{name} at {url}", "", {"url": url, "model": name})

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def has_chat(self) -> bool:
        return True

    def likelihoods(self, pairs: Sequence[tuple[Ask, str]], progress: Progress | None = None) -> list[Likelihood]:
        """ConfigError where the server scores no prompts; UsageError for conversations."""
        if any(ask.messages for ask, _ in pairs):
            raise UsageError("a server scores plain texts only: --chat off")
        contexts = list(dict.fromkeys(ask.text.rstrip() for ask, _ in pairs))
        counting = [self._body(prompt=one, max_tokens=1, temperature=0) for one in contexts]
        scoring = [
            self._body(prompt=ask.text + end, max_tokens=0, temperature=0, echo=True, logprobs=1) for ask, end in pairs
        ]
        counted = [_parsed(answer)["usage"].get("prompt_tokens") for answer in self._text.ask_all(counting)]
        lengths = dict(zip(contexts, counted, strict=True))
        scored = [_parsed(answer) for answer in self._text.ask_all(scoring)]
        if progress is not None:
            progress(len(pairs), len(pairs))
        return [_likelihood(one, lengths[ask.text.rstrip()]) for one, (ask, _) in zip(scored, pairs, strict=True)]

    def write(self, asks: Sequence[Ask], how: Writing, progress: Progress | None = None) -> list[list[Reply]]:
        """Each of the ``samples`` is a question of its own with the next seed."""
        bodies = [(ask, self._asking(ask, how, sample)) for ask in asks for sample in range(how.samples)]
        chats = iter(self._chat.ask_all([body for ask, body in bodies if ask.messages]))
        texts = iter(self._text.ask_all([body for ask, body in bodies if not ask.messages]))
        replies = [_reply(next(chats if ask.messages else texts), ask, how.stop) for ask, _ in bodies]
        if progress is not None:
            progress(len(asks), len(asks))
        return [replies[n : n + how.samples] for n in range(0, len(replies), how.samples)]

    def _asking(self, ask: Ask, how: Writing, sample: int) -> dict[str, Any]:
        more: dict[str, Any] = {"max_tokens": how.max_tokens, "temperature": how.temperature, "seed": how.seed + sample}
        if how.stop:
            more["stop"] = list(how.stop)[:MOST_STOPS]  # the others are looked for here
        if not ask.messages:
            return self._body(prompt=ask.text, **more)
        if ask.tools:
            more["tools"] = list(ask.tools)
        return self._body(messages=list(ask.messages), **more)

    def _body(self, **values: Any) -> dict[str, Any]:
        return {"model": self._name, **values}


def _read_chat(reply: Any) -> Answer | None:
    try:
        document = reply.json()
        choice = document["choices"][0]
        message = choice["message"]
        calls = [one["function"] for one in message.get("tool_calls") or ()]
        said = {"text": message.get("content") or "", "calls": calls, "usage": document.get("usage") or {}}
        return Answer(json.dumps(said), str(choice.get("finish_reason") or "stop"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _read_text(reply: Any) -> Answer | None:
    try:
        document = reply.json()
        choice = document["choices"][0]
        said = {"text": choice["text"], "logprobs": choice.get("logprobs"), "usage": document.get("usage") or {}}
        return Answer(json.dumps(said), str(choice.get("finish_reason") or "stop"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _parsed(answer: Answer) -> dict[str, Any]:
    if answer.finish_reason == "refused":
        raise ConfigError(f"the server will not take the question: {answer.text}")
    parsed: dict[str, Any] = json.loads(answer.text)
    return parsed


def _likelihood(scored: Mapping[str, Any], start: Any) -> Likelihood:
    logprobs = scored["logprobs"] or {}
    values = logprobs.get("token_logprobs")
    if not isinstance(start, int) or not isinstance(values, list):
        raise ConfigError(
            "the server scores no prompts (`echo` with `logprobs` in /completions, and `usage`): tasks of the kind "
            "choice need that"
        )
    # what melts into the context's last token is scored with it, as the facade does; a first token has no score
    start = max(1, min(start, len(values) - 1))
    tops = (logprobs.get("top_logprobs") or [None] * len(values))[start:]
    own = [float(one) for one in values[start:]]
    greedy = all(not top or one >= max(top.values()) for one, top in zip(own, tops, strict=True))
    return Likelihood(sum(own), len(own), greedy)


def _reply(answer: Answer, ask: Ask, stops: Sequence[str]) -> Reply:
    parsed = _parsed(answer)
    calls = []
    for call in parsed.get("calls", ()):
        try:
            arguments = json.loads(call["arguments"] or "{}")
        except ValueError:
            arguments = None
        # arguments that are no JSON object are no call that anybody could make
        calls.append(Call(str(call["name"]), arguments if isinstance(arguments, dict) else {"": call["arguments"]}))
    text = str(parsed["text"])
    text = text[: min([len(text), *(at for stop in stops if (at := text.find(stop)) >= 0)])]
    if ask.tools and not calls:  # a server that hands calls on as text
        text, own = parse_calls(text, None, ask.tools)
        calls = list(own)
    usage = parsed["usage"]
    tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    return Reply(text, answer.finish_reason, tuple(calls), *tokens)
