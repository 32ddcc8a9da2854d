"""What a model is asked for a row: the prompt, before it examples drawn by a seed, as a text or as a chat.

As a text: the system message, the examples and the prompt, a blank line between them; an answer follows its prompt
after the task's delimiter (lm-eval's form). As a chat: a system message, and a turn of either side for each example.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.evals.subject import Ask
from tokenmill.evals.tasks.task import Item, Task, TaskConfig
from tokenmill.text.tool_prompt import with_hermes_tools

BETWEEN = "\n\n"


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@cache
def _template(source: str) -> Any:
    from jinja2 import TemplateError

    try:
        return _environment().from_string(source)
    except TemplateError as error:
        raise ConfigError(f"the template {source!r}: {error}") from None


def filled(source: str, item: Item) -> str:
    """A template over the row's fields. ConfigError where it asks for a field that the row lacks."""
    from jinja2 import TemplateError

    try:
        return str(_template(source).render(**item.fields))
    except TemplateError as error:
        raise ConfigError(f"row {item.id}: the template {source!r}: {error}") from None


def choices_of(config: TaskConfig, item: Item) -> list[str]:
    """The texts to choose from, two at least."""
    if config.choices is not None:
        texts = [filled(one, item) for one in config.choices]
    else:
        given = item.fields.get("choices")
        texts = [str(one) for one in given] if isinstance(given, list) else []
    if len(texts) < 2 or not all(texts):
        raise ConfigError(f"row {item.id}: a choice is between two texts or more; its choices are {texts}")
    return texts


def answers_of(config: TaskConfig, item: Item) -> list[str]:
    """The texts that are right, the one that examples show first."""
    if config.answer is not None:
        return [filled(config.answer, item)]
    given = item.fields.get("answer")
    if config.kind == "choice" and isinstance(given, int) and not isinstance(given, bool):
        choices = choices_of(config, item)
        if not 0 <= given < len(choices):
            raise ConfigError(f"row {item.id}: answer {given} is the number of no choice (0 to {len(choices) - 1})")
        return [choices[given]]
    texts = [str(one) for one in given] if isinstance(given, list) else [] if given is None else [str(given)]
    if not texts:
        raise ConfigError(f"row {item.id} has no answer")
    return texts


def right_choice(config: TaskConfig, item: Item) -> int:
    """The number of the right choice."""
    choices, right = choices_of(config, item), answers_of(config, item)[0]
    if right not in choices:
        raise ConfigError(f"row {item.id}: the answer {right!r} is none of the choices {choices}")
    return choices.index(right)


def ask_of(task: Task, item: Item, *, shots: int, seed: int, chat: bool) -> Ask:
    """What the model is asked for one row."""
    config = task.config
    source = config.chat_prompt if chat and config.chat_prompt is not None else config.prompt
    examples = _examples(task, item, shots, seed)
    prompt = filled(source, item)
    tools = tuple(item.fields.get("tools") or ())
    if not chat:
        shown = [filled(source, one) + config.delimiter + _shown_answer(config, one) for one in examples]
        system = with_hermes_tools(config.system, tools) if tools else config.system
        return Ask(text=BETWEEN.join([*([system] if system else []), *shown, prompt]), tools=tools)
    turns: list[Mapping[str, Any]] = [{"role": "system", "content": config.system}] if config.system else []
    for one in examples:
        turns.append({"role": "user", "content": filled(source, one)})
        turns.append({"role": "assistant", "content": _shown_answer(config, one)})
    return Ask(messages=(*turns, {"role": "user", "content": prompt}), tools=tools)


def _shown_answer(config: TaskConfig, item: Item) -> str:
    return answers_of(config, item)[0]


def _examples(task: Task, item: Item, shots: int, seed: int) -> Sequence[Item]:
    """Drawn for each row anew, by the seed and the row's id, so that a part of the rows gets the same ones. Never the
    row itself, nor one that asks the same."""
    if shots == 0:
        return []
    if task.config.kind not in ("choice", "write"):
        raise ConfigError(f"{task.config.name}: a task of the kind {task.config.kind} takes no examples (shots 0)")
    asked = filled(task.config.prompt, item)
    pool = [one for one in task.shot_pool if one is not item and filled(task.config.prompt, one) != asked]
    if len(pool) < shots:
        raise ConfigError(f"{task.config.name}: {shots} examples are wanted, there are {len(pool)} rows to draw from")
    return random.Random(f"{seed} {task.config.name} {item.id}").sample(pool, shots)
