"""``tokenmill plan``: answers before money is spent. One file a sub-verb."""

from __future__ import annotations

from tokenmill.cli.output import verb

app = verb()


@app.callback()
def plan() -> None:
    """Does it fit, on what, how fast, for how much, and which model: before money is spent."""
