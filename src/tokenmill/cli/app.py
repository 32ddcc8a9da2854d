"""The entry point: a table of verbs, each imported when it is called, and the mapping of errors to exit statuses.

``tokenmill --help`` has to answer within 0.3 s and import no torch, so the top level knows of a verb only its module
and one line of help. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. A mistake of the person's is one
message on stderr; ``--debug``, before or after the verb, shows the traceback too.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import tokenmill
from tokenmill.core.errors import MissingFileError, TokenmillError
from tokenmill.core.log import setup_logging
from tokenmill.core.threads import bind_threads

# verb: (module, one line of help). Order is the order of `--help`: get a model, look at it, use it, shape it, measure.
VERBS: dict[str, tuple[str, str]] = {
    "pull": ("tokenmill.cli.pull", "Get a model: from the catalog, a hub, a registry, a URL or a path."),
    "list": ("tokenmill.cli.list", "List the models on this machine."),
    "show": ("tokenmill.cli.show", "Show what a model is: size, context, template, licence, origin."),
    "run": ("tokenmill.cli.run", "Chat with a model, or answer one prompt."),
    "serve": ("tokenmill.cli.serve", "Serve models over HTTP: OpenAI's, Ollama's and Anthropic's protocols."),
    "ps": ("tokenmill.cli.ps", "List the models that a running server has in memory."),
    "stop": ("tokenmill.cli.stop", "Take a model out of a running server's memory."),
    "create": ("tokenmill.cli.create", "Make a model from a Modelfile."),
    "cp": ("tokenmill.cli.cp", "Give a model a second name."),
    "rm": ("tokenmill.cli.rm", "Remove models from this machine."),
    "push": ("tokenmill.cli.push", "Send a model to a registry."),
    "merge": ("tokenmill.cli.merge", "Fold adapters into a model and write it as a folder."),
    "export": ("tokenmill.cli.export", "Write a model for other programs: GGUF, Ollama, Hugging Face, vLLM."),
    "quantize": ("tokenmill.cli.quantize", "Make a model small: GPTQ, AWQ, INT8, FP8, NF4; with a report."),
    "prune": ("tokenmill.cli.prune", "Take weights, layers or widths out of a model."),
    "train": ("tokenmill.cli.train", "Train a model by a recipe: pretrain, sft, lora …"),
    "label": ("tokenmill.cli.label", "Compare answers in a browser: preferences to train on."),
    "data": ("tokenmill.cli.data", "Look at training data as the model will see it."),
    "tokenizer": ("tokenmill.cli.tokenizer", "Train and compare tokenizers; write token shards."),
    "eval": ("tokenmill.cli.eval", "Measure a model."),
    "bench": ("tokenmill.cli.bench", "Measure speed on this machine."),
    "plan": ("tokenmill.cli.plan", "Plan before paying: memory, speed, cost, choice."),
    "doctor": ("tokenmill.cli.doctor", "Say what this machine has and what to do about what is missing."),
}
ALIASES = {"ls": "list"}

EPILOG = """\b
Examples:
  tokenmill run smollm2:135m "What is the capital of France?"
  tokenmill pull hf:HuggingFaceTB/SmolLM2-135M-Instruct
"""


class LazyGroup(TyperGroup):
    """A group that lists its verbs from the table and imports a verb's module only to run it or to show its help."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = {verb: TyperCommand(verb, help=line) for verb, (_, line) in VERBS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """typer's own resolution (with its "Did you mean"), then the stand-in replaced by the real command."""
        verb, command, rest = super().resolve_command(ctx, [ALIASES.get(args[0], args[0]), *args[1:]])
        return verb, load_verb(verb) if command is not None and verb is not None else command, rest


def load_verb(verb: str) -> Any:
    """The command object of `verb`. Its module holds a ``typer.Typer`` named ``app``."""
    command = typer.main.get_command(importlib.import_module(VERBS[verb][0]).app)
    command.name = verb
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenmill {tokenmill.__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Allowed after a verb too.")
    ] = False,
) -> None:
    """tokenmill takes a language model through its whole life on hardware you control."""


def command() -> Any:
    """The whole command line as one command object; its help is plain text, which is quick to load and pipes well."""
    top = typer.Typer(
        cls=LazyGroup, no_args_is_help=True, add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    top.callback(epilog=EPILOG)(_top)
    return typer.main.get_command(top)


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out wherever it stands before ``--``, so that no verb needs a flag of its own for it."""
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [word for word in argv[:end] if word != "--debug"]
    return flags + list(argv[end:]), len(flags) < end


def _run(argv: list[str]) -> int:
    """Run the verb; errors of typer's parser (wrong usage) are shown as it shows them."""
    try:
        status = command().main(argv, prog_name="tokenmill", standalone_mode=False)
    except typer.TyperException as error:
        if hasattr(error, "show"):
            error.show()
        return error.exit_code
    except typer.Abort:  # end of input at a question
        return 1
    return status if isinstance(status, int) else 0


def _said(error: TokenmillError | OSError) -> str:
    """What went wrong; the system's errors without their numbers, the file first."""
    if isinstance(error, TokenmillError) or not isinstance(error.strerror, str):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _status(error: OSError, words: Sequence[str]) -> int:
    """Of an error of the system's: 2 where a path that was typed leads to no file, as for MissingFileError; else 1."""
    named = str(error.filename)
    typed = any(word == named or word.endswith(f"={named}") for word in words)
    wrong = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
    return MissingFileError.exit_status if wrong and typed else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. ``argv`` excludes the program's name."""
    words, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no "…" gets a "?", not an error
            stream.reconfigure(errors="replace")
    try:
        setup_logging("DEBUG" if debug else None)
        bind_threads()
        status = _run(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader (`| head`) has what it wanted; Python's flush at exit must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TokenmillError, OSError) as error:
        if debug:
            raise
        print(f"Error: {_said(error)}", file=sys.stderr)
        return error.exit_status if isinstance(error, TokenmillError) else _status(error, words)
    except Exception as error:
        if debug:
            raise
        print(f"Error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print("This is a bug in tokenmill. Run the same command with --debug to see where.", file=sys.stderr)
        return 1
