"""One tokenizer class for every kind: byte-level BPE, SentencePiece, WordPiece, Unigram.

It wraps the tokenizers library's object (all loaders of this package end in one) and adds what serving needs: text in
which control tokens are only text, the bytes of each token, the ids that end a generation, the chat template. Encoding
is the library's; decoding is this package's own (see `StreamingDetokenizer`), so that streamed and whole text agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from tokenmill.core.errors import FormatError, TemplateError
from tokenmill.core.paths import atomic_write
from tokenmill.text.backend import check_growth, library_errors, plain_twin, state_of
from tokenmill.text.chat_template import ChatTemplate
from tokenmill.text.detokenizer import StreamingDetokenizer
from tokenmill.text.foreign import Foreign
from tokenmill.text.pieces import pieces_of
from tokenmill.text.special import end_token_ids

TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: the library's tokenizer; truncation and padding are switched off.
        origin: the file it comes from, for error messages.
        names: transformers' names of special tokens (``bos_token`` …) → their text.
        end_ids: ids that the files declare to end a generation; those known by name are added.
        chat_templates: Jinja sources by name; ``default`` and ``tool_use`` have a meaning.
        settings: further ``tokenizer_config.json`` entries that `save` writes back (``model_max_length`` …).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        origin: Path | str,
        names: Mapping[str, str] | None = None,
        end_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._origin = backend, str(origin)
        self._settings = dict(settings or {})
        self.special_tokens = {name: text for name, text in (names or {}).items() if text is not None}
        self.chat_templates = dict(chat_templates or {})
        if bad := [name for name in self.chat_templates if not TEMPLATE_NAME.fullmatch(name)]:
            raise FormatError(origin, "chat_template", f"name {bad[0]!r} may have only letters, digits, _ and -")
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = max([backend.get_vocab_size(with_added_tokens=True), *(n + 1 for n in added)])
        self.bos_token_id = self._named("bos_token")
        self.eos_token_id = self._named("eos_token")
        self.unk_token_id = self._named("unk_token")
        self.pad_token_id = self._named("pad_token")
        declared = [*end_ids, *([] if self.eos_token_id is None else [self.eos_token_id])]
        self.eos_token_ids = end_token_ids({added[n].content: n for n in self.special_ids}, declared)
        for where in ("normalizer", "decoder"):
            check_growth(state_of(getattr(backend, where)), self._origin, where)
        pieces = pieces_of(state_of(backend.decoder), self._origin)
        self._share, self.leading_spaces = pieces.share, pieces.strip
        self._templates: dict[str, ChatTemplate] = {}

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that a chat without tools uses, if the model brought one."""
        return self.chat_templates.get("default")

    @cached_property
    def fingerprint(self) -> str:
        """Names everything that ids and rendered chats follow from: two tokenizers that share it encode alike."""
        parts = [self._backend.to_str(), self.special_tokens, sorted(self.eos_token_ids), self.chat_templates]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def vocabulary_hash(self) -> str:
        """Names everything that the ids of a text and its end follow from; chat templates are no part of it."""
        parts = [json.loads(self._backend.to_str()), self.special_tokens, sorted(self.eos_token_ids)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`.

        Args:
            add_special_tokens: put BOS, EOS, [CLS] … where the model's own tokenizer puts them.
            parse_special: whether control tokens spelled in `text` become those tokens. False for text from
                strangers: ``<|im_end|>`` is then six ordinary tokens. Added tokens that are not special (``<think>``)
                stay whole either way.
        """
        backend = self._backend if parse_special else self._plain
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, which JSON can carry: no tokenizer has bytes for them
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        with library_errors(self._origin, "encode"):
            return backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD. Ids outside the vocabulary give nothing."""
        stream = StreamingDetokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join([*(stream.push(token_id) for token_id in ids), stream.flush()])

    def share(self, token_id: int, *, first: bool) -> bytes | None:
        """What a token adds to the text, `first` in it or not; None for an id outside the vocabulary."""
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        return None if token is None else self._share(token, first)

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token inside a text (``▁`` is a space, ``##ing`` is ``ing``, ``<0x0A>`` a newline)."""
        return self.share(token_id, first=False) or b""

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self._backend.token_to_id(token)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as the model wants to read it, as text with its control tokens spelled.

        Encode it with ``add_special_tokens=False``: templates write BOS themselves.

        Args:
            continue_final_message: leave the last message open, for the model to go on with it (then
                `add_generation_prompt` must be False).
            chat_template: the name of one of the model's templates, or Jinja source; default: the model's own.
            variables: whatever the template knows (``documents``, ``enable_thinking``, ``date_string`` …).

        Raises:
            TemplateError: no template, a broken one, one that refuses the conversation or runs past its limits.
        """
        return self._template(chat_template, with_tools=tools is not None).render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            # a template that writes a token this vocabulary lacks writes nothing, as in llama.cpp
            variables={"bos_token": "", "eos_token": "", **self.special_tokens, **variables},
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> list[int]:
        """`render_chat` (same `options`) and `encode` in one, where a control token counts only if the *template*
        wrote it.

        The same ids as encoding the rendered text, unless a message spells a control token: there that spelling
        stays ordinary text, so nobody can close their own turn and speak as another role.
        """
        foreign = Foreign([token.content for token in self._special_tokens().values()])
        ours = {name: options.pop(name) for name in ("chat_template",) if name in options}
        text = self.render_chat(
            foreign.marked(messages), tools=foreign.marked(tools), **foreign.marked(options), **ours
        )
        if not foreign.found:
            return self.encode(text, add_special_tokens=False)
        ids: list[int] = []
        for part, is_token in foreign.split(text):
            token_id = self.token_to_id(part) if is_token else None
            ids += self.encode(part, add_special_tokens=False, parse_special=False) if token_id is None else [token_id]
        return ids

    def with_tokens(self, texts: Iterable[str]) -> Tokenizer:
        """The same with these texts as tokens of their own, behind the vocabulary; those it has already stay as is."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        # one that is there already would be cut out of longer words from now on
        new = [text for text in texts if backend.token_to_id(text) is None]
        backend.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in new])
        return Tokenizer(
            backend,
            origin=self._origin,
            names=self.special_tokens,
            end_ids=self.eos_token_ids,
            chat_templates=self.chat_templates,
            settings=self._settings,
        )

    def state(self) -> dict[str, Any]:
        """What a ``tokenizer.json`` would hold."""
        return dict(json.loads(self._backend.to_str()))

    def backend(self) -> tokenizers.Tokenizer:
        """The library's object, to look at; changing it changes this tokenizer."""
        return self._backend

    def save(self, folder: Path) -> None:
        """Write a folder that transformers and this package load: tokenizer, its configuration, chat templates.
        Templates of another tokenizer that was there before go."""
        folder = Path(folder)
        config = {
            **self._settings,
            **self.special_tokens,
            # the generic class: transformers' own classes rebuild parts of the tokenizer from their name alone
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        files = {
            "tokenizer.json": self._backend.to_str(pretty=False),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n",
        }
        for name, source in self.chat_templates.items():
            files["chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"] = source
        for name, text in files.items():
            with atomic_write(folder / name) as file:
                file.write(text.encode())
        for old in (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")):
            if old.relative_to(folder).as_posix() not in files:
                old.unlink(missing_ok=True)

    def _named(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        if token is None:
            return None
        if (token_id := self._backend.token_to_id(token)) is None:
            raise FormatError(self._origin, name, f"{token!r} is not in the vocabulary")
        return token_id

    def _special_tokens(self) -> dict[int, tokenizers.AddedToken]:
        return {n: token for n, token in self._backend.get_added_tokens_decoder().items() if token.special}

    def _template(self, asked: str | None, *, with_tools: bool) -> ChatTemplate:
        known = self.chat_templates
        if asked is None:
            asked = "tool_use" if with_tools and "tool_use" in known else "default"
            if asked not in known:
                names = f"it has only {', '.join(sorted(known))}: name one with chat_template=" if known else (
                    "give one: chat_template= (Jinja source), or TEMPLATE in a Modelfile"
                )  # fmt: skip
                raise TemplateError(f"{self._origin}: this model brings no chat template; {names}")
        source = known.get(asked, asked)
        if source not in self._templates:
            self._templates = {**self._templates, source: ChatTemplate(source)}
        return self._templates[source]

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return plain_twin(self._backend, self._origin, self.unk_token_id)
