"""``tokenmill plan``: answers before money is spent. One file a sub-verb."""

from __future__ import annotations

from tokenmill.cli.output import verb
from tokenmill.cli.plan import choose, cost, memory, scaling, serve, train

app = verb()
app.command(epilog=memory.EPILOG)(memory.memory)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=scaling.EPILOG)(scaling.scaling)
app.command(epilog=cost.EPILOG)(cost.cost)
app.command(epilog=choose.EPILOG)(choose.choose)


@app.callback()
def plan() -> None:
    """Does it fit, on what, how fast, for how much, and which model: before money is spent."""
