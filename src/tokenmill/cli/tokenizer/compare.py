"""``tokenmill tokenizer compare``: tokenizers side by side on the same texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.output import Json, Meter, columns, emit, note
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.data.texts import Texts
    from tokenmill.text.compare import Compared
    from tokenmill.text.tokenizer import Tokenizer

EPILOG = """\b
Examples:
  tokenmill tokenizer compare tok smollm2:135m --text curated/
  tokenmill tokenizer compare a b c --text de.txt --text fr.txt --html compared.html
"""


def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="A B…", help="Tokenizers: folders, tokenizer.json files, store names.")
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Texts besides the built-in ones, as --text FILE; rows count by their language."
        ),
    ] = None,
    builtin: Annotated[bool, typer.Option(help="The built-in texts: ten languages, code, numbers.")] = True,
    max_mb: Annotated[int, typer.Option(min=1, help="Of the texts given, at most; of more, an even share.")] = 16,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that shows how they cut.")] = None,
    as_json: Json = False,
) -> None:
    """Bytes a token, tokens a word by language, code and numbers, text that does not come back, speed."""
    from tokenmill.core.html import write_page
    from tokenmill.data.texts import Texts
    from tokenmill.text.compare import compare as measure
    from tokenmill.text.compare import picture

    if not text and not builtin:
        raise UsageError("--no-builtin leaves nothing to compare on; give --text FILE")
    loaded = _loaded(names)
    with Meter(in_bytes=True) as meter:
        given = None
        if text:
            given = Texts(
                text, most_bytes=max_mb << 20, progress=lambda done, total: meter.update("reading", done, total)
            )
        compared = measure(loaded, _groups(given, builtin))
    if given is not None and given.broken:
        note(f"{given.broken} rows could not be read or have no text")
    if html is not None:
        write_page(html, picture(compared))
        note(f"Page: {html}")
    emit({"tokenizers": [one.as_dict() for one in compared]}, as_json, _table(compared))


def _loaded(names: list[str]) -> dict[str, Tokenizer]:
    """By the shortest name that tells them apart."""
    from tokenmill.models.load import load_tokenizer

    loaded: dict[str, Tokenizer] = {}
    paths = [Path(name) for name in names]
    short = len({path.name for path in paths}) == len(paths)
    for name, path in zip(names, paths, strict=True):
        if path.is_file() and path.name == "tokenizer.json":
            tokenizer = load_tokenizer(path.parent)
        else:
            tokenizer = load_tokenizer(path if path.exists() else name)
        key = path.name if short and path.exists() and path.name != "tokenizer.json" else name
        if key in loaded:
            raise UsageError(f"{name} is given twice")
        loaded[key] = tokenizer
    return loaded


def _groups(given: Texts | None, builtin: bool) -> Iterator[tuple[str, str]]:
    from tokenmill.text.compare import sample_texts

    if builtin:
        for group, texts in sample_texts().items():
            for one in texts:
                yield group, one
    if given is not None:
        for row in given.rows():
            language = row.row.value.get("language")
            yield language if isinstance(language, str) and language else row.file.name, row.text


def _table(compared: list[Compared]) -> str:
    """Two numbers a tokenizer and group, and a line of sums."""
    groups = list(dict.fromkeys(name for one in compared for name in one.groups))
    header = ["TEXT", *(f"{one.name}: {what}" for one in compared for what in ("BYTES/TOKEN", "TOKENS/WORD"))]
    rows = [[name, *(cell for one in compared for cell in _cells(one.groups[name].as_dict()))] for name in groups]
    rows.append(["all", *(cell for one in compared for cell in _cells(one.total.as_dict()))])
    sums = [
        (
            one.name,
            f"{one.tokenizer.vocab_size:,}",
            f"{one.total.failures} of {one.total.texts}",
            str(one.total.unknown),
            f"{one.total.as_dict()['mb_per_s'] or 0:.1f}",
        )
        for one in compared
    ]
    lost = [
        f"{one.name}, {group}: {text!r} came back as {back!r}" for one in compared for group, text, back in one.lost
    ]
    table = columns(("TOKENIZER", "TOKENS", "NOT COMING BACK", "UNKNOWN", "MB/S"), sums)
    return "\n\n".join([columns(header, rows), table, *(["\n".join(lost)] if lost else [])])


def _cells(group: dict[str, Any]) -> tuple[str, str]:
    bytes_, words = (group[key] for key in ("bytes_per_token", "tokens_per_word"))
    return "-" if bytes_ is None else f"{bytes_:.2f}", "-" if words is None else f"{words:.2f}"
