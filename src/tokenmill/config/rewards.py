"""The parts of a recipe that say what is rewarded and what would be a sign of cheating.

``rewards`` is a list; what a member may say follows from its ``kind``. As everywhere in ``config``: strict, unknown
keys are errors, the text under a field is its documentation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tokenmill.config.parts import Count, Part, Positive, Share


class RewardPart(Part):
    """What all rewards have in common."""

    name: str | None = None
    """As it stands in logs; without it the kind, or the function's name."""
    weight: float = 1.0
    """Its share in the sum that is learned from; may be negative."""
    held_out: bool = False
    """Only measured, never learned from: where the sum rises and this falls, the model learns to cheat (``guards``)."""


class FunctionReward(RewardPart):
    """A Python function of yours, in a process of its own."""

    kind: Literal["function"]
    path: str
    """``FILE.py:function``; it takes a list of samples (``prompt``, ``completion``, ``row`` …) and returns a number
    each, or None."""
    timeout_s: Positive = 10.0
    """Seconds for one call; a call that takes longer is ended, and its samples are tried one by one."""


class NumberReward(RewardPart):
    r"""1 where the answer's number is right: the one in ``\boxed{}``, that behind ``####``, or the last one."""

    kind: Literal["number"]
    column: str = "answer"
    """The rows' column with the right one: a number, or a text whose number is found in the same way."""
    tolerance: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest difference, as a share of the right number."""


class JsonSchemaReward(RewardPart):
    """1 where the answer is JSON of a schema (draft 2020-12), bare or in a code fence."""

    kind: Literal["json_schema"]
    wanted: dict[str, Any] | str
    """The schema, or the name of the rows' column that holds it."""
    json_credit: Share = 0.0
    """What JSON gets that does not fit the schema: something to climb on for a model that writes none."""


class RegexReward(RewardPart):
    """1 where the answer has what a regular expression describes."""

    kind: Literal["regex"]
    pattern: str
    """Rust's syntax, as in structured output: linear in time, without look-around and back-references."""
    whole: bool = False
    """It must describe the whole answer."""


class LengthReward(RewardPart):
    """1 where the answer's length lies within bounds."""

    kind: Literal["length"]
    unit: Literal["tokens", "words", "characters"] = "tokens"
    least: Annotated[int, Field(ge=0)] = 0
    most: Count
    slack: Annotated[int, Field(ge=0)] = 0
    """Outside of the bounds the reward falls in a line to 0 over so many units (DAPO's soft punishment)."""


class FormatReward(RewardPart):
    """1 where the answer is ``<tag>…</tag>`` for each tag, in this order, once, and nothing else; else half of the
    share of tags that are there exactly once."""

    kind: Literal["format"]
    tags: Annotated[list[str], Field(min_length=1)]


class CodeReward(RewardPart):
    """The share of the row's tests that the answer's Python passes, in the sandbox."""

    kind: Literal["code"]
    column: str = "tests"
    """The rows' column with the tests: a text, or a list of texts; each raises where it fails."""
    timeout_s: Positive = 5.0
    memory_mb: Annotated[int, Field(ge=64)] = 512
    concurrency: Count = 2
    """Programs that run at a time."""


class ToolCallReward(RewardPart):
    """1 where the answer calls tools that exist, with arguments that fit; where the row says which calls are
    right, the share of them that is made."""

    kind: Literal["tool_call"]
    tools: str = "tools"
    """The rows' column with the tools on offer, in OpenAI's form; not read where the recipe has tools of its own."""
    calls: str = "calls"
    """The rows' column with the right calls, ``[{"name", "arguments"}]``; rows may lack it."""


class ModelReward(RewardPart):
    """What a reward model says, or several."""

    kind: Literal["model"]
    models: Annotated[list[str], Field(min_length=1)]
    """Names or folders; more than one are an ensemble."""
    voting: Literal["mean", "min", "cautious"] = "mean"
    """How an ensemble agrees: mean, lowest, mean less standard deviation."""


class JudgeReward(RewardPart):
    """What a model behind any server of OpenAI's protocol says, on a scale that becomes 0 to 1."""

    kind: Literal["judge"]
    url: str
    """Up to and with the version, as in ``http://127.0.0.1:11434/v1``."""
    model: str
    rubric: str
    """What is a good answer and what a bad one, for the judge to read."""
    lowest: int = 1
    highest: int = 10
    key_variable: str | None = None
    """The environment variable with the server's key."""
    concurrency: Count = 4
    per_minute: Count | None = None
    timeout_s: Positive = 60.0


RewardSource = Annotated[
    FunctionReward
    | NumberReward
    | JsonSchemaReward
    | RegexReward
    | LengthReward
    | FormatReward
    | CodeReward
    | ToolCallReward
    | ModelReward
    | JudgeReward,
    Field(discriminator="kind"),
]


KINDS: dict[str, type[RewardPart]] = {
    get_args(part.model_fields["kind"].annotation)[0]: part for part in get_args(get_args(RewardSource)[0])
}
"""Every kind of reward."""


class GuardConfig(Part):
    """When a run that is rewarded looks as if it had found a way to cheat, or to fall apart. 0 switches one off."""

    action: Literal["warn", "stop"] = "warn"
    """What an alarm does: an event in log and report, or the end of the run, which other settings can resume."""
    patience: Count = 5
    """Steps in a row before it is one."""
    longer: Annotated[float, Field(ge=0.0)] = 3.0
    """Mean length of answers, as a multiple of that of the first ``patience`` steps."""
    repetition: Share = 0.5
    """Mean share of an answer's 4-grams that are repeats."""
    kl: Annotated[float, Field(ge=0.0)] = 0.0
    """Distance to the reference, nats a token, where the run measures it."""
    entropy: Annotated[float, Field(ge=0.0)] = 0.01
    """Below so many nats a token the policy says only one thing."""
    excluded: Share = 0.5
    """Share of answers that could not be scored."""
    held_out: Annotated[float, Field(ge=0.0)] = 0.1
    """How far a held-out reward may fall below its mean of the first ``patience`` steps while the sum is above its."""
