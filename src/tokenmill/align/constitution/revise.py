"""Generate, critique, revise: a prompt's way to a transcript, all prompts side by side so that models see batches.

Every question is one message that holds all that it is about, after examples of the same form: small models follow that
far better than a long conversation about their own words. Which principles a prompt meets is drawn by a hash of seed,
prompt and sample, so the same command asks the same questions, and those that were answered are not asked again.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tokenmill.align.constitution.rules import Constitution, Principle, Prompt
from tokenmill.core.endpoint import Answer

Message = dict[str, str]
Progress = Callable[[str, int, int], None]
_LABEL = re.compile(
    r"\A\s*(?:here(?:'s| is)[^\n:]{0,60}|"
    r"(?:(?:revised|better|new|improved) )?(?:answer|response|revision|critique)):\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?…][\"')\]]*(?=\s|\Z)")


class Asker(Protocol):
    """What answers questions, a batch at a time: a server (:class:`Endpoint`), a model here (:class:`LocalAnswers`)."""

    def ask_all(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """An answer to each body of a chat request, in order."""
        ...


@dataclass(frozen=True)
class Options:
    """How much is asked, and how it is sampled."""

    samples: int = 1
    """First answers to each prompt."""
    rounds: int = 1
    """Critiques and revisions of each answer, one after the other, each by another principle while there are any."""
    max_tokens: int = 128
    """Of every answer, critique and revision."""
    temperature: float = 0.7
    """Of first answers; critics and revisers are asked at half of it."""
    top_p: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Round:
    """One critique and what was made of it."""

    principle: str
    critique: str
    revision: str
    finish_reason: str


@dataclass
class Transcript:
    """What became of one answer to one prompt."""

    prompt: str
    sample: int
    harmless: bool
    first: str
    rounds: list[Round] = field(default_factory=list)

    @property
    def latest(self) -> str:
        """The answer as it stands after all rounds so far."""
        return self.rounds[-1].revision if self.rounds else self.first


def revise(
    prompts: Sequence[Prompt],
    constitution: Constitution,
    model: tuple[str, Asker],
    critic: tuple[str, Asker],
    options: Options,
    progress: Progress | None = None,
) -> list[Transcript]:
    """Transcripts, those of a prompt together.

    Args:
        model: who answers the prompts: a name and what to ask. critic: who critiques and revises; may be the same.
    """
    asked = [(prompt, sample) for prompt in prompts for sample in range(options.samples)]
    steps, done = len(asked) * (1 + 2 * options.rounds), 0

    def answers(who: tuple[str, Asker], bodies: list[dict[str, Any]]) -> list[Answer]:
        nonlocal done
        found = who[1].ask_all([{"model": who[0], **body} for body in bodies])
        done += len(found)
        if progress is not None:
            progress("answers", done, steps)
        return found

    first = answers(model, [_body([_user(prompt.prompt)], sample, options) for prompt, sample in asked])
    transcripts = [
        Transcript(prompt.prompt, sample, not prompt.refuse, whole_sentences(answer))
        for (prompt, sample), answer in zip(asked, first, strict=True)
        if answer.finish_reason != "refused"
    ]
    cooler = replace(options, temperature=options.temperature / 2)
    for number in range(options.rounds):
        drawn = [(one, draw_principles(constitution, one, options)[number]) for one in transcripts]
        talks = [critique_talk(constitution, principle, one) for one, principle in drawn]
        bodies = [
            _body(talk, one.sample, cooler, constitution.stop) for talk, one in zip(talks, transcripts, strict=True)
        ]
        said = [clean(whole_sentences(answer)) for answer in answers(critic, bodies)]
        talks = [revision_talk(constitution, p, one, critique) for (one, p), critique in zip(drawn, said, strict=True)]
        bodies = [
            _body(talk, one.sample, cooler, constitution.stop) for talk, one in zip(talks, transcripts, strict=True)
        ]
        for (one, principle), critique, answer in zip(drawn, said, answers(critic, bodies), strict=True):
            one.rounds.append(Round(principle.name, critique, clean(answer.text), answer.finish_reason))
    return transcripts


def draw_principles(constitution: Constitution, transcript: Transcript, options: Options) -> list[Principle]:
    """A principle for each round: all of them in a drawn order, then in another."""
    said = json.dumps([options.seed, transcript.prompt, transcript.sample]).encode("utf-8", "surrogatepass")
    draw = random.Random(hashlib.sha256(said).digest())
    drawn: list[Principle] = []
    while len(drawn) < options.rounds:
        drawn += draw.sample(constitution.principles, len(constitution.principles))
    return drawn[: options.rounds]


def critique_talk(constitution: Constitution, principle: Principle, transcript: Transcript) -> list[Message]:
    """The conversation that asks for a critique."""
    talk = []
    for shown in constitution.examples_for(principle):
        talk += [_user(_critique(principle, shown.prompt, shown.answer)), _assistant(shown.critique)]
    return [*talk, _user(_critique(principle, transcript.prompt, transcript.latest))]


def revision_talk(
    constitution: Constitution, principle: Principle, transcript: Transcript, critique: str
) -> list[Message]:
    """The conversation that asks for a revision."""
    talk = []
    for one in constitution.examples_for(principle):
        talk += [_user(_revision(principle, one.prompt, one.answer, one.critique)), _assistant(one.revision)]
    return [*talk, _user(_revision(principle, transcript.prompt, transcript.latest, critique))]


def _critique(principle: Principle, prompt: str, answer: str) -> str:
    return f"Request: {prompt}\n\nAnswer: {answer}\n\n{principle.critique}"


def _revision(principle: Principle, prompt: str, answer: str, critique: str) -> str:
    return f"Request: {prompt}\n\nAnswer: {answer}\n\nCritique: {critique}\n\n{principle.revision}"


def clean(text: str) -> str:
    """Without the heading that models put before what they were asked for ("Here is a better answer:")."""
    return _LABEL.sub("", text, count=1).strip()


def whole_sentences(answer: Answer) -> str:
    """The text; of one that was cut off, up to its last whole sentence if it has one."""
    text = answer.text.strip()
    if answer.finish_reason != "length":
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _body(messages: list[Message], sample: int, options: Options, stop: Sequence[str] = ()) -> dict[str, Any]:
    """A chat request's body, but for the model's name."""
    asked = {
        "messages": messages,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "seed": options.seed * 1_000_003 + sample,
    }
    return asked | ({"stop": list(stop)} if stop else {})


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
