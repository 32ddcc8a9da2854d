"""``tokenmill tokenizer``: train tokenizers, compare them, turn text into token shards. One file a sub-verb."""

from __future__ import annotations

from tokenmill.cli.output import verb
from tokenmill.cli.tokenizer import compare, encode, train

app = verb()
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=encode.EPILOG)(encode.encode)


@app.callback()
def tokenizer() -> None:
    """Train and compare tokenizers; write token shards."""
