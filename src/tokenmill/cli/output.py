"""The house promise of every verb, in one place: where words go, how progress and tables look, what ``--json``
means.

Answers go to stdout, everything else to stderr. With ``--json`` the last line of stdout is one JSON document and
nothing else is written there. Progress is a bar when stderr is a terminal and plain lines otherwise. Numbers, sizes
and ages read as Ollama's do. Text that came with a model is stripped of control characters before a terminal sees it:
a licence or an answer must not be able to move the cursor or to set the window's title.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.core.finite import finite
from tokenmill.core.terminal import clean

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from tokenmill.store import ModelFiles

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")]


def verb() -> typer.Typer:
    """The parser of one verb: plain help, which loads quickly, keeps examples on their lines and pipes well."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=False)


def note(text: str) -> None:
    """One line for the person, on stderr."""
    print(clean(text), file=sys.stderr, flush=True)


def emit(document: Any, as_json: bool, text: str) -> None:
    """End of a verb: `document` as one line of JSON, or `text` for people. Empty `text` prints nothing."""
    if as_json:
        print(json.dumps(finite(document), ensure_ascii=False, allow_nan=False, default=str))
    elif text:
        print(clean(text))


def command_line() -> str:
    """What the person typed, for a report."""
    return shlex.join(["tokenmill", *sys.argv[1:]])


def columns(header: Sequence[str], rows: Iterable[Sequence[str]], gap: int = 4) -> str:
    """Left-aligned columns without borders, as Ollama, docker and kubectl print them."""
    table = [list(header), *[[clean(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) + gap for column in zip(*table, strict=True)]
    return "\n".join("".join(map(str.ljust, row, widths)).rstrip() for row in table)


def sections(groups: Mapping[str, Iterable[Sequence[str]]]) -> str:
    """Named groups of indented columns, one blank line between them; a group without rows is left out."""
    parts = []
    for title, rows in groups.items():
        listed = [list(row) for row in rows]
        if listed:
            head, *rest = columns(listed[0], listed[1:]).split("\n")
            parts.append("\n".join([f"  {title}", *(f"    {clean(line)}".rstrip() for line in (head, *rest))]))
    return "\n\n".join(parts) + "\n"


def summary(files: ModelFiles) -> dict[str, Any]:
    """What ``--json`` says of a model in the store."""
    return {
        "name": files.name,
        "digest": files.digest,
        "size": files.size,
        "path": str(files.path),
        "source": files.source,
        "modified_at": files.modified.isoformat(),
    }


def human_size(count: int) -> str:
    """Bytes in decimal units, as Ollama: 98 MB, 4.7 GB."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            value = count / factor
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{count} B"


def human_count(count: int) -> str:
    """A number of parameters, as Ollama: 134.52M, 7.2B."""
    for unit, factor, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 0)):
        if count >= factor:
            return f"{count / factor:.0f}{unit}" if count % factor == 0 else f"{count / factor:.{digits}f}{unit}"
    return str(count)


def human_age(then: datetime, now: datetime | None = None) -> str:
    """How long ago, as Ollama: ``2 hours ago``. A naive `then` is taken as UTC."""
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    hours = round(seconds / 3600)
    if seconds < 1:
        said = "Less than a second"
    elif seconds < 60:
        said = _plural(int(seconds), "second")
    elif seconds < 3600:
        said = "About a minute" if seconds < 120 else f"{int(seconds / 60)} minutes"
    elif hours < 48:
        said = "About an hour" if hours <= 1 else f"{hours} hours"
    else:
        limits = (
            ("days", 24, 24 * 14),
            ("weeks", 24 * 7, 24 * 60),
            ("months", 24 * 30, 24 * 730),
            ("years", 24 * 365, 1e9),
        )
        unit, length = next((unit, length) for unit, length, most in limits if hours < most)
        said = f"{int(hours / length)} {unit}"
    return f"{said} ago"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_duration(seconds: float) -> str:
    """A time that was measured: 312 µs, 41.2 ms, 3.21 s, 2 min 5 s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on a terminal what is being waited for, and wipes it away; what is printed meanwhile goes over it."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"{clean(what)}…", end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print(end="\x1b[K", file=sys.stderr, flush=True)


class Meter:
    """How far work is: a bar for each `label` when stderr is a terminal, else a line a quarter to keep logs short."""

    def __init__(self, in_bytes: bool) -> None:
        self._in_bytes = in_bytes
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._quarters: dict[str, int] = {}

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        if self._bars is not None:
            self._bars.console.print(clean(text), markup=False, highlight=False)
        else:
            note(text)

    def update(self, label: str, completed: int, total: int) -> None:
        """`completed` of `total` steps (or bytes) of `label` are done."""
        if sys.stderr.isatty():
            self._draw(label, completed, total)
            return
        quarter = 4 * completed // total
        if quarter != self._quarters.get(label):
            self._quarters[label] = quarter
            note(f"{label}: {100 * completed // total} % of {human_size(total) if self._in_bytes else total}")

    def _draw(self, label: str, completed: int, total: int) -> None:
        if self._bars is None:
            self._bars = _bars(self._in_bytes)
            self._bars.start()
        if label not in self._tasks:
            from rich.markup import escape

            self._tasks[label] = self._bars.add_task(escape(clean(label)), total=total)
        self._bars.update(self._tasks[label], completed=completed, total=total)


def _bars(in_bytes: bool) -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    return Progress("{task.description}", BarColumn(), *amounts, TimeRemainingColumn(), console=Console(stderr=True))


class PullProgress(Meter):
    """A Meter that takes what the store reports: ``(status, digest, total bytes, completed bytes)``."""

    def __init__(self) -> None:
        super().__init__(in_bytes=True)
        self._last = ""

    def __enter__(self) -> PullProgress:
        return self

    def __call__(
        self, status: str, digest: str | None = None, total: int | None = None, completed: int | None = None
    ) -> None:
        if total and completed is not None:
            self.update(status, completed, total)
        elif status != self._last:
            self.say(status)
        self._last = status


@contextmanager
def step_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function ``(done, total)`` that shows how far a piece of work is."""
    with Meter(in_bytes=False) as meter:
        yield lambda done, total: meter.update(what, done, total)


@contextmanager
def step_meter() -> Iterator[Callable[[str, int, int], None]]:
    """A function ``(what, done, total)`` for work of several parts, a bar for each."""
    with Meter(in_bytes=False) as meter:
        yield lambda what, done, total: meter.update(what, done, max(1, total))
