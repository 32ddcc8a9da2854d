"""``tokenmill run``: a chat on a terminal, one answer for a prompt, a filter in a pipe.

A running server is asked where it has the model (see ``served``). Otherwise the model runs here; torch takes most of
the time to the first token then, so its import starts in a thread of its own while the model is found and its tokenizer
is built.
"""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tokenmill.cli.answer import ask, settings_of, speaks_chat, told_end
from tokenmill.cli.output import Json, PullProgress, emit, note, verb, waiting
from tokenmill.cli.repl.session import Session
from tokenmill.cli.repl.wrap import WordWrap
from tokenmill.cli.served import find
from tokenmill.core.errors import UsageError
from tokenmill.core.terminal import clean

if TYPE_CHECKING:
    from tokenmill import LLM
    from tokenmill.cli.served import ServedModel

app = verb()

EPILOG = """\b
Examples:
  tokenmill run smollm2:135m
  tokenmill run smollm2:135m "What is the capital of France?" --temperature 0
  cat notes.txt | tokenmill run smollm2:135m "Summarise this:" --max-tokens 100
  tokenmill run smollm2:135m "Three colours, as JSON" --format json
"""


@app.command(epilog=EPILOG)
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model; pulled when it is missing.")],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to answer; else standard input, or a chat."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, instead of the model's own.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 always takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Pick from the likeliest that sum to p.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Pick from the k likeliest; 0: all.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="Drop what is below p times the likeliest.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens in an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    format: Annotated[
        str | None, typer.Option(metavar="json|SCHEMA", help="Answer in JSON: any, or by a JSON schema (text or file).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print durations and rates to stderr.")] = False,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An adapter to put on it, PEFT or GGUF; may be repeated.")
    ] = None,
    ctx_size: Annotated[int | None, typer.Option(min=1, help="Context in tokens; by default the model's own.")] = None,
    nowordwrap: Annotated[bool, typer.Option("--nowordwrap", help="Do not wrap words on a terminal.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same logits to the last bit, whatever runs beside; slower.")
    ] = False,
    kv_cache_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        typer.Option("--kv-cache-dtype", help="How keys and values are kept; int8 halves bf16's memory."),
    ] = "auto",
    local: Annotated[bool, typer.Option("--local", help="Run here, even if a server is running.")] = False,
    as_json: Json = False,
) -> None:
    """Chat with a model, or answer one prompt. Standard input is the prompt, or follows the prompt given."""
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "num_predict": max_tokens,
        "seed": seed,
        "stop": stop or None,
        "num_ctx": ctx_size,
    }
    session = Session(
        model=name,
        system=system,
        options={key: value for key, value in given.items() if value is not None},
        format=parse_format(format),
        verbose=verbose,
        wordwrap=not nowordwrap,
        adapters=adapter or [],
        local=local,
        deterministic=deterministic,
        kv_cache_dtype=kv_cache_dtype,
    )
    text = full_prompt(" ".join(prompt) if prompt is not None else None)
    if text is not None:
        _one_shot(session, text, as_json)
    elif as_json:
        raise UsageError("--json needs a prompt: a chat has no one answer")
    else:
        _chat(session)


def parse_format(value: str | None) -> str | dict[str, Any] | None:
    """``json``, a JSON schema as text, or the path of a file with one."""
    if value is None or value == "json":
        return value
    text = value
    if not value.lstrip().startswith("{"):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"--format takes json, a JSON schema, or a file with one, not {value!r}") from None
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--format: the schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--format: a JSON schema is an object, not {schema!r}")
    return schema


def full_prompt(given: str | None) -> str | None:
    """The prompt: what was given, then standard input where it is piped. None when a person sits at the terminal."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else _read_stdin()
    parts = [part for part in (given, piped) if part and part.strip()]
    if parts:
        return "\n\n".join(parts)
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        return None
    raise UsageError("the prompt is empty: give a PROMPT or pipe text into standard input")


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: byte {error.start} cannot be read") from None


def _import_ahead() -> None:
    """Start `import torch` now; whoever needs it next waits for the import lock instead of starting from nothing.

    The garbage collector rests until the model is loaded: all that the imports make stays, and looking through it again
    and again took a quarter of a second of two.
    """
    gc.disable()
    threading.Thread(target=importlib.import_module, args=("torch",), daemon=True, name="import torch").start()


def open_model(session: Session) -> LLM | ServedModel:
    """What the session names: on a running server, or loaded here, pulled when it is missing."""
    if not session.local and (served := find(session)) is not None:
        return served
    _import_ahead()
    try:
        with waiting(f"loading {session.model}"), PullProgress() as progress:
            from tokenmill import LLM

            return LLM(
                session.model,
                adapter=session.adapters,
                ctx_size=session.ctx_size,
                deterministic=session.deterministic,
                kv_cache_dtype=session.kv_cache_dtype,
                progress=progress,
            )
    finally:
        gc.enable()


def _one_shot(session: Session, text: str, as_json: bool) -> None:
    begin = time.perf_counter()
    llm = open_model(session)
    session.adopt(llm.files)
    session.messages.append({"role": "user", "content": text})
    load_s = time.perf_counter() - begin
    params = settings_of(llm, session.options)
    prompt = session.prompt() if speaks_chat(llm) else session.plain_prompt(llm.files)
    write, flush = (_quiet, _quiet) if as_json else _writer(session.wordwrap)
    answer = ask(llm, prompt, params, write, format=session.format, load_s=load_s)
    flush("" if answer.text.endswith("\n") else "\n")
    emit(answer.document(session.model), as_json, "")
    if (end := told_end(answer, params)) is not None:
        note(end)
    if session.verbose:
        note(answer.figures())


def _writer(wordwrap: bool) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """How pieces are written and how the text is ended: a pipe gets the model's text as it is, as it comes; a terminal
    gets it without control characters and with words kept whole."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if not sys.stdout.isatty():
        return write, write
    if not wordwrap:
        return lambda text: write(clean(text)), write
    wrap = WordWrap(write, lambda: shutil.get_terminal_size().columns)

    def end(text: str) -> None:
        wrap.flush()
        write(text)

    return lambda text: wrap.push(clean(text)), end


def _quiet(text: str) -> None:
    """--json prints the answer once, at the end."""


def _chat(session: Session) -> None:
    from tokenmill.cli.repl.chat import Chat
    from tokenmill.cli.repl.keyboard import line_reader
    from tokenmill.core.paths import home

    read = line_reader(session, home() / "history")

    def out(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    Chat(session, open_model, read, out).run()
