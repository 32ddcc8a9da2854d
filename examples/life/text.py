"""Raw text becomes clean text, a tokenizer of its own, token shards, and a model that has seen nothing else."""

from __future__ import annotations

from life.stage import MODEL, QUICK, Stage, StageFailedError, metrics

RAW = "raw"  # pages and rows made of that book, with all that raw text has: copies, noise, addresses, broken lines
CURATED = "../runs/curated"
TOKENIZER, SHARDS = "../runs/tokenizer", "../runs/shards"


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
    length = "steps=20" if QUICK else "steps=200"
    run = stage.train("pretrain", "size=tiny", f"data={SHARDS}", f"tokenizer={TOKENIZER}", length)
    stage.quote = stage.answer("FRIENDSHIP, n.", run["model"], "--temperature", "0.7", "--seed", "1", tokens=80)
    bits = min(row["eval_bits_per_byte"] for row in metrics(run) if "eval_bits_per_byte" in row)
    if bits > (3.3 if QUICK else 2.6):
        raise StageFailedError(f"{bits:.2f} bits per byte of held-out text: it has learned too little")
    return f"{bits:.2f} bits per byte of text it has not seen; untrained: 8"
