"""``tokenmill export``: a model as other programs want it. One file a target, one `Typer` for all of them."""

from __future__ import annotations

from tokenmill.cli.output import verb

app = verb()


@app.callback()
def export() -> None:
    """Write a model for other programs."""
