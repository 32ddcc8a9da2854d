"""OpenAI's HTTP interface: chat and text completions, responses, embeddings, models; vLLM's tokenize, detokenize and
score.

Shapes follow https://platform.openai.com/docs/api-reference, further sampling fields vLLM's. Every field of a request
is honoured or refused with a reason; the few that change nothing are named in ``schemas.HABITS``.
"""

from fastapi import APIRouter

from tokenmill.serve.description import refusals
from tokenmill.serve.openai import chat, completions, embeddings, models, responses, score, shapes, tokens
from tokenmill.serve.openai.errors import error_body

router = APIRouter()
for part in (chat, completions, embeddings, models, responses, score, tokens):
    router.include_router(part.router, responses=refusals(shapes.Error))

__all__ = ["error_body", "router"]
