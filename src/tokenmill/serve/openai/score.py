"""``POST /v1/score``: what a reward model thinks of answers. vLLM's route and reply, with conversations besides.

Either ``messages``, a conversation that ends with an answer or several of them; or vLLM's ``text_1`` (prompts) and
``text_2`` (answers), of which a single prompt goes with every answer. Texts become turns of the model's own template.
Several names as ``model`` are an ensemble, whose scores ``voting`` makes one.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from tokenmill.align.reward_model import vote
from tokenmill.engine.reward import reward
from tokenmill.llm import LLM
from tokenmill.nn.scorer import Scorer
from tokenmill.serve.disconnect import unless_disconnected
from tokenmill.serve.errors import FieldError
from tokenmill.serve.openai import shapes, wire
from tokenmill.serve.openai.schemas import HABITS, MAX_PROMPTS, Strict
from tokenmill.serve.replies import reply
from tokenmill.serve.worker import Worker

router = APIRouter()
MAX_MEMBERS = 8
Name = Annotated[str, Field(min_length=1, max_length=512)]
Texts = str | Annotated[list[str], Field(max_length=MAX_PROMPTS)]


class ScoredMessage(Strict):
    role: str = Field(min_length=1, max_length=64)
    content: str


Conversation = Annotated[list[ScoredMessage], Field(min_length=1)]


class ScoreRequest(Strict):
    NEUTRAL = HABITS
    model: Name | Annotated[list[Name], Field(min_length=1, max_length=MAX_MEMBERS)]
    voting: Literal["mean", "min", "cautious"] = "mean"
    """Of an ensemble: the mean, the lowest, or the mean less the standard deviation."""
    messages: Conversation | Annotated[list[Conversation], Field(min_length=1, max_length=MAX_PROMPTS)] | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None


@router.post("/v1/score", responses={200: {"model": shapes.Scores}})
async def score(body: ScoreRequest, request: Request) -> Response:
    """One number a conversation; higher is better."""
    conversations = _conversations(body)
    names = [body.model] if isinstance(body.model, str) else body.model
    members, tokens = [], 0
    for name in names:
        worker = await wire.open_worker(request, name)
        if not isinstance(worker.llm.model, Scorer):
            raise FieldError("model", f"{worker.llm.name} writes text and scores none; /v1/score takes reward models")
        texts = await asyncio.to_thread(_texts, worker.llm, conversations)
        members.append(await unless_disconnected(request, _scored(worker, texts)))
        tokens += sum(map(len, texts))
    return reply(
        {
            "id": wire.new_id("score"),
            "object": "list",
            "created": int(time.time()),
            "model": ", ".join(names),
            "data": [
                {"index": i, "object": "score", "score": score, "members": [scores[i] for scores in members]}
                for i, score in enumerate(vote(members, body.voting))
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _conversations(body: ScoreRequest) -> list[list[dict[str, Any]]]:
    """What is to be scored; FieldError where the request says nothing, or both."""
    if body.messages is not None:
        if body.text_1 is not None or body.text_2 is not None:
            raise FieldError("messages", "goes without text_1 and text_2; give one of the two")
        first = body.messages[0]
        several = [body.messages] if isinstance(first, ScoredMessage) else body.messages
        return [[message.model_dump() for message in one] for one in several]  # type: ignore[union-attr]
    if body.text_1 is None or body.text_2 is None:
        raise FieldError("messages", "is missing: give conversations, or prompts (text_1) and answers (text_2)")
    prompts = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    answers = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if not answers:
        raise FieldError("text_2", "is empty; give at least one answer")
    if len(prompts) == 1:
        prompts = prompts * len(answers)
    if len(prompts) != len(answers):
        raise FieldError(
            "text_1", f"{len(prompts)} prompts and {len(answers)} answers; give one prompt, or one for each"
        )
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _texts(llm: LLM, conversations: list[list[dict[str, Any]]]) -> list[list[int]]:
    """Token ids, as the model was trained to read them: without the beginning of a further turn."""
    template = llm.files.template
    return [
        llm.tokenizer.encode_chat(one, chat_template=template, add_generation_prompt=False) for one in conversations
    ]


async def _scored(worker: Worker, texts: list[list[int]]) -> list[float]:
    """A text at a time, so that a long request does not keep others waiting for all of it."""
    scores: list[float] = []
    for ids in texts:
        scores += await worker.call(partial(reward, worker.llm.model, [ids]))
    return scores
