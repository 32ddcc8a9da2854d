"""`make demo`: a model's life, stage by stage. STAGES below is the table of contents; read it first.

Each stage runs the same commands that you would type, checks what came back, and adds a row to the table and to an
offline HTML report under `runs/`. A stage that fails ends the demo with exit status 1; the report says where.
`DEMO=quick make demo` trains for a shorter time: what comes out is poorer, the way is the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
QUICK = os.environ.get("DEMO") == "quick"
MODEL = "smollm2:135m"
QUESTION = "What is the capital of France?"
TEXT = HERE / "texts" / "alice.txt"  # Lewis Carroll, 1865: in the public domain
DEFINITIONS = "data/definitions.jsonl"  # of Ambrose Bierce's Devil's Dictionary, 1911, as questions and answers
WORD = "homework"  # not among them
RAW = "raw"  # pages and rows made of that book, with all that raw text has: copies, noise, addresses, broken lines
CURATED = "../runs/curated"
TOKENIZER, SHARDS = "../runs/tokenizer", "../runs/shards"


class StageFailedError(Exception):
    """What a stage found is not what it should be."""


@dataclass(frozen=True)
class Figure:
    """One number or fact, and the command that produced it."""

    name: str
    value: str
    command: str


@dataclass
class Stage:
    """What happened in one step of the demo."""

    title: str
    why: str
    seconds: float = 0.0
    result: str = ""
    failed: bool = False
    quote: str = ""
    """Text worth showing as it is: an answer."""
    figures: list[Figure] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    """Curves, as `tokenmill.core.html.line_chart` draws them."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Text and address, from the report's folder."""

    def tokenmill(self, *words: str) -> dict[str, Any]:
        """Run `tokenmill WORDS --json` and give its document; progress goes to the terminal."""
        self.commands.append("tokenmill " + shlex.join(words))
        command = [sys.executable, "-m", "tokenmill", *words, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=HERE)
        if done.returncode:
            raise StageFailedError(f"`{self.commands[-1]}` ended with exit status {done.returncode}")
        document = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(document, dict)
        return document

    def figure(self, name: str, value: str) -> None:
        """Keep a figure of the last command."""
        self.figures.append(Figure(name, value, self.commands[-1]))


def look_at_the_machine(stage: Stage) -> str:
    report = stage.tokenmill("doctor")
    machine, software = report["machine"], report["software"]
    stage.figure("processor", f"{machine['cpu']}, {machine['cores']} cores")
    stage.figure("threads", str(machine["threads"]))
    stage.figure("memory available", f"{(machine['memory_available'] or 0) / 1e9:.0f} GB")
    stage.figure("accelerators", ", ".join(a["name"] for a in report["accelerators"]) or "none")
    for name, version in software.items():
        stage.figure(name, version)
    return f"{machine['cores']} cores, torch {software['torch']}"


def get_a_model(stage: Stage) -> str:
    model = stage.tokenmill("pull", MODEL)
    stage.figure("size on disk", f"{model['size'] / 1e6:.0f} MB")
    stage.figure("source", model["source"])
    stage.figure("manifest sha256", model["digest"])
    return f"{model['size'] / 1e6:.0f} MB, sha256 verified"


def see_what_it_is(stage: Stage) -> str:
    details = stage.tokenmill("show", MODEL)["details"]
    stage.figure("architecture", details["architecture"])
    stage.figure("parameters", f"{details['parameters']:,}")
    stage.figure("context", f"{details['context_length']:,} tokens")
    stage.figure("quantization", details["quantization"])
    return f"{details['architecture']}, {details['parameters'] / 1e6:.0f} M parameters, {details['quantization']}"


