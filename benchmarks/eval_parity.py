"""Are our likelihoods and accuracies lm-eval's? The same rows, weights and float32 on three ways, compared row by row.

- the reference: lm-eval's own class for transformers;
- in process: lm-eval on our engine (`EngineLM`), and `tokenmill eval tasks` on the same rows;
- over HTTP: lm-eval's ``local-completions`` against our server.

A choice task, a writing task and whole texts (rolling), made of rows that ship. Needs lm-eval[api] and transformers.

    python benchmarks/eval_parity.py --model smollm2:135m --rows 12 --out benchmarks/results/eval_parity.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

CHOICE = """\
task: parity_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{passage}}}}\\nQuestion: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITE = """\
task: parity_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{passage}}}}\\nQuestion: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """\
task: parity_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{passage}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
TASKS = {"parity_choice": CHOICE, "parity_write": WRITE, "parity_rolling": ROLLING}


def prepare(folder: Path, count: int) -> Path:
    """Rows and lm-eval's task files."""
    from tokenmill.evals.tasks.task import load_task

    rows = folder / "rows.jsonl"
    items = load_task("reading").items[:count]
    rows.write_text("".join(json.dumps(dict(item.fields)) + "\n" for item in items), encoding="utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(rows=rows), encoding="utf-8")
    return rows


def float32_folder(model: str, folder: Path) -> Path:
    """The model as a Hugging Face folder of float32, which everybody reads."""
    from tokenmill.models.load import load_model, load_tokenizer
    from tokenmill.store import Store

    path = Store().resolve(model, pull=True).path
    load_model(path, dtype="float32").save(folder)
    load_tokenizer(path).save(folder)
    return folder


def run_lm_eval(model: Any, folder: Path, tasks: list[str], **more: Any) -> dict[str, Any]:
    """lm-eval's results; ``model`` an object or a registered name."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return dict(lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **more))


def answers(found: dict[str, Any], task: str) -> list[Any]:
    """What the model said of each row, in order: likelihoods, or texts."""
    rows = sorted(found["samples"][task], key=lambda row: row["doc_id"])
    return [answer for row in rows for answer in row["filtered_resps"]]


def likelihoods(found: dict[str, Any], task: str) -> list[float]:
    return [float(one[0]) if isinstance(one, list | tuple) else float(one) for one in answers(found, task)]


def compared(reference: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """How far apart two results are."""
    report: dict[str, Any] = {}
    for task in ours["samples"]:
        if task == "parity_write":
            same = [a == b for a, b in zip(answers(reference, task), answers(ours, task), strict=True)]
            report[task] = {"rows": len(same), "same_text": sum(same)}
        else:
            here, there = likelihoods(ours, task), likelihoods(reference, task)
            apart = list(map(_distance, here, there))
            report[task] = {
                "values": len(here),
                "largest_difference": max(apart),
                "rows_above_1e-4": [n for n, one in enumerate(apart) if one > 1e-4],
            }
        named = ("acc,none", "acc_norm,none", "exact_match,none", "bits_per_byte,none")
        for name in named:
            if name in reference["results"][task]:
                report[task][name] = [reference["results"][task][name], ours["results"][task][name]]
    return report


def _distance(a: float, b: float) -> float:
    return abs(a - b)


def own_tasks(llm: Any, rows: Path) -> dict[str, Any]:
    """`eval tasks` on the same rows: likelihoods of all choices, accuracies."""
    from tokenmill.evals.local import LocalSubject
    from tokenmill.evals.subject import Identity
    from tokenmill.evals.tasks.run import Settings, run_task
    from tokenmill.evals.tasks.task import load_task

    definition = rows.with_name("own.yaml")
    definition.write_text(
        f'kind: choice\ndata: {rows.name}\nprompt: "{{{{ passage }}}}\\nQuestion: {{{{ question }}}}\\nAnswer:"\n',
        encoding="utf-8",
    )
    result = run_task(LocalSubject(llm, Identity("parity", "")), load_task(str(definition)), Settings(chat=False))
    return {
        "likelihoods": [value for sample in result.samples for value in sample.details["logprobs"]],
        "acc": result.summary["metrics"]["acc"]["value"],
        "acc_norm": result.summary["metrics"]["acc_norm"]["value"],
    }


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """Our server with the folder as the model ``parity``, in float32: address and name."""
    import uvicorn

    from tokenmill.serve.app import create_app
    from tokenmill.serve.settings import ServerSettings
    from tokenmill.store import Store

    with TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        store = Store(Path(scratch) / "models")
        store.create("parity", f"FROM {folder}\n", Path(scratch))
        app = create_app(ServerSettings(dtype="float32"), store)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}/v1/completions", "parity"
        finally:
            server.should_exit = True
            thread.join(30)


def tell(document: dict[str, Any], out: Path | None) -> None:
    """Print, and write where it is wanted."""
    text = json.dumps(document, indent=1) + "\n"
    print(text, flush=True)
    if out:
        out.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    from importlib.metadata import version

    from tokenmill import LLM
    from tokenmill.evals.lm_eval_model import EngineLM

    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        rows = prepare(work, given.rows)
        folder = float32_folder(given.model, work / "model")
        hf = {"pretrained": str(folder), "dtype": "float32"}
        reference = run_lm_eval("hf", work, list(TASKS), model_args=hf, device="cpu", batch_size=4)
        llm = LLM(folder, dtype="float32")
        document: dict[str, Any] = {
            "model": given.model,
            "rows": given.rows,
            "lm_eval": version("lm_eval"),
            "transformers": version("transformers"),
            "in_process": compared(reference, run_lm_eval(EngineLM(llm), work, list(TASKS))),
        }
        own = own_tasks(llm, rows)
        theirs = likelihoods(reference, "parity_choice")
        document["eval_tasks"] = {
            "values": len(theirs),
            "largest_difference": max(map(_distance, own["likelihoods"], theirs)),
            "acc,none": [reference["results"]["parity_choice"]["acc,none"], own["acc"]],
            "acc_norm,none": [reference["results"]["parity_choice"]["acc_norm,none"], own["acc_norm"]],
        }
        del llm
        tell(document, given.out)  # servers take longest
        with served(folder) as (address, name):
            remote = {"base_url": address, "model": name, "tokenizer": str(folder), "tokenizer_backend": "huggingface"}
            asked = ["parity_choice", "parity_write"]  # lm-eval asks servers no rolling likelihoods of whole texts
            over = run_lm_eval("local-completions", work, asked, model_args=remote)
            document["over_http"] = compared(reference, over)
    tell(document, given.out)


if __name__ == "__main__":
    main()
