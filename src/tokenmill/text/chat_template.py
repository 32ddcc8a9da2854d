"""Chat templates: the Jinja program in a model file that writes a conversation the way the model was taught.

The dialect is transformers' (``apply_chat_template`` of 5.x): trimmed blocks, break and continue, ``tojson`` without
HTML escapes, ``raise_exception``, ``strftime_now``, ``{% generation %}``, ``messages``, ``tools``, ``documents``, the
special tokens by name, any further variable. What the template sees is plain data: mappings, lists, text, numbers. It
runs in `sandbox`, so that a broken or malicious template fails with TemplateError, quickly and in little memory.

Two services that transformers leaves to its callers: content given as a list of text parts is joined for templates that
only know text, and a template that refuses a conversation is quoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.utils import Namespace

from tokenmill.core.errors import TemplateError
from tokenmill.text.budget import CURRENT, Budget, LimitError
from tokenmill.text.sandbox import BoundedEnvironment

MAX_SOURCE = 64 * 1024
"""Characters. The longest templates in use have some 20,000; compiling costs time and memory by length."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
_UNFINISHED = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A compiled template. `source` is its Jinja text; TemplateError if that is broken."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are read")
        self.source = source
        environment = BoundedEnvironment()
        environment.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_Namespace,
        )
        with _template_errors(Budget()):
            self._template = environment.from_string(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text.

        Args:
            messages: ``{"role", "content", …}``; content is text, or a list of ``{"type": "text", "text": …}``.
            tools: JSON schemas of functions, as OpenAI's API takes them.
            add_generation_prompt: end with the beginning of the assistant's turn.
            continue_final_message: leave the last message open, for the model to go on with it.
            variables: whatever else the template knows: special tokens, ``documents`` …

        Raises:
            TemplateError: the template refuses the conversation, fails, or runs past its limits.
        """
        if not messages:
            raise TemplateError("a chat needs at least one message")
        if add_generation_prompt and continue_final_message:
            raise TemplateError("either begin the assistant's turn or continue the last message, not both")
        plain = _Plain()
        with _template_errors(Budget()):
            chat = [_message(plain, message) for message in messages]
            given = {
                "messages": chat,
                "tools": plain(tools),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **{name: plain(value) for name, value in (variables or {}).items()},
            }
        if any(isinstance(message.get("content"), list) for message in chat) and not self.takes_parts:
            for message in chat:
                message["content"] = _joined(message.get("content", ""))
        if continue_final_message:
            return self._unfinished(given, chat[-1], plain)
        return self._run(given, Budget.for_input(plain.chars, plain.items))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template reads content that is a list of parts; found out by trying."""
        probe = "only a probe"
        message = {"role": "user", "content": [{"type": "text", "text": probe}]}
        names = {"bos_token": "", "eos_token": "", "tools": None, "documents": None, "add_generation_prompt": False}
        try:
            text = self._run({"messages": [message], **names}, Budget())
        except TemplateError:
            return False
        return probe in text and "'type'" not in text and '"type"' not in text  # not the list printed as it is

    def _run(self, given: dict[str, Any], budget: Budget) -> str:
        with _template_errors(budget):
            return self._template.render(given)

    def _unfinished(self, given: dict[str, Any], last: dict[str, Any], plain: _Plain) -> str:
        """Render with a tag after the last message, and cut there."""
        content = last.get("content")
        if isinstance(content, list):
            texts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            if not texts:
                raise TemplateError("the last message has no text to continue")
            texts[-1]["text"] += _UNFINISHED
        elif isinstance(content, str):
            last["content"] = content + _UNFINISHED
        else:
            raise TemplateError("the last message has no content to continue")
        text = self._run(given, Budget.for_input(plain.chars, plain.items))
        at = text.rfind(_UNFINISHED.strip())
        if at < 0:
            raise TemplateError("the template drops the end of the last message, so it cannot be continued")
        if text[at : at + len(_UNFINISHED)] == _UNFINISHED:
            return text[:at]
        return text[:at].rstrip()  # the template trims messages


@contextmanager
def _template_errors(budget: Budget) -> Any:
    """Run with `budget`; everything that a template can raise becomes a TemplateError."""
    token = CURRENT.set(budget)
    try:
        yield
    except (TemplateError, KeyboardInterrupt):
        raise
    except _RefusedError as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from error
    except LimitError as error:
        raise TemplateError(f"the chat template runs past its limits: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is broken, line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError) as error:
        raise TemplateError(f"the chat template runs past its limits: {type(error).__name__}") from error
    except Exception as error:  # a template is a program: it can raise whatever Python's operators and methods raise
        raise TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
    finally:
        CURRENT.reset(token)


class _RefusedError(Exception):
    """``raise_exception`` was called."""


def _raise_exception(message: Any) -> NoReturn:
    raise _RefusedError(str(message)[:2000])


def _strftime_now(format: str) -> str:
    CURRENT.get().allow(len(format) * 32)
    if any(char.isdigit() for char in format):  # %999999999d: the C library would pad
        raise LimitError("it prints a field of a given width")
    return datetime.now().strftime(format)


class _Dict:
    """``dict(…)`` without the type itself, through which the sandbox could be left."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(CURRENT.get().ticking(keys), value)


class _Namespace(Namespace):
    """``namespace(…)``: no private attributes, and printed without what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    def __repr__(self) -> str:
        return "<namespace>"


class _Plain:
    """Rebuilds values out of plain data (a template has no business with richer objects), and sums up their size."""

    def __init__(self) -> None:
        self.chars = self.items = 0

    def __call__(self, value: Any) -> Any:
        self.items += 1
        if isinstance(value, str):
            self.chars += len(value)
            return str.__str__(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, Mapping):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item) for item in value]
        raise TemplateError(f"chat templates read text, numbers, lists and mappings, not {type(value).__name__}")


def _message(plain: _Plain, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(f"a chat message is a mapping with role and content, not {type(message).__name__}")
    # as transformers: a missing key is what templates expect where APIs write null
    data: dict[str, Any] = plain({key: value for key, value in message.items() if value is not None})
    for name in _REASONING:
        if data.get(name) is not None:
            return {"thinking": data[name], **data, "reasoning_content": data[name]}
    return data


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise TemplateError(f"this model's chat template takes text only, not a part of type {kind!r}")
        texts.append(part["text"])
    return "\n".join(texts)
