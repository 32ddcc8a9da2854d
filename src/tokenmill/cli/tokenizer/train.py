"""``tokenmill tokenizer train``: a tokenizer from text."""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, Meter, emit, human_duration, human_size, note, waiting
from tokenmill.core.errors import MissingFileError, UsageError
from tokenmill.core.paths import atomic_write

if TYPE_CHECKING:
    from tokenmill.data.texts import Texts
    from tokenmill.text.train import TokenizerSpec, Trained


EPILOG = """\b
Examples:
  tokenmill tokenizer train curated/ --vocab-size 16384 --out tok
  tokenmill tokenizer train a.jsonl b.parquet --kind unigram --out tok --chat-template none
"""
RECORD = "training.json"
MEASURED = 1 << 20
"""Bytes of the texts, spread over all of them, that the new tokenizer is measured on."""


def train(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA…", help="Files (JSONL, Parquet, text), folders, patterns.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    kind: Annotated[
        str, typer.Option(metavar="byte-bpe|bpe|wordpiece|unigram|char", help="What is learned.")
    ] = "byte-bpe",
    vocab_size: Annotated[int, typer.Option(min=1, help="Tokens in all; becomes a multiple of --pad-to.")] = 32768,
    cut: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How text is cut first: a model's pattern (byte-bpe: llama3, gpt-2, qwen2, gpt-4o, …), words or "
            "punctuation (bpe, unigram).",
        ),
    ] = "",
    digits: Annotated[int, typer.Option(min=0, max=3, help="Most digits of a token; 0 leaves it to --cut.")] = 0,
    normalise: Annotated[str, typer.Option(metavar="none|nfc|nfkc", help="Unicode form of the text.")] = "none",
    lowercase: Annotated[bool, typer.Option("--lowercase", help="wordpiece: no case, no accents.")] = False,
    special: Annotated[
        list[str] | None, typer.Option(metavar="TOKEN", help="One more special token. Repeat it.")
    ] = None,
    chat_template: Annotated[
        str,
        typer.Option(
            metavar="chatml|none|FILE",
            help="Saved with it (chatml brings its tokens). Default: chatml, wordpiece none.",
        ),
    ] = "",
    pad_to: Annotated[int, typer.Option(min=1, help="The vocabulary's size is a multiple of this.")] = 64,
    min_frequency: Annotated[int, typer.Option(min=1, help="Rarer pairs are not merged.")] = 2,
    coverage: Annotated[
        float, typer.Option(help="Share of characters with tokens of their own; the rest as bytes (not byte-bpe).")
    ] = 0.9995,
    text_field: Annotated[str, typer.Option(help="The column of plain text rows.")] = "text",
    max_mb: Annotated[int, typer.Option(min=1, max=2047, help="Text to learn from; of more, an even share.")] = 1024,
    as_json: Json = False,
) -> None:
    """Train a tokenizer and write it as tokenizer.json with tokenizer_config.json and its chat template."""
    from tokenmill.data.texts import Texts
    from tokenmill.formats.aside import refuse_taken
    from tokenmill.text.train import TokenizerSpec, train_tokenizer
    from tokenmill.text.train.build import MOST_BYTES

    if not (out / RECORD).is_file():  # one of these is trained anew; a model's own is not to be lost
        refuse_taken(out)
    template, turns = _template(chat_template or ("none" if kind == "wordpiece" else "chatml"))
    spec = TokenizerSpec(
        kind=kind,
        vocab_size=vocab_size,
        cut=cut,
        digits=digits,
        normalise=normalise,
        lowercase=lowercase,
        special=(*turns, *(special or [])),
        chat_template=template,
        pad_to=pad_to,
        min_frequency=min_frequency,
        coverage=coverage,
    )
    began = time.perf_counter()
    with Meter(in_bytes=True) as meter:
        texts = Texts(
            data,
            text_field=text_field,
            most_bytes=min(max_mb << 20, MOST_BYTES),
            progress=lambda done, total: meter.update("reading", done, total),
        )
        trained = train_tokenizer(spec, lambda: texts, stage=meter.say)
    seconds = time.perf_counter() - began
    sample = Texts(data, text_field=text_field, most_bytes=MEASURED)
    document = _document(spec, trained, texts, sample, out, seconds)
    trained.save(out)
    with atomic_write(out / RECORD) as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
    if texts.broken:
        note(f"{texts.broken} rows could not be read or have no text")
    emit(document, as_json, _said(document))


def _template(wanted: str) -> tuple[str | None, tuple[str, ...]]:
    """The template's source and the tokens that it brings."""
    from tokenmill.text.chat_template import ChatTemplate
    from tokenmill.text.train.spec import TURNS

    if wanted == "none":
        return None, ()
    if wanted == "chatml":
        return (resources.files("tokenmill.text.train") / "chatml.jinja").read_text(encoding="utf-8"), TURNS
    file = Path(wanted)
    if not file.is_file():
        raise MissingFileError(f"--chat-template {wanted}: no such file; chatml and none are the other choices")
    try:
        source = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--chat-template {wanted}: not UTF-8") from error
    ChatTemplate(source)  # a broken one is refused before hours are spent
    return source, ()


def _document(
    spec: TokenizerSpec, trained: Trained, texts: Texts, sample: Texts, out: Path, seconds: float
) -> dict[str, Any]:
    from tokenmill.text.compare import Compared

    tokenizer = trained.tokenizer
    measured = Compared("", tokenizer)
    with waiting("measuring"):
        for text in sample:
            measured.measure("", text)
    total = measured.total
    return {
        "folder": str(out),
        "kind": spec.kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": len(spec.special_tokens),
        "learned": trained.learned,
        "cut": spec.cut,
        "digits": spec.digits,
        "normalise": spec.normalise,
        "chat_template": spec.chat_template is not None,
        "fingerprint": tokenizer.fingerprint,
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in texts.files],
        "text_bytes": texts.bytes,
        "rows_without_text": texts.broken,
        "bytes_per_token": total.as_dict()["bytes_per_token"],
        "round_trip": total.failures == 0,
        "seconds": seconds,
    }


def _said(document: dict[str, Any]) -> str:
    ratio = f"{document['bytes_per_token']:.2f} bytes a token" if document["bytes_per_token"] else "nothing measured"
    back = (
        "its text comes back as it was" if document["round_trip"] else "some of its text does not come back as it was"
    )
    return (
        f"{document['folder']}: {document['kind']}, {document['vocab_size']:,} tokens from "
        f"{human_size(document['text_bytes'])} of text in {human_duration(document['seconds'])}; {ratio}, {back}"
    )
