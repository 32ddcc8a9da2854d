"""Documents to tokens, and which of them are learned: masks by prefix rendering of the model's own chat template.

A template is a program that writes text and says nothing of who speaks. What the assistant said is found by rendering
the conversation up to a turn, with the beginning of the assistant's turn, and with the turn itself: the ids between
the two are its own. That is exactly what the model will be given and has to write when it is used, tool calls included.

Cases that are met on the way (each has a test):

- a template that rewrites the past when the conversation goes on (Qwen 3 drops earlier thinking, Mistral moves the
  tools): earlier turns are no prefix any more. Each such turn becomes an example of its own, in the context that it
  would really be written in.
- a template whose beginning of a turn is more than what it writes for a finished one (DeepSeek-R1 opens the thinking):
  the turn begins where the two part.
- what a template writes behind the end token (a newline) is never generated, so it is not learned.
- templates write BOS themselves, so the tokenizer adds none.
- the mask comes from positions, never from the pad token's id, so an end token that is also the pad token is learned.

Source: the fault lists of TRL #976 and #4879, transformers #34172; the ids of a prompt are those that
:meth:`Tokenizer.encode_chat` gives the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tokenmill.core.errors import TemplateError
from tokenmill.data.formats import Chat, Completion, Document, RowError, Text
from tokenmill.text.tokenizer import Tokenizer
from tokenmill.text.tool_prompt import has_place_for_tools, tell_tools

TrainOn = Literal["auto", "all", "assistant", "last"]


@dataclass(frozen=True)
class Encoded:
    """Tokens of one training example. ``learned[t]`` says whether token t itself is to be predicted."""

    ids: np.ndarray
    """int64."""
    learned: np.ndarray
    """bool."""
    ends: bool
    """Whether the last learned token is an end token: a model that never sees one never stops."""

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """Encodes documents of every kind for one tokenizer.

    Args:
        train_on: which tokens are learned; see ``data.train_on``.
        chat_template: Jinja source or a name; None is the model's own.
        prompts: whether prompt and completion are a user's and the assistant's turn (``chat``) or plain text; ``auto``
            is chat where there is a template.
        add_eos: end texts and plain completions with the end token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        train_on: TrainOn = "auto",
        chat_template: str | None = None,
        prompts: Literal["auto", "chat", "text"] = "auto",
        add_eos: bool = True,
    ) -> None:
        self.tokenizer, self.train_on, self.chat_template = tokenizer, train_on, chat_template
        has_template = chat_template is not None or tokenizer.chat_template is not None
        self.as_chat = prompts == "chat" or (prompts == "auto" and has_template)
        self._eos = tokenizer.eos_token_id if add_eos else None
        # a name among the model's own, or source
        known = tokenizer.chat_templates
        sources = known.values() if chat_template is None else [known.get(chat_template, chat_template)]
        self.tells_tools = any(map(has_place_for_tools, sources))
        """Whether the template has a place for tools and calls."""
        inner, framed = tokenizer.encode("x", add_special_tokens=False), tokenizer.encode("x")
        at = next((i for i in range(len(framed)) if framed[i : i + len(inner)] == inner), 0)
        self._before, self._behind = framed[:at], framed[at + len(inner) :]

    def encode(self, document: Document) -> list[Encoded]:
        """The examples of a document: one, or several where a template rewrites the past. RowError if it has none."""
        if isinstance(document, Text):
            return [self._text(document.text)]
        if isinstance(document, Completion):
            if not self.as_chat:
                return [self._completion(document)]
            question = {"role": "user", "content": document.prompt}
            document = Chat([question, {"role": "assistant", "content": document.completion}])
        try:
            return list(self._chat(document))
        except TemplateError as error:
            raise RowError(str(error)) from error

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[int], str]:
        """A conversation up to where the assistant is to speak, as ids and as text. Tools are told as the template
        does, or in Hermes' words where it has no place for them."""
        if tools and not self.tells_tools:
            messages, tools = tell_tools(messages, tools), None
        how: dict[str, Any] = {"tools": tools, "chat_template": self.chat_template}
        return self.tokenizer.encode_chat(messages, **how), self.tokenizer.render_chat(messages, **how)

    def begin(self) -> list[int]:
        """What the tokenizer puts before a text (BOS, [CLS]); for a document that comes in pieces."""
        return self._before

    def piece(self, text: str) -> list[int]:
        """The ids of a piece from the middle of a document."""
        return self.tokenizer.encode(text, add_special_tokens=False, parse_special=False)

    def end(self) -> list[int]:
        """What comes behind a text: what the tokenizer puts there ([SEP]), and the end token if that is none."""
        return self._behind + self._closing(self._behind)

    def _closing(self, ids: Sequence[int]) -> list[int]:
        return [] if self._eos is None or (ids and ids[-1] == self._eos) else [self._eos]

    def _text(self, text: str) -> Encoded:
        # parse_special: a text that quotes a control token quotes it; nobody's web page ends a document in the middle
        ids = self.tokenizer.encode(text, parse_special=False)
        ids = ids + self._closing(ids)
        return _encoded(ids, [(0, len(ids))], self.tokenizer)

    def _completion(self, document: Completion) -> Encoded:
        ids = self.tokenizer.encode(document.prompt + document.completion, parse_special=False)
        start = _common(self.tokenizer.encode(document.prompt, parse_special=False), ids)
        ids = ids + self._closing(ids)
        return _encoded(ids, [(0 if self.train_on == "all" else start, len(ids))], self.tokenizer)

    # --- conversations

    def _chat(self, chat: Chat) -> Iterator[Encoded]:
        said = (i for i, message in enumerate(chat.messages) if message["role"] == "assistant")
        turns = [i for i in said if i >= chat.context]
        if not self.tells_tools and (chat.tools or any(message.get("tool_calls") for message in chat.messages)):
            raise RowError(
                "the chat template has no place for tools: it would leave them out. `tokenmill data tools convert FILE "
                "--to hermes` writes them as text that every template keeps"
            )
        if self.train_on == "all":
            ids = self._ids(chat, len(chat.messages))
            yield _encoded(ids, [(0, len(ids))], self.tokenizer)
            return
        if not turns:
            raise RowError("nobody says anything that could be learned: no message has the role assistant")
        left = turns[-1:] if self.train_on == "last" else turns
        examples: list[Encoded] = []
        while left:
            last = left[-1]
            ids = self._ids(chat, last + 1)
            spans = {turn: span for turn in left if (span := self._span(chat, turn, ids)) is not None}
            if last not in spans:
                raise RowError(
                    f"messages[{last}] cannot be told from what comes before it: the chat template does not write a "
                    "conversation's beginning the same way when it goes on"
                )
            examples.append(_encoded(ids, list(spans.values()), self.tokenizer))
            left = [turn for turn in left if turn not in spans]
        yield from reversed(examples)

    def _ids(self, chat: Chat, count: int, *, begin_turn: bool = False) -> list[int]:
        """The ids of the first `count` messages, as the engine would be given them."""
        return self.tokenizer.encode_chat(
            chat.messages[:count],
            tools=chat.tools,
            add_generation_prompt=begin_turn,
            chat_template=self.chat_template,
        )

    def _span(self, chat: Chat, turn: int, ids: list[int]) -> tuple[int, int] | None:
        """Where this turn's own tokens stand in `ids`, up to its end token; None if the template rewrote the past."""
        through = self._ids(chat, turn + 1)
        end = self._prefix(through[: behind_end_token(self.tokenizer, through)], ids)
        if end is None:
            return None
        if turn == 0:  # a greeting: there is no question that it answers, so nothing of it is learned
            return 0, 0
        before = self._ids(chat, turn, begin_turn=True)
        start = self._prefix(before, ids)
        if start is None:
            # the template begins a turn with more than a finished one has; what it wrote before must still stand
            settled = self._prefix(self._ids(chat, turn), ids)
            start = _common(before, ids)
            if settled is None or start < settled:
                return None
        return start, end

    def _prefix(self, begun: list[int], ids: list[int]) -> int | None:
        """How many ids of `begun` open `ids`; None if `begun` is another text. The last ones may be cut otherwise,
        as where an answer's first letters join with the space before it."""
        same = _common(begun, ids)
        rest = b"".join(map(self.tokenizer.token_bytes, begun[same:]))
        if not rest:
            return same
        follows = b"".join(map(self.tokenizer.token_bytes, ids[same : same + len(rest)]))
        return same if follows.startswith(rest) else None


def behind_end_token(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """Where a rendered turn's first closing end token ends. Generation stops at it: the newline, or the second end
    token, that templates write behind it is never generated. All of `ids` if the turn has no end token."""
    stop = len(ids)
    for place in range(len(ids) - 1, -1, -1):
        if ids[place] in tokenizer.eos_token_ids:
            stop = place + 1
        elif tokenizer.token_bytes(ids[place]).strip():
            break
    return stop


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _encoded(ids: list[int], spans: list[tuple[int, int]], tokenizer: Tokenizer) -> Encoded:
    learned = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        learned[start:end] = True
    last = max((end for start, end in spans if end > start), default=0)
    return Encoded(np.array(ids, dtype=np.int64), learned, last > 0 and ids[last - 1] in tokenizer.eos_token_ids)
