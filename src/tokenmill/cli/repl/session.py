"""What a chat knows: the model's name, the conversation, the settings, and what is left out when the context is
full.

Holds no model and imports no torch. When the conversation outgrows the context, the oldest turns are left out, the
system message stays, and the caller gets told how many, because a model that silently forgets looks like a model that
lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import OutOfContextError, UsageError

if TYPE_CHECKING:
    from tokenmill.store import ModelFiles

Message = dict[str, str]

# The part of the context kept free for the answer: without it a full context could be read but not answered.
ANSWER_SHARE = 8


@dataclass
class Session:
    """The state of one chat. Slash commands change it, the loop reads it."""

    model: str
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """What flags and ``/set parameter`` chose, by the names of ``parameters``; what is absent comes from the model."""
    format: str | dict[str, Any] | None = None
    verbose: bool = False
    wordwrap: bool = True
    history: bool = True
    adapters: list[str] = field(default_factory=list)
    local: bool = False
    """Load models in this process, whatever servers there are."""
    deterministic: bool = False
    """The same logits to the last bit, whatever else is computed beside."""
    kv_cache_dtype: str = "auto"
    """How keys and values are kept: auto, fp32, bf16, int8."""

    @property
    def ctx_size(self) -> int | None:
        """The context asked for; None leaves it to the model."""
        return self.options.get("num_ctx")

    def adopt(self, files: ModelFiles) -> None:
        """Take the system message and the opening turns of a Modelfile; a system message given by the person stays."""
        if self.system is None:
            self.system = files.system
        self.messages = [dict(message) for message in files.messages] + self.messages

    def prompt(self, messages: Sequence[Message] | None = None) -> list[Message]:
        """What the model is asked: the system message first, then the conversation."""
        # an empty system message is sent too: it is the person's, and takes the place of the model's own
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*opening, *(self.messages if messages is None else messages)]

    def plain_prompt(self, files: ModelFiles) -> str:
        """What a model without a chat template is asked: the newest message as it stands.

        UsageError for a system message or a Modelfile's turns: it cannot be given them.
        """
        if self.system or files.messages:
            raise UsageError(f"{self.model} has no chat template, so it takes no system message and no MESSAGE turns")
        return self.messages[-1]["content"]

    def fit(self, count: Callable[[list[Message]], int], ctx_size: int) -> tuple[list[Message], int]:
        """The prompt that leaves room for an answer, and how many of the oldest messages it leaves out.

        `count` gives the tokens of a conversation. The newest message always stays; when it alone is too long,
        OutOfContextError says by how much.
        """
        limit = ctx_size - ctx_size // ANSWER_SHARE
        for start in self._turn_starts():
            prompt = self.prompt(self.messages[start:])
            tokens = count(prompt)
            if tokens <= limit:
                return prompt, start
        raise OutOfContextError(
            f"the message is {tokens} tokens long with its template; a context of {ctx_size} tokens leaves {limit} for "
            "it (the rest is kept for the answer). Shorten it, or give a larger --ctx-size where the model allows it"
        )

    def _turn_starts(self) -> list[int]:
        """Where the conversation may be cut: before a message of the person's, so that no answer stands unasked."""
        starts = [i for i, message in enumerate(self.messages) if i and message["role"] == "user"]
        return [0, *starts]
