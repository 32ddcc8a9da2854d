"""Programs: what a model writes is put before a row's tests and run in the sandbox (HumanEval's way, pass@k).

A row has ``prompt`` (a function's head and its description), ``entry_point`` and ``tests`` (statements, or a function
``check(candidate)`` as HumanEval has it). Outside of chats the answer goes on with the prompt and is cut where the
function ends; in a chat the last fenced block is taken. A program passes only if it got behind its tests: a word that
it does not know beforehand is printed there, so leaving early is no way to pass.
"""

from __future__ import annotations

import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tokenmill.core.code_sandbox import CodeResult, run_code
from tokenmill.core.errors import ConfigError
from tokenmill.evals.subject import Progress, Subject
from tokenmill.evals.tasks.aggregate import pass_at_k
from tokenmill.evals.tasks.kinds import Work
from tokenmill.evals.tasks.sample import Sample
from tokenmill.evals.tasks.task import Item

ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```")
"""Where what goes on with a function has left it."""
TIMEOUT_S = 5.0
_FENCE = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code(work: Work, subject: Subject, progress: Progress | None = None) -> list[Sample]:
    """``pass@k`` for each k that there are enough samples for."""
    for item in work.items:
        if missing := [key for key in ("prompt", "tests", "entry_point") if not isinstance(item.fields.get(key), str)]:
            raise ConfigError(f"row {item.id}: a task of the kind code needs {', '.join(missing)}")
    ks = sorted({k for k in work.config.pass_at if 1 <= k <= work.how.samples}) or [1]
    how = work.how if work.chat else replace(work.how, stop=tuple(dict.fromkeys((*work.how.stop, *ENDS))))
    replies = subject.write(work.asks, how, progress)
    programs = [
        [program(item, reply.text, chat=work.chat) for reply in said]
        for item, said in zip(work.items, replies, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [[pool.submit(passes, one, item) for one in own] for own, item in zip(programs, work.items, strict=True)]
        done = [[job.result() for job in own] for own in jobs]
    samples = []
    for (item, ask), said, own, results in zip(work.rows(), replies, programs, done, strict=True):
        passed = [one for one, _ in results]
        metrics = {f"pass@{k}": pass_at_k(len(passed), sum(passed), k) for k in ks}
        runs = [
            {"passed": ok, "status": result.status, "says": result.stderr.strip().splitlines()[-1:]}
            for ok, result in results
        ]
        details = {"programs": own, "runs": runs, "finish_reasons": [reply.finish_reason for reply in said]}
        tokens = said[0].prompt_tokens, sum(reply.completion_tokens for reply in said)
        tests = str(item.fields["tests"])
        samples.append(Sample(item.id, item.category, ask.shown(), tests, said[0].text, metrics, details, *tokens))
    return samples


def program(item: Item, text: str, *, chat: bool) -> str:
    """The program that an answer stands for, without the tests."""
    prompt = str(item.fields["prompt"])
    if not chat:
        return prompt + text
    blocks = _FENCE.findall(text)
    own = blocks[-1] if blocks else text
    if re.search(rf"^\s*def {re.escape(str(item.fields['entry_point']))}\b", own, re.MULTILINE):
        imports = [line for line in prompt.splitlines() if line.startswith(("import ", "from "))]
        return "\n".join([*imports, own])
    return prompt + own


def passes(source: str, item: Item) -> tuple[bool, CodeResult]:
    """Whether a program gets through the row's tests, and what became of it."""
    word = secrets.token_hex(16)
    tests = str(item.fields["tests"])
    call = f"check({item.fields['entry_point']})\n" if re.search(r"^def check\(", tests, re.MULTILINE) else ""
    result = run_code(f"{source}\n\n{tests}\n{call}print({word!r})\n", timeout_s=TIMEOUT_S)
    return result.status == "ok" and result.stdout.endswith(f"{word}\n"), result
