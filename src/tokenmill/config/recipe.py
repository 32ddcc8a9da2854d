"""Every setting of a training run, declared once: the recipe's keys, the command line's overrides, the report's header.

Strict: a value of the wrong type and an unknown key are errors (`compose` names the nearest key). None means that the
value is derived from others: `train/plan.py` fills it in and says by which formula; a run's ``config.yaml`` holds no
None that means anything but "off". What contradicts itself is refused in `check.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tokenmill.config.parts import (
    AdapterConfig,
    CorruptConfig,
    Count,
    DataConfig,
    DistillConfig,
    Part,
    Positive,
    PreferenceConfig,
    RewardConfig,
    Shape,
    Share,
    Source,
)
from tokenmill.config.policy import PolicyConfig
from tokenmill.config.ppo import PpoConfig
from tokenmill.config.qat import QatConfig
from tokenmill.config.rewards import GuardConfig, RewardSource
from tokenmill.config.tools import ToolsConfig

__all__ = [
    "COMPARING",
    "POLICY",
    "REFERENCED",
    "AdapterConfig",
    "CorruptConfig",
    "DataConfig",
    "DistillConfig",
    "PolicyConfig",
    "PreferenceConfig",
    "QatConfig",
    "Recipe",
    "RewardConfig",
    "Shape",
    "Source",
]

Objective = Literal["next_token", "sft", "mlm", "span", "dpo", "simpo", "orpo", "kto", "reward", "distill",
                    "grpo", "rloo", "ppo"]  # fmt: skip
COMPARING = ("dpo", "simpo", "orpo", "kto", "reward")
"""Objectives that learn from compared answers."""
REFERENCED = ("dpo", "kto")
"""Of them, those that compare the policy with a reference model."""
POLICY = ("grpo", "rloo", "ppo")
"""Objectives that learn from rewards for what the model writes itself."""
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "muon", "adafactor"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OnTrouble = Literal["rollback", "skip", "stop", "off"]


class Recipe(Part):
    """One training run. Lengths are in tokens, times in optimiser steps, unless the text says otherwise."""

    # --- what is trained, on what, for what
    recipe: str = "custom"
    """The recipe's name: it goes into the run folder's."""
    objective: Objective = "next_token"
    """What is learned: the next token of everything, of what an assistant says (sft), masked tokens, lost spans; from
    compared answers a policy (dpo, simpo, orpo, kto) or a model that scores answers (reward); from another model's
    distribution of the next token what that one knows (distill); from rewards for its own answers a policy (grpo,
    rloo, ppo)."""
    model: str | None = None
    """The model to begin with: a store name, a folder, a ``.gguf`` file. Without it a new one of ``size``/``shape``."""
    size: str | Count | None = None
    """A new model's size: tiny, mini, small, medium, base, large, or a number of parameters such as 10M. Everything
    that is not given follows from it."""
    shape: Shape = Field(default_factory=Shape)
    """A new model's dimensions, where ``size`` should not decide."""
    tokenizer: str | None = None
    """A store name or folder whose tokenizer a new model uses. Without it a byte-level BPE is trained on the data."""
    vocab_size: Count | None = None
    """Tokens of a tokenizer that is trained on the data; derived from ``size``."""
    data: DataConfig = Field(default_factory=DataConfig)
    """What is learned from."""
    corrupt: CorruptConfig = Field(default_factory=CorruptConfig)
    """How text is spoiled for mlm and span."""
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig)
    """How answers are compared by dpo, simpo, orpo and kto."""
    reward: RewardConfig = Field(default_factory=RewardConfig)
    """How a reward model learns."""
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """What is written and how it is learned from by grpo, rloo and ppo."""
    ppo: PpoConfig = Field(default_factory=PpoConfig)
    """What only ppo reads: its critic, advantages, distance."""
    rewards: list[RewardSource] = Field(default_factory=list)
    """What answers are rewarded for. ``rewards=FILE.py:function`` and ``rewards=number`` mean one member."""
    tools: ToolsConfig = Field(default_factory=ToolsConfig)
    """What a policy may call while it writes; ``tools=calculator`` means ``tools.use``."""
    guards: GuardConfig = Field(default_factory=GuardConfig)
    """When a run that is rewarded looks as if it cheats or falls apart."""
    distill: DistillConfig = Field(default_factory=DistillConfig)
    """What a student learns from its teacher."""
    adapter: AdapterConfig | None = None
    """Train only this part; None trains all weights."""
    quantize: Literal["nf4"] | None = None
    """Keep the frozen base in 4 bits (QLoRA); only with an adapter."""
    double_quant: bool = True
    """Also quantise the block scales of ``quantize`` (QLoRA: 0.5 to 0.127 bits a parameter)."""
    qat: QatConfig | None = None
    """Train with the weights rounded as ``tokenmill quantize`` rounds them; ``qat.bits=4`` is enough to ask for it."""

    # --- how much is seen, in which portions
    seq_len: Count | None = None
    """Tokens of a row; longer documents follow ``data.truncate``. Derived: 512, or the model's longest if shorter."""
    packing: bool = True
    """Several documents in a row, isolated from each other; otherwise a row is one document. No padding either way."""
    micro_batch: Count = 4
    """Rows that go through the model at once on one process; memory grows with it, results do not depend on it."""
    accumulate: Count | None = None
    """Micro-batches of every process in one optimiser step; derived from ``batch_tokens``, else 1."""
    batch_tokens: Count | None = None
    """Tokens of one optimiser step over all processes, instead of ``accumulate``."""
    batch_ramp: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the run over which the batch grows from a quarter to its size (two doublings; lr follows by the square
    root of the batch, as OLMo's). 0: no ramp."""
    steps: Count | None = None
    """Optimiser steps of the run. One of steps, epochs, tokens; derived for ``size``, else one epoch."""
    epochs: Positive | None = None
    """Passes over the data; 0.5 is half of it."""
    tokens: Count | None = None
    """Tokens to be seen in all."""

    # --- the optimiser
    optimizer: Optimizer = "adamw"
    """muon: hidden matrices by Muon, RMS-matched so that lr and weight decay are AdamW's (arXiv 2502.16982), all
    else by AdamW. paged: its state lives in the host's memory when the device is full."""
    lr: Positive | None = None
    """Highest learning rate; derived for ``size``."""
    betas: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.95]
    )
    """Of AdamW (GPT-3, OLMo)."""
    eps: Positive = 1e-8
    """Of AdamW: added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled; never on embeddings, biases, norms (OLMo)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Of Muon, with Nesterov's look ahead."""
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of all gradients together; 0 switches clipping off."""
    schedule: Schedule = "cosine"
    """From warm-up on: constant, down in a line, down in half a cosine, or constant with a cooldown at the end."""
    warmup: int | float = 0.05
    """Steps up to the highest learning rate: an integer is steps, a float below 1 a share of the run."""
    cooldown: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """wsd: the last share of the run, down in a line."""
    min_lr: Share = 0.1
    """Last learning rate as a share of the highest (linear, cosine, wsd)."""
    z_loss: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the squared log of the softmax's normaliser (PaLM 1e-4, OLMo 1e-5)."""

    # --- numbers, memory, machine
    dtype: Dtype = "auto"
    """What is computed in; derived: bfloat16 where the machine is fast at it, else float32. float16 scales losses."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more work, memory of one layer."""
    device: str | None = None
    """cpu, cuda, cuda:1; derived: CUDA where there is one."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that prepare batches ahead; their number changes nothing in the order."""
    seed: int = 0
    """Of weights, order and dropout."""
    deterministic: bool = True
    """Only operations that give the same bits again."""

    # --- evaluation, samples, log
    eval_every: Annotated[int, Field(ge=0)] | None = None
    """Steps between evaluations; 0 only at the end; derived: twenty in the run."""
    eval_batches: Count = 50
    """Micro-batches of one evaluation at most, the same every time."""
    early_stop: Annotated[int, Field(ge=0)] = 0
    """End after so many evaluations without a better loss; 0 never."""
    sample_every: Annotated[int, Field(ge=0)] | None = None
    """Steps between samples; 0 only at the end; derived: with every evaluation."""
    sample_prompts: list[str] = Field(default_factory=list)
    """What the model is to continue (or to answer, with a chat template); without any, beginnings of held-out rows."""
    sample_tokens: Annotated[int, Field(ge=0)] = 64
    """Tokens of a sample; 0 switches samples off."""
    log_every: Count = 1
    """Steps between lines of metrics.jsonl."""
    stats_every: Annotated[int, Field(ge=0)] = 0
    """Steps between norms of every tensor and its gradient; 0 never."""
    profile: Annotated[int, Field(ge=0)] = 0
    """Profile so many steps after the first two; 0 none."""
    trackers: list[Tracker] = Field(default_factory=lambda: ["tensorboard"])  # type: ignore[arg-type]
    """Where curves also go, beside metrics.jsonl."""

    # --- checkpoints and safety
    out: str = "runs"
    """The folder of run folders."""
    save_every: Annotated[int, Field(ge=0)] | None = None
    """Steps between checkpoints; 0 only at the end; derived: ten in the run."""
    save_minutes: Annotated[float, Field(ge=0.0)] = 15.0
    """And at least so often; 0 switches it off."""
    save_keep: Count = 2
    """Newest checkpoints that are kept."""
    save_best: Annotated[int, Field(ge=0)] = 1
    """Checkpoints with the lowest evaluation loss that are kept besides."""
    safety_nonfinite: OnTrouble = "skip"
    """A loss or gradient that is no number: pass over the step, go back, stop, or carry on."""
    safety_spike: OnTrouble = "rollback"
    """A loss or gradient norm above mean + ``safety_sigma``: pass over the step, or go back to the last good
    checkpoint and pass over the window of data."""
    safety_sigma: Positive = 6.0
    """Standard deviations (OLMo: 6)."""
    safety_window: Annotated[int, Field(ge=8)] = 128
    """Steps that mean and deviation are taken over (OLMo: 128); nothing is judged before they are full."""
    safety_retries: Annotated[int, Field(ge=0)] = 3
    """Roll backs, and steps passed over in a row, before the run stops with an error."""

    @field_validator("data", mode="before")
    @classmethod
    def _data_shorthand(cls, value: Any) -> Any:
        """``data=FILE`` and ``data=[a, b]`` mean ``data.path``."""
        return {"path": value} if isinstance(value, str | list) else value

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_shorthand(cls, value: Any) -> Any:
        """``tools=calculator`` and ``tools=[a, b]`` mean ``tools.use``, a list."""
        if isinstance(value, dict) and isinstance(value.get("use"), str):
            return {**value, "use": [value["use"]]}
        return {"use": [value] if isinstance(value, str) else value} if isinstance(value, str | list) else value

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_shorthand(cls, value: Any) -> Any:
        """A function's place, or the kind of a reward that needs nothing else, instead of a list."""
        listed = value if isinstance(value, list) else [value]
        return [({"kind": "function", "path": one} if ":" in one else {"kind": one}) if isinstance(one, str) else one
                for one in listed]  # fmt: skip

    @field_validator("warmup")
    @classmethod
    def _warmup_in_range(cls, value: int | float) -> int | float:
        if value < 0 or (isinstance(value, float) and value >= 1):
            raise ValueError("must be steps (an integer from 0) or a share of the run (0.0 to below 1.0)")
        return value
