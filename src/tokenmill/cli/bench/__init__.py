"""``tokenmill bench``: how fast a model is here. One file a sub-verb."""

from __future__ import annotations

from tokenmill.cli.bench import latency, serve, throughput, train
from tokenmill.cli.output import verb

app = verb()
app.command(epilog=throughput.EPILOG)(throughput.throughput)
app.command(epilog=latency.EPILOG)(latency.latency)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=train.EPILOG)(train.train)


@app.callback()
def bench() -> None:
    """Measure speed on this machine."""