def ask_it(stage: Stage) -> str:
    answer = stage.tokenmill("run", MODEL, QUESTION, "--temperature", "0", "--max-tokens", "64")
    stage.quote = answer["text"]
    stage.figure("prompt", f"{answer['prompt_tokens']} tokens in {answer['prompt_s']:.2f} s")
    speed = answer["completion_tokens"] / answer["decode_s"] if answer["decode_s"] else 0.0
    stage.figure("answer", f"{answer['completion_tokens']} tokens at {speed:.1f} tokens/s")
    stage.figure("loading", f"{answer['load_s']:.2f} s")
    if "Paris" not in answer["text"]:
        raise StageFailedError(f"the answer does not name Paris: {answer['text']!r}")
    return "Paris"


def give_it_a_role(stage: Stage) -> str:
    stage.tokenmill("create", "demo-poet", "-f", "Modelfile.poet")
    answer = stage.tokenmill("run", "demo-poet", "The sea at night.")
    stage.quote = answer["text"]
    stage.figure("finish reason", answer["finish_reason"])
    stage.tokenmill("rm", "demo-poet")
    if not answer["text"].strip():
        raise StageFailedError("the poet said nothing")
    return f"{len(answer['text'].split())} words"


def measure_it(stage: Stage) -> str:
    name = TEXT.relative_to(HERE).as_posix()
    result = stage.tokenmill("eval", "ppl", "--model", MODEL, "--text", name, "--ctx", "256")
    stage.figure("perplexity", f"{result['ppl']:.2f} ± {result['stderr']:.2f}")
    stage.figure("bits per byte", f"{result['bits_per_byte']:.3f}")
    stage.figure("tokens scored", str(result["tokens"]))
    return f"perplexity {result['ppl']:.2f}"


def curate_text(stage: Stage) -> str:
    """Raw pages and rows to a clean set: each planted trouble has to be found."""
    done = stage.tokenmill("data", "run", "web", f"input={RAW}", f"output={CURATED}", "--fresh")
    steps = {step["name"]: step for step in done["steps"]}
    stage.figure("documents read", str(done["read"]["documents"]))
    for name, step in steps.items():
        said = [f"{count} {reason}" for reason, count in step["dropped"].items()]
        said += [f"{count['hits']} {reason} changed" for reason, count in step["changed"].items()]
        if said:
            stage.figure(name, ", ".join(said))
    stage.figure("put aside, broken", str(done["quarantined"]))
    stage.links.append(("what each step did, with samples", "../curated/report.html"))
    kinds = set(steps["pii"]["changed"])
    if (
        done["quarantined"] != 4
        or steps["exact"]["dropped"]["duplicate"] < 5
        or not {"email", "phone", "iban"} <= kinds
    ):
        raise StageFailedError(f"planted copies, addresses or broken lines were not found: {steps}")
    kept = done["written"]
    return f"{kept['documents']} of {done['read']['documents']} documents stay, {kept['characters']:,} characters"


def train_a_tokenizer(stage: Stage) -> str:
    """Of the curated text, beside the default model's: a small vocabulary of its own against a large one of the web."""
    # without a chat template: the model that comes of it only goes on with a text
    own = stage.tokenmill(
        "tokenizer", "train", CURATED, "--vocab-size", "1280", "--chat-template", "none", "--out", TOKENIZER
    )
    stage.figure("vocabulary", f"{own['vocab_size']:,} tokens of {own['text_bytes'] / 1e3:.0f} KB of text")
    page = f"{TOKENIZER}/compared.html"
    both = stage.tokenmill("tokenizer", "compare", TOKENIZER, MODEL, "--text", CURATED, "--html", page)["tokenizers"]
    for one in both:
        total = one["total"]
        stage.figure(
            f"{one['name']}, {one['vocab_size']:,} tokens",
            f"{total['bytes_per_token']:.2f} bytes a token, {total['tokens_per_word']:.2f} tokens a word",
        )
    stage.links.append(("both by language, code and numbers", "../tokenizer/compared.html"))
    if lost := sum(one["total"]["failures"] for one in both):
        raise StageFailedError(f"{lost} texts do not come back as they were")
    ratio = both[0]["total"]["bytes_per_token"]
    return f"{own['vocab_size']:,} tokens, {ratio:.2f} bytes each; every text comes back"


