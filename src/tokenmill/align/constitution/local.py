"""A model on this machine that answers what an :class:`~tokenmill.core.endpoint.Endpoint` answers: the same questions,
the same kept answers, the engine in place of a server.

Questions are asked in batches; each batch's answers are kept before the next begins, so a run that is killed loses one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenmill.core.answer_cache import Answer, AnswerCache
from tokenmill.core.errors import OutOfContextError
from tokenmill.engine.sampling_params import SamplingParams

Progress = Callable[[int, int], None]


class Facade(Protocol):
    """What is used of :class:`tokenmill.LLM`."""

    ctx_size: int

    def prompt_ids(self, prompt: Any) -> list[int]: ...

    def complete(self, prompts: Sequence[list[int]], params: SamplingParams) -> Sequence[Any]: ...


class LocalAnswers:
    """`load` is called with the first question that has no kept answer; ``cache`` has to be a folder of this model's
    own, since its name is all that says which model answered."""

    def __init__(self, load: Callable[[], Facade], cache: Path, *, batch_size: int = 16) -> None:
        self._load, self._answers, self.batch_size = load, AnswerCache(cache), batch_size
        self._llm: Facade | None = None

    def ask_all(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """An answer to each question (the body of a request), in order; ``refused`` where a prompt is too long."""
        found = [self._answers.get(question) for question in questions]
        waiting: dict[str, list[int]] = defaultdict(list)  # by all but what is said: those share a batch
        for place, (question, answer) in enumerate(zip(questions, found, strict=True)):
            if answer is None:
                waiting[json.dumps({**question, "messages": None}, sort_keys=True)].append(place)
        for places in waiting.values():
            params = _params(questions[places[0]])
            for begin in range(0, len(places), self.batch_size):
                batch = places[begin : begin + self.batch_size]
                answers = self._batch([questions[place] for place in batch], params)
                for place, answer in zip(batch, answers, strict=True):
                    found[place] = answer
                    if answer.finish_reason != "refused":
                        self._answers.put(questions[place], answer)
        return [answer for answer in found if answer is not None]

    def _batch(self, questions: Sequence[Mapping[str, Any]], params: SamplingParams) -> list[Answer]:
        if self._llm is None:
            self._llm = self._load()
        llm, answers = self._llm, [Answer("", "refused")] * len(questions)
        prompts = [llm.prompt_ids(question["messages"]) for question in questions]
        room = llm.ctx_size - (params.max_tokens or 0)
        fitting = [place for place, ids in enumerate(prompts) if len(ids) <= room]
        if not fitting:
            error = OutOfContextError(f"no prompt leaves {params.max_tokens} of {llm.ctx_size} tokens for its answer")
            return [Answer(str(error), "refused")] * len(questions)
        for place, done in zip(fitting, llm.complete([prompts[place] for place in fitting], params), strict=True):
            answers[place] = Answer(done.text, str(done.finish_reason))
        return answers


def _params(question: Mapping[str, Any]) -> SamplingParams:
    """How a request's body asks to be sampled."""
    return SamplingParams(
        temperature=question["temperature"],
        top_p=question["top_p"],
        max_tokens=question["max_tokens"],
        seed=question["seed"],
        stop=tuple(question.get("stop", ())),
    )
