"""Writes docs/benchmarks.md and its plot from the files in results/. A test runs this and compares.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLOURS = {"tokenmill": "#2563eb", "llama.cpp": "#d97706", "vllm": "#7c3aed"}
BAR, GAP, LEFT, WIDTH, RIGHT = 16, 10, 170, 420, 150

INTRODUCTION = """\
# Benchmarks

<!-- Written by benchmarks/page.py from benchmarks/results/; change it there. -->

Every figure stands beside a peer's that was taken in the same run: ours, then each peer's, then ours again, with the
same weights, threads bound to the same cores, the same prompt and answer lengths. A ratio is taken within a round; the
median of the rounds is shown. The roof is how fast the machine streams as many bytes as the weights have, measured in
the same run, over the bytes that a token reads (weights, and the text so far in a cache of 16 bit); it bounds batch 1.
llama.cpp is given the very file, and at batch 1 the better of its two benchmark tools counts. vLLM reads the same
weights in bfloat16. The load is how many programs wanted a core when it ended: where it is far above the threads,
others ran too, and the rates are no more than a share of what the machine can do.
"""


def load(name: str) -> dict[str, Any]:
    """A result file; empty where it was not measured."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def peers_section(results: dict[str, Any]) -> str:
    """Every shape: ours, each peer's, and the ratios."""
    lines = []
    for row in results["rows"]:
        shape = [row["format"], str(row["batch"]), f"{row['prompt_len']} + {row['gen_len']}"]
        ours = [f"{row['prefill_tok_s']:.0f}", f"{row['decode_tok_s']:.1f}", "", "", _percent(row)]
        lines.append([*shape, "**tokenmill**", *ours])
        for name, peer in row["peers"].items():
            rates = [f"{peer['prefill_tok_s']:.0f}", f"{peer['decode_tok_s']:.1f}"]
            ratios = [f"{peer['prefill_ratio']:.2f}", f"{peer['decode_ratio']:.2f}"]
            lines.append([*shape, name, *rates, *ratios, _percent(peer)])
    header = [
        "file",
        "batch",
        "tokens",
        "program",
        "prefill tok/s",
        "decode tok/s",
        "ours/its prefill",
        "ours/its decode",
    ]
    return (
        f"## {results['model']} beside llama.cpp and vLLM\n\n{conditions(results)}\n\n"
        "![Tokens a second while writing](benchmarks-decode.svg)\n\n"
        f"{table([*header, 'of the roof'], lines)}\n"
    )


def conditions(results: dict[str, Any]) -> str:
    """What it was measured with. Rows that were taken on different machines or programs each say so."""
    loads: dict[tuple[str, str], list[float]] = {}
    for row in results["rows"]:
        machine = row["machine"]
        programs = ", ".join(f"{peer['name']} {peer['version']}" for peer in row["programs"])
        line = (
            f"Measured on {machine['cpu']} ({', '.join(machine['features'])}), threads: {row['threads']}, "
            f"{machine['memory_gb']} GB, {machine['system']}; tokenmill {machine['tokenmill']} computing in "
            f"{row['dtype']}, torch {machine['torch']}; {programs}."
        )
        loads.setdefault((line, row["note"]), []).append(machine["load"])
    return "\n\n".join(
        f"{line} Load of the machine: {' to '.join(map(str, sorted({min(found), max(found)})))}. {note}".rstrip()
        for (line, note), found in loads.items()
    )


def _percent(figures: dict[str, Any]) -> str:
    return f"{100 * figures['share_of_roof']:.0f} %" if "share_of_roof" in figures else ""


