"""``tokenmill export``: a model as other programs want it. One file a target, one `Typer` for all of them."""

from __future__ import annotations

from tokenmill.cli import export_gguf
from tokenmill.cli.output import verb

app = verb()
app.command("gguf", epilog=export_gguf.EPILOG)(export_gguf.gguf)


@app.callback()
def export() -> None:
    """Write a model for other programs."""