def pretrain_one(stage: Stage) -> str:
    """A new model that has seen the curated text, as token shards, and nothing else."""
    shards = stage.tokenmill("tokenizer", "encode", CURATED, "--tokenizer", TOKENIZER, "--out", SHARDS)
    stage.figure("token shards", f"{shards['tokens']:,} tokens of {shards['documents']} documents")
    length = "steps=30" if QUICK else "steps=200"
    run = stage.tokenmill(
        "train", "pretrain", "size=tiny", f"data={SHARDS}", f"tokenizer={TOKENIZER}", "out=../runs", length
    )
    _show_training(stage, run)
    stage.quote = _answer(stage, "FRIENDSHIP, n.", run["model"], "--temperature", "0.7", "--seed", "1", tokens=80)
    bits = min(row["eval_bits_per_byte"] for row in _metrics(run) if "eval_bits_per_byte" in row)
    if bits > (3.0 if QUICK else 2.6):
        raise StageFailedError(f"{bits:.2f} bits per byte of held-out text: it has learned too little")
    return f"{bits:.2f} bits per byte of text it has not seen; untrained: 8"


def tune_it(stage: Stage) -> str:
    """The default model learns to define words as Ambrose Bierce did; the word asked for is not in the examples."""
    question = f'What does "{WORD}" mean?'
    before = _answer(stage, question, MODEL, tokens=60)
    length = ["steps=12" if QUICK else "epochs=1", "eval_every=12"]
    run = stage.tokenmill("train", "lora", f"model={MODEL}", f"data={DEFINITIONS}", "out=../runs", *length)
    _show_training(stage, run)
    after = _answer(stage, question, MODEL, "--adapter", run["model"], tokens=60)
    stage.quote = f"{question}\n\nbefore: {before.strip()}\n\nafter: {after.strip()}"
    form = re.compile(r"[A-Z' -]+, n\. ")
    if form.match(before) or not form.match(after):
        raise StageFailedError(f"the answer should have the book's form after tuning and not before: {after!r}")
    return f"it defines as the book does: {after.split('. ')[0]}."


def _answer(stage: Stage, prompt: str, model: str, *more: str, tokens: int) -> str:
    words = more if "--temperature" in more else (*more, "--temperature", "0")
    return str(stage.tokenmill("run", model, prompt, *words, "--max-tokens", str(tokens))["text"])


def _show_training(stage: Stage, run: dict[str, Any]) -> None:
    """The loss curve and figures of a training run, and the way to its own report."""
    from tokenmill.core.html import Series, line_chart

    rows = _metrics(run)
    curves = [
        Series(name, [(row["step"], row[key]) for row in rows if row.get(key) is not None])
        for name, key in (("training", "loss"), ("held out", "eval_loss"))
    ]
    stage.charts.append(line_chart("Loss, nats a token", curves))
    stage.links.append(("the run's own report", f"../{Path(run['folder']).name}/report.html"))
    steps = [row for row in rows if "tokens_per_s" in row]
    stage.figure("tokens seen", f"{steps[-1]['total_tokens']:,} in {len(steps)} steps")
    stage.figure("speed", f"{statistics.median(row['tokens_per_s'] for row in steps):.0f} tokens/s")
    stage.figure("share of peak FLOPs", f"{100 * statistics.median(row['mfu'] for row in steps):.0f} %")
    stage.figure("peak memory", f"{steps[-1]['memory_mb'] / 1e3:.2f} GB")