def plot(results: dict[str, Any]) -> str:
    """Horizontal bars of decoding speed, a group a shape, with a line at the roof where there is one."""
    groups = []
    for row in results["rows"]:
        label = f"{row['format']}, batch {row['batch']}, {row['prompt_len']} + {row['gen_len']}"
        bars = {"tokenmill": row["decode_tok_s"]} | {n: p["decode_tok_s"] for n, p in row["peers"].items()}
        groups.append((label, bars, row.get("roof_tok_s")))
    most = max(max([*bars.values(), roof or 0]) for _, bars, roof in groups)
    parts, y = [], 30
    for label, bars, roof in groups:
        top = y
        for name, value in bars.items():
            length = WIDTH * value / most
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}">{value:.1f} {name}</text>')
            y += BAR + 2
        parts.append(f'<text x="{LEFT - 8}" y="{(top + y) / 2 + 3:.1f}" text-anchor="end">{escape(label)}</text>')
        if roof:
            x = LEFT + WIDTH * roof / most
            parts.append(f'<path d="M{x:.1f} {top - 3}V{y}" stroke="#dc2626" stroke-dasharray="3 2"/>')
            parts.append(f'<text x="{x + 4:.1f}" y="{top - 4}" fill="#dc2626">roof {roof:.0f}</text>')
        y += GAP + BAR
    size = f'width="{LEFT + WIDTH + RIGHT}" height="{y}" viewBox="0 0 {LEFT + WIDTH + RIGHT} {y}"'
    style = "font-family:sans-serif;font-size:11px;background:#fff"
    title = f"Tokens a second while writing, {results['model']}"
    head = f'<text x="8" y="14" font-weight="bold">{escape(title)}</text>'
    body = "\n".join([head, *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}" role="img">\n{body}\n</svg>\n'


def serving_section(overhead: dict[str, Any], promises: dict[str, dict[str, Any]]) -> str:
    """What the server promises, and what was measured."""
    rows = []
    if overhead:
        rates = (
            f"{overhead['engine_tok_s']:.1f} tok/s in the engine, {overhead['server_tok_s']:.1f} over HTTP, "
            f"processor time {100 * overhead['cpu_overhead']:+.1f} % (threads: {overhead['threads']}, "
            f"load: {overhead['machine']['load']})"
        )
        rows.append(
            [
                f"HTTP and scheduling at batch {overhead['batch']}",
                f"less than {100 * overhead['limit']:.0f} % of the engine's time",
                f"{100 * overhead['overhead']:.1f} %; {rates}",
                _kept(overhead),
            ]
        )
    if stall := promises.get("stall"):
        pair = stall["rounds"][len(stall["rounds"]) // 2]
        shown = f"{stall['ratio']:.2f}; {pair['p99_itl_ms']:.0f} ms and {pair['p99_itl_with_prompt_ms']:.0f} ms"
        limit = f"at most {stall['limit']:.0f} times"
        rows.append(
            ["99th percentile between tokens of four streams while 4,000 tokens arrive", limit, shown, _kept(stall)]
        )
    if queue := promises.get("queue"):
        refused = sum(queue["refused"].values())
        shown = f"{queue['completed']} answered, {refused} refused, {queue['lost']} lost, {queue['wrong']} mixed up"
        rows.append(["64 streams at once, a queue of 32", "each answered or refused", shown, _kept(queue)])
    if prefix := promises.get("prefix"):
        shown = f"{prefix['ratio']:.1f} times; {prefix['computed']} of {prefix['asked']} tokens computed"
        limit = f"at least {prefix['limit']:.0f} times less"
        rows.append(["200 prompts that share 1,000 tokens", limit, shown, _kept(prefix)])
    return f"## The server under load\n\n{table(['what', 'promised', 'measured', ''], rows)}\n"


def _kept(figures: dict[str, Any]) -> str:
    return "kept" if figures["passed"] else "**missed**"


def curation_section(figures: dict[str, Any]) -> str:
    """Filters and deduplication beside datatrove, and a whole corpus through a whole recipe."""
    rows = [["**tokenmill**", *_curated(one, figures["documents"])] for one in figures["ours"]]
    rows.insert(1, ["datatrove", *_curated(figures["peer"], figures["documents"])])
    header = ["program", "seconds", "documents a second", "processor seconds", "memory at the peak", "documents left"]
    text = (
        f"## Curation beside datatrove\n\n{figures['documents']:,} documents, {figures['megabytes']} MB of "
        f"{figures['what']}; {', '.join(figures['steps'])}; two processes each, on {figures['cores']} cores "
        f"({figures['cpu']}), datatrove {figures['peer_version']}. From start to files on disk; ours ran before and "
        f"after the peer. Load of the machine: {figures['load']}. **{figures['ratio']:.1f} times** the peer's "
        f"documents a second, with {1 / figures['ratio_cpu']:.0%} of its processor time. The documents that are left "
        "differ, since a word is not the same to both: the peer's come from spaCy.\n\n"
        f"{table(header, rows)}\n"
    )
    if whole := figures.get("whole"):
        text += (
            f"\nA whole corpus: {whole['documents']:,} documents, {whole['characters']:,} characters "
            f"({whole['what']}) through the recipe `{whole['recipe']}` on {figures['cores']} cores in "
            f"{whole['seconds']:.0f} s under a load of {whole['load']}; {whole['peak_mb']:,} MB at the peak over all "
            f"processes; {whole['kept']:,} documents stay, {whole['quarantined']:,} could not be read.\n"
        )
    return text


def _curated(one: dict[str, Any], documents: int) -> list[str]:
    rate = documents / one["seconds"]
    return [
        f"{one['seconds']:.1f}",
        f"{rate:.0f}",
        f"{one['cpu_seconds']:.1f}",
        f"{one['peak_mb']} MB",
        str(one["kept"]),
    ]


def alignment_section(figures: dict[str, Any], constitution: dict[str, Any], tools: dict[str, Any]) -> str:
    """Planted preferences, constitutional pairs and tool calls, before and after."""
    parts = [_planted(figures)] if figures else []
    parts += [_constitutional(constitution)] if constitution else []
    parts += [_tool_calls(tools)] if tools else []
    return "\n".join(["## What alignment does to the default model\n", *parts])


def _planted(figures: dict[str, Any]) -> str:
    header = ["recipe", "steps", "held-out pairs won", "chosen likelier", "answers as asked", "an answer after"]
    rows = [
        [
            f"`{name}`",
            str(one["steps"]),
            _share(one["accuracy"]),
            f"{_share(one['likelier_before'])} → {_share(one['likelier_after'])}",
            f"{_share(one['asked_for_before'])} → {_share(one['asked_for_after'])}",
            one["example_after"].partition(" > ")[2].replace("\n", " ").replace("|", "\\|"),
        ]
        for name, one in figures["policies"].items()
    ]
    reward, pairs = figures["reward"], figures["pairs"]
    return (
        f"Planted preferences (`benchmarks/alignment.py`): the chosen answer begins with a word, the rejected one does "
        f"not; {pairs['training']} pairs, {pairs['held_out']} held out about things that no training pair names, "
        f"on {figures['model']}. Won: the policy gained more for the chosen answer "
        "than for the rejected one, against the model that it began as. Likelier: by the mean over tokens. As asked: "
        f"its own greedy answers begin with the word.\n\n{table(header, rows)}\n\nThe recipe `reward` scores, after "
        f"{reward['steps']} steps, the chosen answer higher in {_share(reward['accuracy'])} of the held-out pairs "
        f"({_share(reward['accuracy_longer'])} where it is the longer one, {_share(reward['accuracy_shorter'])} where "
        f"the shorter one), with a log loss of {reward['log_loss']:.3f}.\n"
    )


def _constitutional(figures: dict[str, Any]) -> str:
    sorts = {
        "harmful": ("requests declined", "declined_harmful"),
        "harmless": ("requests answered", "answered_harmless"),
    }
    rows = [
        [f"{sort} {said} ({figures['held_out'][sort]})", *(_share(figures[when][key]) for when in ("before", "after"))]
        for sort, (said, key) in sorts.items()
    ]
    return (
        f"Constitutional pairs (`benchmarks/constitution.py`): {figures['model']} is its own critic; "
        f"{figures['answers']} answers to ten red-team and six harmless prompts gave {figures['pairs']} pairs, "
        f"{figures['red_team_pairs']} of them on {figures['red_team_prompts_with_pairs']} of the ten red-team prompts. "
        f"{figures['steps']} steps of the recipe `constitutional` on them, measured on other prompts:\n\n"
        f"{table(['held out', 'before', 'after'], rows)}\n"
    )


def _tool_calls(figures: dict[str, Any]) -> str:
    names = {"call_match": "call right in all", "name_match": "right function", "valid": "calls that fit their schema"}
    names["restraint"] = "no call where none is needed"
    before, after = figures["before"], figures["after"]
    rows = [[said, _share(before.get(key)), _share(after.get(key))] for key, said in names.items()]
    return (
        f"Tool calls (`benchmarks/tools.py`): {figures['rows']['training']} made conversations, {figures['steps']} "
        f"steps of the recipe `tools`, {figures['rows']['held_out']} held-out requests:\n\n"
        f"{table(['', 'before', 'after'], rows)}\n"
    )


def training_section(figures: dict[str, Any]) -> str:
    """Training beside transformers: speed and memory of the same batch."""
    rows = []
    for one in figures["results"]:
        ours, theirs, ratio = one["tokenmill"], one["transformers"], one["ratio"]
        versions = ", ".join(f"{name} {number}" for name, number in theirs["versions"].items() if name != "torch")
        rows.append(
            [
                one["method"],
                versions,
                f"{ours['tok_s']:.0f}, {theirs['tok_s']:.0f}",
                f"{ratio['tok_s']:.2f}",
                f"{ours['peak_memory_mb'] / 1e3:.2f}, {theirs['peak_memory_mb'] / 1e3:.2f} GB",
                f"{ratio['peak_memory']:.2f}",
            ]
        )
    batch, machine = figures["results"][0], figures["machine"]
    return (
        "## Training\n\n"
        f"Steps of {batch['rows']} x {batch['length']} tokens of {figures['model']} in {batch['dtype']}, "
        f"taken in turn on {machine['cores']} cores ({machine['cpu']}, load {machine['load']}), ours first "
        "(`tokenmill bench train --model smollm2:135m --vs transformers,peft --json`).\n\n"
        f"{table(['method', 'beside', 'tokens/s', 'ratio', 'peak memory', 'ratio'], rows)}\n"
    )


def ppo_section(figures: dict[str, Any]) -> str:
    """A reward model's preference, learned by the policy."""
    reward, ended, kl = (figures[name] for name in ("held_out_reward", "ended_by_itself", "kl_of_an_answer"))
    rows = [
        ["reward", f"{reward['before']:.2f}", f"{reward['after']:.2f}"],
        ["answers that end by themselves", _share(ended["before"]), _share(ended["after"])],
    ]
    return (
        f"PPO (`benchmarks/ppo.py`): {figures['rollouts']} rollouts on {figures['model']} with a reward model that "
        f"prefers short answers (right on {_share(figures['reward_model_accuracy'])} of held-out pairs). In the last "
        f"rollouts an answer is {kl['last_rollouts']:.1f} nats from the reference, its target {kl['target']:.0f}.\n\n"
        f"{table(['held-out questions', 'before', 'after'], rows)}\n"
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"


def quantisation_section(figures: dict[str, Any]) -> str:
    """What each quantiser makes of the default model, and GPTQ beside llm-compressor's."""
    rows = []
    for name, one in figures.get("rows", {}).items():
        found = one["divergence"]
        rows.append(
            [
                name,
                f"{one['weight_bits']:.2f}",
                f"{one['bytes'] / 1e6:.0f} MB",
                f"{found['ppl']:.2f} ({100 * (found['ppl'] / found['original_ppl'] - 1):+.1f} %)",
                f"{found['kl']:.4f} ± {found['kl_stderr']:.4f}",
                f"{100 * found['agreement']:.1f} %",
                f"{one['seconds']:.0f} s",
            ]
        )
    header = ["method", "bits a weight", "size", "perplexity", "KL divergence", "same top token", "took"]
    machine = figures["machine"]
    text = (
        f"\n## Quantising the default model\n\nThe original is {figures['model']}'s file, unpacked. Calibrated with "
        f"{figures['samples']} documents of {figures['data']}, measured on {figures['windows']} windows of "
        f"{figures['text']}, second halves (`benchmarks/quantisation.py`; {machine['cpu']}, load {machine['load']}). "
        "KL in nats a token, from the original's distributions. Rows of 576 are no multiple of 128: groups of 128 are "
        f"groups of 64 in most of its layers.\n\n{table(header, rows)}\n"
    )
    if beside := figures.get("peer"):
        ours, theirs, seconds = beside["ours"], beside["theirs"], beside["seconds"]
        text += (
            "\nGPTQ of 4 bits in groups of 32 beside llm-compressor's on the same token ids, ours before and after it: "
            f"perplexity {ours['ppl']:.2f} and {theirs['ppl']:.2f} (the original's: {ours['original_ppl']:.2f}), KL "
            f"{ours['kl']:.4f} and {theirs['kl']:.4f}; {sum(seconds['ours']) / len(seconds['ours']):.0f} s and "
            f"{seconds['theirs']:.0f} s.\n"
        )
    return text


def parity_section(figures: dict[str, Any]) -> str:
    """Ours beside lm-eval on transformers: likelihoods, texts, accuracies."""
    ways = {"in_process": "lm-eval on our engine", "eval_tasks": "`eval tasks`", "over_http": "lm-eval, our server"}
    rows = []
    for way, said in ways.items():
        found = figures.get(way, {})
        tasks = {"parity_choice": found} if way == "eval_tasks" else found
        for task, one in tasks.items():
            accuracies = ", ".join(
                f"{name.partition(',')[0]} {one[name][0]:.3f} and {one[name][1]:.3f}" for name in one if "," in name
            )
            near = (
                f"{one['largest_difference']:.1e}" if "values" in one else f"{one['same_text']} of {one['rows']} same"
            )
            rows.append([said, task.removeprefix("parity_"), near, accuracies])
    return "\n".join(
        [
            "\n## Evaluation beside lm-eval\n",
            f"{figures['model']} in float32, {figures['rows']} rows, lm-eval {figures['lm_eval']} on transformers "
            f"{figures['transformers']} against ours (`benchmarks/eval_parity.py`). Differences are the largest of any "
            "log-likelihood, in nats; figures are theirs and ours.\n",
            table(["what", "task", "difference", "figures"], rows),
            "",
        ]
    )


def pages() -> dict[Path, str]:
    """Every file that is generated, with what belongs into it."""
    written, sections = {}, [INTRODUCTION]
    if results := load("peers.json"):
        sections.append(peers_section(results))
        written[ROOT / "docs" / "benchmarks-decode.svg"] = plot(results)
    overhead = load("overhead.json")
    promises = {name: found for name in ("stall", "queue", "prefix") if (found := load(f"{name}.json"))}
    if overhead or promises:
        sections.append(serving_section(overhead, promises))
    if curation := load("curation.json"):
        sections.append(curation_section(curation))
    if training := load("training.json"):
        sections.append(training_section(training))
    aligned = [load(f"{name}.json") for name in ("alignment", "constitution", "tools")]
    if any(aligned):
        sections.append(alignment_section(*aligned))
    if ppo := load("ppo.json"):
        sections.append(ppo_section(ppo))
    if quantised := load("quantisation.json"):
        sections.append(quantisation_section(quantised))
    if parity := load("eval_parity.json"):
        sections.append(parity_section(parity))
    return written | {ROOT / "docs" / "benchmarks.md": "\n".join(sections)}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
