"""``tokenmill eval``: measures of a model. Each ends with its figures, as JSON where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenmill.cli.eval_compare import EPILOG as COMPARE_EPILOG
from tokenmill.cli.eval_compare import eval_compare
from tokenmill.cli.eval_judge import EPILOG as JUDGE_EPILOG
from tokenmill.cli.eval_judge import eval_judge
from tokenmill.cli.eval_leakage import EPILOG as LEAKAGE_EPILOG
from tokenmill.cli.eval_leakage import eval_leakage
from tokenmill.cli.eval_memorization import EPILOG as MEMORIZATION_EPILOG
from tokenmill.cli.eval_memorization import eval_memorization
from tokenmill.cli.eval_probes import EPILOG as PROBES_EPILOG
from tokenmill.cli.eval_probes import eval_probes
from tokenmill.cli.eval_reward import EPILOG as REWARD_EPILOG
from tokenmill.cli.eval_reward import eval_reward
from tokenmill.cli.eval_tasks import EPILOG as TASKS_EPILOG
from tokenmill.cli.eval_tasks import eval_tasks
from tokenmill.cli.inputs import text_of
from tokenmill.cli.output import Json, PullProgress, emit, step_progress, verb

app = verb()

EPILOG = """\b
Example:
  tokenmill eval ppl --model smollm2:135m --text book.txt --ctx 512
"""


@app.callback()
def evaluate() -> None:
    """Measure a model."""


app.command("tasks", epilog=TASKS_EPILOG)(eval_tasks)
app.command("compare", epilog=COMPARE_EPILOG)(eval_compare)
app.command("reward", epilog=REWARD_EPILOG)(eval_reward)
app.command("judge", epilog=JUDGE_EPILOG)(eval_judge)
app.command("memorization", epilog=MEMORIZATION_EPILOG)(eval_memorization)
app.command("leakage", epilog=LEAKAGE_EPILOG)(eval_leakage)
app.command("probes", epilog=PROBES_EPILOG)(eval_probes)


@app.command(epilog=EPILOG)
def ppl(
    model: Annotated[str, typer.Option(help="The model; pulled when it is missing.")],
    text: Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text to score.")],
    ctx: Annotated[int, typer.Option(min=2, help="Window in tokens; the second half of each window is scored.")] = 512,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="An adapter to put on it, PEFT or GGUF; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Perplexity of a text, by windows as llama-perplexity takes them, so that figures compare."""
    content = text_of("--text", text)

    from tokenmill import LLM
    from tokenmill.evals.perplexity import perplexity

    with PullProgress() as pulled:
        llm = LLM(model, adapter=adapter, progress=pulled)
    ids = llm.tokenizer.encode(content, parse_special=False)
    with step_progress("windows") as progress:
        result = perplexity(
            llm.model,
            ids,
            ctx,
            byte_lengths=[len(llm.tokenizer.token_bytes(token_id)) for token_id in ids],
            bos_token_id=ids[0] if ids[:1] == [llm.tokenizer.bos_token_id] else None,
            progress=progress,
        )
    document = {
        "model": model,
        "text": str(text),
        "ctx": ctx,
        "ppl": result.ppl,
        "stderr": result.stderr,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
    }
    table = (
        f"perplexity     {result.ppl:.4f} ± {result.stderr:.4f}\n"
        f"bits per byte  {result.bits_per_byte:.4f}\n"
        f"tokens scored  {result.tokens} in windows of {ctx}"
    )
    emit(document, as_json, table)