def _metrics(run: dict[str, Any]) -> list[dict[str, Any]]:
    text = (Path(run["folder"]) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def serve_it(stage: Stage) -> str:
    """The server as a process of its own, asked through HTTP as any OpenAI client would, then ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", MODEL, "--port", str(port)]
    stage.commands.append("tokenmill " + shlex.join(words))
    with subprocess.Popen([sys.executable, "-m", "tokenmill", *words], cwd=HERE, stdout=subprocess.DEVNULL) as server:
        try:
            return _ask_over_http(stage, server, f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def _ask_over_http(stage: Stage, server: subprocess.Popen[bytes], base: str) -> str:
    import httpx

    begin = time.perf_counter()
    while True:
        try:
            httpx.get(f"{base}/health", timeout=5).raise_for_status()
            break
        except httpx.HTTPError as error:
            if server.poll() is not None or time.perf_counter() - begin > 120:
                raise StageFailedError(f"the server does not answer: {error}") from error
            time.sleep(0.2)
    stage.figure("ready after", f"{time.perf_counter() - begin:.1f} s")
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 64}
    stage.commands.append(f"curl {base}/v1/chat/completions -d {shlex.quote(json.dumps(body))}")
    answered = httpx.post(f"{base}/v1/chat/completions", json=body, timeout=120)
    if answered.status_code != 200:
        raise StageFailedError(f"the server answered {answered.status_code}: {answered.text[:200]}")
    stage.quote = answered.json()["choices"][0]["message"]["content"]
    stage.figure("tokens", str(answered.json()["usage"]["total_tokens"]))
    if "Paris" not in stage.quote:
        raise StageFailedError(f"the answer does not name Paris: {stage.quote!r}")
    return "Paris, over HTTP"


STAGES: list[tuple[str, str, Callable[[Stage], str]]] = [
    ("The machine", "What there is to work with.", look_at_the_machine),
    ("Pull", "A real instruct model into the store, every byte checked.", get_a_model),
    ("Show", "What the file says of itself.", see_what_it_is),
    ("Ask", QUESTION, ask_it),
    ("Customise", "A Modelfile gives it a system message and its own sampling.", give_it_a_role),
    ("Measure", "Perplexity of the opening of Alice in Wonderland, windows as llama.cpp takes them.", measure_it),
    (
        "Curate",
        "Raw pages and rows to clean text: extracted, judged, no copies, no personal data.",
        curate_text,
    ),
    ("Tokenizer", "One of its own for that text, beside the default model's.", train_a_tokenizer),
    ("Pretrain", "A new model on that text, packed into token shards.", pretrain_one),
    (
        "Fine-tune",
        "LoRA on 394 definitions of the Devil's Dictionary: how does it define a word that is not among them?",
        tune_it,
    ),
    ("Serve", "The same question to a server, in OpenAI's protocol.", serve_it),
]


def run_stages() -> list[Stage]:
    """Run the stages in order up to the first that fails."""
    stages = []
    for title, why, work in STAGES:
        stage = Stage(title, why)
        stages.append(stage)
        print(f"\n── {title}: {why}", file=sys.stderr)
        begin = time.perf_counter()
        try:
            stage.result = work(stage)
        except StageFailedError as error:
            stage.result, stage.failed = str(error), True
        stage.seconds = time.perf_counter() - begin
        if stage.failed:
            break
    return stages


def print_table(stages: list[Stage]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("Stage", "Time", "Result", title="tokenmill demo")
    for stage in stages:
        mark = "[red]✗[/red]" if stage.failed else "[green]✓[/green]"
        table.add_row(f"{mark} {stage.title}", f"{stage.seconds:.1f} s", escape(stage.result))
    Console().print(table)


def write_report(stages: list[Stage], folder: Path) -> Path:
    """The HTML report and the figures behind it. What came from a model is escaped by the template engine."""
    from tokenmill.core.html import render_page, write_page

    page = render_page(
        (HERE / "demo_report.html.jinja").read_text(encoding="utf-8"),
        stages=stages,
        failed=any(stage.failed for stage in stages),
        total=sum(stage.seconds for stage in stages),
        longest=max(stage.seconds for stage in stages),
        model=MODEL,
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    report = folder / "report.html"
    write_page(report, page)
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    return report


def main() -> int:
    os.environ.setdefault("PYTHONUTF8", "1")
    stages = run_stages()
    folder = RUNS / f"{datetime.now():%Y-%m-%d_%H%M%S}-demo"
    report = write_report(stages, folder)
    print_table(stages)
    print(f"Report: {report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report}")
    return int(any(stage.failed for stage in stages))


if __name__ == "__main__":
    raise SystemExit(main())
