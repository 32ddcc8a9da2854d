"""The part of a recipe that says which functions a policy may call while it writes, and within which limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tokenmill.config.parts import Count, Part, Positive

BUILT_IN = ("python", "calculator")
"""Tools that come with tokenmill."""


class ToolsConfig(Part):
    """What a policy may call; without ``use`` it writes one answer in one go."""

    use: list[str] = Field(default_factory=list)
    """Functions of yours, ``FILE.py:function`` or ``module:function``, told to the model by signature and docstring,
    and built-in ones: ``python`` (runs a program in the sandbox), ``calculator``. ``tools=calculator`` means this."""
    turns: Annotated[int, Field(ge=2)] = 4
    """How often the model speaks at most; what it calls in its last turn is not run."""
    timeout_s: Positive = 10.0
    """Seconds for one call; one that takes longer is ended, and the model is told so."""
    result_tokens: Count = 256
    """Longest result; what is longer is cut off there."""
    concurrency: Count = 2
    """Calls that run at a time, each in a process of its own."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Of a program of the tool ``python``."""
