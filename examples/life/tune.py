"""The default model learns a manner from examples, a preference from pairs, and brevity from a reward."""

from __future__ import annotations

import re

from life.stage import MODEL, QUICK, Stage, StageFailedError, metrics

DEFINITIONS = "data/definitions.jsonl"  # of Ambrose Bierce's Devil's Dictionary, 1911, as questions and answers
WORD = "homework"  # not among them
DEFINE = f'What does "{WORD}" mean?'
FORM = re.compile(r"[A-Z' -]+, n\. ")
PAIRS, HELD_OUT = "data/pairs.jsonl", "data/pairs-held-out.jsonl"  # one answer twice, with and without its opening
OPENING = "Certainly!"
PROMPTS = "data/prompts.jsonl"


def tune_it(stage: Stage) -> str:
    """The default model learns to define words as Ambrose Bierce did; the word asked for is not in the examples."""
    before = stage.answer(DEFINE, MODEL, tokens=60)
    length = ["steps=12" if QUICK else "epochs=1", "eval_every=12"]
    run = stage.train("lora", f"model={MODEL}", f"data={DEFINITIONS}", *length)
    after = stage.answer(DEFINE, MODEL, "--adapter", run["model"], tokens=60)
    stage.known["adapter"] = run["model"]
    stage.quote = f"{DEFINE}\n\nbefore: {before.strip()}\n\nafter: {after.strip()}"
    if FORM.match(before) or not FORM.match(after):
        raise StageFailedError(f"the answer should have the book's form after tuning and not before: {after!r}")
    return f"it defines as the book does: {after.split('. ')[0]}."


def prefer(stage: Stage) -> str:
    """DPO on planted pairs: of two answers the one that opens as a butler would; asked about things no pair names."""
    question = "Tell me about windows."
    before = stage.answer(question, MODEL, tokens=24)
    data = [f"data.path={PAIRS}", f"data.eval={HELD_OUT}"]
    size = ["steps=10", "seq_len=256", "batch_tokens=256", "lr=5e-4", "eval_every=5", "sample_tokens=0"]
    run = stage.train("dpo", f"model={MODEL}", *data, *size)
    after = stage.answer(question, MODEL, "--adapter", run["model"], tokens=24)
    stage.quote = f"{question}\n\nbefore: {before.strip()}\n\nafter: {after.strip()}"
    found = [row["eval_rewards/accuracies"] for row in metrics(run) if "eval_rewards/accuracies" in row]
    stage.figure("pairs never seen, chosen gained more", f"{100 * found[-1]:.0f} %")
    if found[-1] < 0.9 or not after.strip().startswith(OPENING):
        raise StageFailedError(f"{found[-1]:.0%} of the pairs, and the answer opens {after[:40]!r}")
    return f"{100 * found[-1]:.0f} % of unseen pairs; it opens with “{OPENING}”"


def reward_it(stage: Stage) -> str:
    """GRPO: it writes several answers to a question, and the shorter of them become likelier."""
    question = "Why do people like rivers?"
    before = stage.answer(question, MODEL, tokens=64)
    short = "{kind: length, unit: words, most: 12, slack: 30}"
    whole = "{kind: regex, pattern: '[^.!?]+[.!?]', whole: true}"  # one sentence that comes to its end
    reward = f"rewards=[{short}, {whole}]"
    much = ["policy.prompts=4", "policy.group=6", "policy.completion_tokens=48", "steps=20"]
    little = ["policy.prompts=3", "policy.group=4", "policy.completion_tokens=24", "steps=4"]
    size = [*(little if QUICK else much), "lr=5e-4", "sample_tokens=0", "eval_every=0"]
    run = stage.train("grpo", f"model={MODEL}", f"data={PROMPTS}", reward, *size)
    after = stage.answer(question, MODEL, "--adapter", run["model"], tokens=64)
    rewards = [row["reward"] for row in metrics(run) if "reward" in row]
    first, last = (sum(part) / len(part) for part in (rewards[:3], rewards[-3:]))
    stage.quote = f"{question}\n\nbefore: {before.strip()}\n\nafter: {after.strip()}"
    stage.figure("mean reward, first and last three rollouts", f"{first:.2f}, {last:.2f}")
    if last <= first and not QUICK:  # so few rollouts prove nothing
        raise StageFailedError(f"the reward did not rise: {first:.2f}, {last:.2f}")
    return f"reward {first:.2f} to {last:.2f}; {len(before.split())} words became {len(after.split())}"
