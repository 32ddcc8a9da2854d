"""Every error that a person can cause, one small tree.

The command line prints such an error without a traceback and exits with its ``exit_status``; a server turns it into
a 4xx. Whatever is raised outside this tree is a bug of ours. A message says what was given, what is allowed and what
to do.

The exit status follows one rule in every command, and a class here says on which side of it an error is. 2: what was
typed is wrong as it stands, which nothing but other words can mend: an option, a value, a name outside the grammar, a
file or folder that is not there, a recipe or a Modelfile with a mistake in it. 1: it failed at work, and that includes
a model that is neither on this machine nor where it would come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class TokenmillError(Exception):
    """Base of all errors that are for the person, not for the developer."""

    exit_status = 1


class UsageError(TokenmillError, ValueError):
    """The request itself is wrong: an unknown option, a value out of range, two flags that exclude each other."""

    exit_status = 2


class ConfigError(TokenmillError, ValueError):
    """A model's or a recipe's configuration has a key or value that is not understood or not possible."""


class RecipeError(ConfigError, UsageError):
    """A recipe that was asked for, its file or what the command line adds, has such a key or value."""


class FormatError(TokenmillError, ValueError):
    """A file is broken or not what it claims to be. Names the file and the place in it."""

    def __init__(self, path: Path | str, where: str, problem: str) -> None:
        self.path, self.where, self.problem = str(path), where, problem
        super().__init__(f"{path}: {where}: {problem}" if where else f"{path}: {problem}")


class ModelfileError(FormatError):
    """A Modelfile that was asked for has mistakes in it."""

    exit_status = 2


class StoreError(TokenmillError):
    """The store on this machine cannot do what was asked (locked, corrupt, a name that it does not take)."""


class BadNameError(StoreError):
    """What was given as a model's name is outside the grammar, so that no model can have it."""

    exit_status = 2


class NotFoundError(StoreError, LookupError):
    """No such model, file or revision."""


class MissingFileError(NotFoundError):
    """A file or folder that was named is not there, or nothing of what is looked for is in it."""

    exit_status = 2


class UnknownNameError(NotFoundError, UsageError):
    """A name that is none of the few there are: of a recipe, a task, a GPU of the catalog."""


class NetworkError(TokenmillError):
    """A download or upload failed in a way that trying again may mend."""


class DigestError(StoreError):
    """What arrived is not what was promised: a sha256 differs."""


class TemplateError(TokenmillError, ValueError):
    """A chat template is broken, refuses the conversation, or ran past its limits."""


class OutOfContextError(UsageError):
    """A prompt (plus what it may generate) does not fit the model's context."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when one of `known` is close to `word`, else the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
