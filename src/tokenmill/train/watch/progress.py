"""How far the run is, on stderr: a live line on a terminal, plain lines elsewhere.

Shown: loss (a running mean), tokens a second, share of peak FLOPs, memory, time left. Plain lines come at the first
step, then every ten seconds at most, and with every evaluation; what happens (a spike, a checkpoint) is always said.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from tokenmill.core.terminal import clean
from tokenmill.train.watch.rows import Kind, Row
from tokenmill.train.watch_protocol import RunEnd, RunStart

PLAIN_SECONDS = 10.0
WINDOW = 20
"""Steps that rates and the loss are averaged over."""


class Progress:
    """Sink of the screen."""

    def __init__(self, terminal: bool | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._recent: deque[Row] = deque(maxlen=WINDOW)
        self._bars: Any = None
        self._task: Any = None
        self._total = 0
        self._said_at = float("-inf")
        self._sampled = -1

    def start(self, run: RunStart) -> None:
        """Say where the run's folder is, and draw the bar on a terminal."""
        self._total = run.total_steps
        if self._terminal:
            self._bars = _bars()
            self._task = self._bars.add_task("train", total=run.total_steps, completed=run.step, figures="")
            self._bars.start()
        self._say(f"run folder: {run.folder}")

    def put(self, kind: Kind, row: Row) -> None:
        """Show the row."""
        if kind == "step":
            self._recent.append(row)
            self._step(row)
        elif kind == "eval":
            self._say(f"step {row['step']}: {evaluation_text(row)}")
        elif kind == "event":
            self._say(f"step {row['step']}: {row['event']}: {row['message']}")
        elif kind == "sample" and row["step"] != self._sampled:  # one of them; all are in the file and the report
            self._sampled = row["step"]
            self._say(f"step {row['step']}: sample: {_short(row['prompt'])} ▸ {_short(row['text'])}")

    def end(self, end: RunEnd) -> None:
        """The last line, and the cursor back."""
        if not self._terminal and self._recent and self._said_at != float("-inf"):
            self._plain(self._recent[-1])
        if self._bars is not None:
            self._bars.stop()
        self._say(f"{end.reason} after step {end.step}")

    def _step(self, row: Row) -> None:
        if self._bars is not None:
            self._bars.update(self._task, completed=row["step"], figures=self._figures())
            return
        now = time.monotonic()
        if now - self._said_at >= PLAIN_SECONDS:
            self._said_at = now
            self._plain(row)

    def _plain(self, row: Row) -> None:
        left = (self._total - row["step"]) * _mean(self._recent, "seconds")
        self._say(f"step {row['step']}/{self._total}: {self._figures()}, {duration(left)} left")

    def _figures(self) -> str:
        recent = self._recent
        rate = sum(r["tokens"] for r in recent) / max(1e-9, sum(r["seconds"] for r in recent))
        share = sum(r["mfu"] * r["seconds"] for r in recent) / max(1e-9, sum(r["seconds"] for r in recent))
        finite = [r for r in recent if "skipped" not in r]
        loss = f"loss {_mean(finite, 'loss'):.3f}" if finite else "no valid loss"
        return f"{loss}, {rate:.0f} tok/s, {100 * share:.0f} % of peak, {recent[-1]['memory_mb'] / 1e3:.1f} GB"

    def _say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(clean(text), markup=False, highlight=False)
        else:
            print(clean(text), file=sys.stderr, flush=True)


def evaluation_text(row: Row) -> str:
    """An evaluation in one line."""
    bits, perplexity = row.get("eval_bits_per_byte"), row.get("eval_perplexity")
    accuracy, margin = row.get("eval_rewards/accuracies"), row.get("eval_rewards/margins")
    more = "" if perplexity is None else f", perplexity {perplexity:.2f}"
    more += "" if bits is None else f", {bits:.3f} bits per byte"
    more += "" if accuracy is None else f", accuracy {accuracy:.1%}"
    more += "" if margin is None else f", margin {margin:.3f}"
    best = ", the best so far" if row["best"] else ""
    return f"held-out loss {row['eval_loss']:.4f}{more}{best}"


def duration(seconds: float) -> str:
    """A time left, as a person says it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _mean(rows: Any, key: str) -> float:
    values = [row[key] for row in rows]
    return sum(values) / max(1, len(values))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}…"


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
