"""A model is found, looked at, asked, given a role, and measured."""

from __future__ import annotations

from life.stage import MODEL, QUESTION, TEXT, Stage, StageFailedError


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
    result = stage.tokenmill("eval", "ppl", "--model", MODEL, "--text", TEXT, "--ctx", "256")
    stage.figure("perplexity", f"{result['ppl']:.2f} ± {result['stderr']:.2f}")
    stage.figure("bits per byte", f"{result['bits_per_byte']:.3f}")
    stage.figure("tokens scored", str(result["tokens"]))
    return f"perplexity {result['ppl']:.2f}"
