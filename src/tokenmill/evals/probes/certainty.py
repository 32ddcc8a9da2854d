"""Whether a model agrees with itself, whether its probabilities mean what they say, and what an answer costs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from tokenmill.evals.calibration import reliability
from tokenmill.evals.probes.finding import Case, Finding, Options, share, shipped
from tokenmill.evals.subject import Ask, Progress, Subject, Writing
from tokenmill.evals.tasks.aggregate import mean_stderr

_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


def short_answer(text: str, answers: Sequence[str]) -> str:
    """What a reply comes to: one of the accepted answers if it stands in it as words; where those are numbers the last
    number; else its first line, folded."""
    numbers = [one.replace(",", "") for one in _NUMBER.findall(text)]
    if all(_NUMBER.fullmatch(one) for one in answers):
        return numbers[-1] if numbers else ""
    folded = re.sub(r"[^\w ]", " ", text.lower())
    for answer in answers:
        if re.search(rf"\b{re.escape(answer.lower())}\b", folded):
            return answers[0].lower()
    lines = [" ".join(line.split()) for line in folded.splitlines() if line.strip()]
    return lines[0] if lines else ""


def consistency(subject: Subject, options: Options, progress: Progress | None = None) -> Finding:
    """How often drawn answers to one question come to the same, and what their majority is worth (Wang et al. 2022,
    arXiv 2203.11171)."""
    rows = shipped("questions", ("question", "answers"), options.limit)
    asks = [Ask(messages=({"role": "user", "content": row["question"]},)) for row in rows]
    how = Writing(options.max_tokens, options.temperature, samples=options.samples, seed=options.seed)
    replies = subject.write(asks, how, progress)
    cases, alike, single = [], [], []
    for row, said in zip(rows, replies, strict=True):
        found = [short_answer(reply.text, row["answers"]) for reply in said]
        most, votes = Counter(found).most_common(1)[0]
        target = row["answers"][0].lower()
        alike.append(votes / len(found))
        single.append(sum(one == target for one in found) / len(found))
        details = {"answers": found, "target": target, "share": votes / len(found)}
        cases.append(Case(row["id"], row["question"], said[0].text, most == target, details))
    figures = {"accuracy_single": mean_stderr(single)[0], "accuracy_majority": share(cases)[0]}
    return Finding("consistency", "answers that agree", *mean_stderr(alike), figures, tuple(cases))


def calibration(subject: Subject, options: Options, progress: Progress | None = None) -> Finding:
    """Expected calibration error on questions of four choices: how far the probability of the likeliest choice (among
    the four) is from how often it is right."""
    rows = shipped("choices", ("question", "choices", "answer"), options.limit)
    pairs = [
        (Ask(text=f"Question: {row['question']}\nAnswer:"), f" {choice}") for row in rows for choice in row["choices"]
    ]
    found = iter(subject.likelihoods(pairs, progress))
    cases, confidences = [], []
    for row in rows:
        logprobs = [next(found).logprob for _ in row["choices"]]
        top = max(logprobs)
        weights = [math.exp(one - top) for one in logprobs]
        best = max(range(len(weights)), key=weights.__getitem__)
        confidences.append(weights[best] / sum(weights))
        details = {"confidence": confidences[-1], "target": row["choices"][row["answer"]]}
        cases.append(Case(row["id"], row["question"], row["choices"][best], best == row["answer"], details))
    hits = [float(case.right) for case in cases]
    bins = reliability(confidences, hits, low=0.0)
    error = sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / len(cases)
    table = (
        "As sure as it is right",
        ("as sure as", "is right", "questions"),
        [(f"{one.confidence:.0%}", f"{one.accuracy:.0%}", str(one.count)) for one in bins],
    )
    accuracy, stderr = share(cases)
    figures = {"accuracy": accuracy, "accuracy_stderr": stderr, "mean_confidence": sum(confidences) / len(cases)}
    return Finding("calibration", "expected calibration error", error, 0.0, figures, tuple(cases), (table,))


def cost(subject: Subject, options: Options, progress: Progress | None = None) -> Finding:
    """Tokens of an answer and of a right answer; money, where a price is given."""
    rows = shipped("questions", ("question", "answers"), options.limit)
    asks = [Ask(messages=({"role": "user", "content": row["question"]},)) for row in rows]
    replies = [one[0] for one in subject.write(asks, Writing(options.max_tokens, seed=options.seed), progress)]
    cases = tuple(
        Case(
            row["id"],
            row["question"],
            reply.text,
            short_answer(reply.text, row["answers"]) == row["answers"][0].lower(),
            {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens},
        )
        for row, reply in zip(rows, replies, strict=True)
    )
    written = [float(reply.completion_tokens) for reply in replies]
    read = sum(reply.prompt_tokens for reply in replies)
    right = sum(case.right for case in cases)
    figures: dict[str, float | int | None] = {
        "prompt_tokens": read / len(cases),
        "tokens_per_right_answer": sum(written) / right if right else None,
        "cut_off": sum(reply.finish_reason == "length" for reply in replies),
    }
    if options.price is not None:
        into, out = options.price
        spent = (read * into + sum(written) * out) / 1e6
        figures |= {"price_of_1000_answers": 1000 * spent / len(cases)}
        figures |= {"price_of_1000_right_answers": 1000 * spent / right if right else None}
    notes = () if any(written) else ("the server does not say how many tokens it wrote",)
    return Finding("cost", "tokens per answer", *mean_stderr(written), figures, cases, (), notes)
