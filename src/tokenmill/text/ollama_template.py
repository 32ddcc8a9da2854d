"""A Go template that does for Ollama what a model's Jinja template does, where one of a few well-known forms does.

Ollama cannot run Jinja. Of the forms here the one is taken that renders probe chats to the same text as the model's own
template; there is no guessing by names, and a template that none of them equals is left out. The forms are ChatML,
Llama 3's, Gemma's and Mistral's turns, each with and without the text that a model puts where no system message is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenmill.core.errors import TemplateError, TokenmillError
from tokenmill.text.go_template import GoTemplate
from tokenmill.text.tokenizer import Tokenizer

_TURNS = "{{ range .Messages }}%s{{ end }}%s"
_CHATML = _TURNS % ("<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n", "<|im_start|>assistant\n")
_LLAMA3 = _TURNS % (
    "<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
_GEMMA = _TURNS % (
    '<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}\n{{ .Content }}<end_of_turn>\n',
    "<start_of_turn>model\n",
)
_MISTRAL = _TURNS % (
    '{{ if eq .Role "user" }}[INST] {{ .Content }} [/INST]{{ else }} {{ .Content }}</s>{{ end }}',
    "",
)
FORMS = (_CHATML, _LLAMA3, _GEMMA, _MISTRAL)
_USER, _ANSWER = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}
_SYSTEM = {"role": "system", "content": "Three."}
_WITH_SYSTEM = [_SYSTEM, _USER]
_CHATS: list[list[dict[str, Any]]] = [[_USER], [_USER, _ANSWER, _USER], _WITH_SYSTEM]


def go_template_of(tokenizer: Tokenizer) -> str | None:
    """Go source that renders as the model's own template does, BOS aside, which Ollama adds; None if no form does."""
    if tokenizer.chat_template is None:
        return None
    try:
        wanted = [_rendered(tokenizer, chat) for chat in _CHATS]
    except TokenmillError:  # such as one that takes no system message: Ollama would send one all the same
        return None
    return next((source for source in _candidates(wanted) if _renders(source, wanted)), None)


def _rendered(tokenizer: Tokenizer, chat: list[dict[str, Any]]) -> str:
    text = tokenizer.render_chat(chat)
    return text.removeprefix(tokenizer.special_tokens.get("bos_token", "")) if _begins(tokenizer, text) else text


def _begins(tokenizer: Tokenizer, text: str) -> bool:
    """Whether BOS stands before the whole text, and is not the first turn's own opening."""
    bos = tokenizer.special_tokens.get("bos_token", "")
    return bool(bos) and text.startswith(bos) and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]


def _candidates(wanted: list[str]) -> Iterator[str]:
    """The forms, then each with what the model's template says first where no system message is given."""
    for form in FORMS:
        yield form
        plain = _go(form, _CHATS[0])
        if plain is not None and wanted[0].endswith(plain) and "{{" not in wanted[0]:
            extra = wanted[0].removesuffix(plain)
            yield '{{ if ne (index .Messages 0).Role "system" }}' + extra + "{{ end }}" + form


def _renders(source: str, wanted: list[str]) -> bool:
    return all(_go(source, chat) == text for chat, text in zip(_CHATS, wanted, strict=True))


def _go(source: str, chat: list[dict[str, Any]]) -> str | None:
    try:
        return GoTemplate(source).render_chat(chat)
    except TemplateError:
        return None
