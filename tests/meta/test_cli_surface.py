"""The command line is a promise: a verb or flag that comes, goes or changes shows up in review as a change of
``cli_surface.txt``. After a wanted change, write the file anew:

    python tests/meta/test_cli_surface.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenmill.cli.app import VERBS, load_verb

SNAPSHOT = Path(__file__).with_name("cli_surface.txt")


def leaves() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name: ``pull``, ``eval ppl``, ``data classifier train``."""
    for verb in VERBS:
        yield from below(verb, load_verb(verb))


def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield name, command
    else:
        for word, subcommand in subcommands.items():
            yield from below(f"{name} {word}", subcommand)


def surface() -> str:
    lines = []
    for name, command in leaves():
        for param in command.params:
            kind = "flag" if getattr(param, "is_flag", False) else param.bare_type()
            marks = "".join(f" {mark}" for mark in ("required", "multiple") if getattr(param, mark, False))
            lines.append(f"{name} {' '.join([*param.opts, *param.secondary_opts])} : {kind}{marks}")
    return "\n".join(lines) + "\n"


def test_surface_is_as_promised() -> None:
    assert surface() == SNAPSHOT.read_text(encoding="utf-8"), (
        "the command line changed; if that is meant, run: python tests/meta/test_cli_surface.py"
    )


@pytest.mark.parametrize(("name", "command"), list(leaves()), ids=[name for name, _ in leaves()])
def test_every_command_keeps_the_house_promise(name: str, command: Any) -> None:
    assert "--json" in {option for param in command.params for option in param.opts}
    assert command.help, "a command says what it does"
    assert f"tokenmill {name}" in (command.epilog or ""), "a command's help shows an example of it"
    assert all(param.help for param in command.params), "every argument and flag says what it means"


if __name__ == "__main__":
    SNAPSHOT.write_text(surface(), encoding="utf-8")
