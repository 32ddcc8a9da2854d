"""The nested parts of a recipe: data, shape of a new model, adapter, corruption.

As everywhere in ``config``: pydantic, strict, unknown keys are errors, the text under a field is its documentation,
None means "derived" where the text says from what.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]

Format = Literal["auto", "text", "completion", "messages", "alpaca", "sharegpt"]


class Part(BaseModel):
    """What every part of a recipe has in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Source(Part):
    """One of several sources of data."""

    path: str
    """A file (.jsonl, .parquet, .txt; .gz and .zst of the text ones), a folder of such files, or a pattern."""
    weight: Positive = 1.0
    """How often an epoch passes over its samples: 2.0 twice, 0.5 over a fixed half, chosen by ``data.seed``."""


class DataConfig(Part):
    """What is learned from, how its rows become tokens, and what happens to rows that are not as they should be."""

    path: str | list[str | Source] | None = None
    """A file, a folder, a pattern, or several with weights. ``data=FILE`` on the command line means this."""
    eval: str | list[str | Source] | None = None
    """Held-out data of its own; without it ``eval_share`` of ``path`` is held out."""
    eval_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share held out for evaluation when ``eval`` is not given: of rows, chosen by a hash of ``seed`` and row, so that
    adding data moves nothing from one side to the other; of plain text files, their ends."""
    format: Format = "auto"
    """What the rows are; ``auto`` recognises each by its keys."""
    text_field: str = "text"
    """The key of plain text rows."""
    train_on: Literal["auto", "all", "assistant", "last"] = "auto"
    """Which tokens are learned: all, what the assistant says (tool calls included), or only its last turn. ``auto``:
    all for plain text, assistant for prompts and conversations."""
    prompts: Literal["auto", "chat", "text"] = "auto"
    """What a prompt and its completion are: a user's and the assistant's turn, or text as it stands. ``auto``: turns
    where the model has a chat template, since that is how it will be asked."""
    chat_template: str | None = None
    """Jinja source or a name among the model's templates; without it the model's own."""
    truncate: Literal["auto", "end", "start", "split", "drop", "error"] = "auto"
    """What happens to a document longer than ``seq_len``: its end or its start is cut off, it is split into several
    without loss, dropped, or the run refused. ``auto``: split for plain text, drop for compared answers, end otherwise.
    All of it is counted."""
    masked: Literal["error", "drop"] = "error"
    """A row whose labels are all masked (after truncation too): the run is refused and shows it, or it is dropped."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Rows that are equal to an earlier one; they are counted either way."""
    leakage: Literal["drop", "keep", "error"] = "drop"
    """Training rows that the evaluation has too."""
    max_broken: Share = 0.05
    """Share of rows that may be unreadable; they are put aside, counted and named. Above it the run is refused."""
    add_eos: bool = True
    """End every plain text and completion with the end token, so that the model learns to stop."""
    seed: int = 0
    """Of the held-out share and of weights below 1; apart from the run's ``seed``, so that runs compare."""
    cache: bool = True
    """Keep the tokens in ``TOKENMILL_HOME/cache/data``, memory-mapped, for the next run over the same files."""


class Shape(Part):
    """The new model of a pretraining run; what is None is derived from ``size`` and the data."""

    family: Literal["llama", "qwen3", "bert", "t5"] = "llama"
    """The architecture: decoder (llama, qwen3 with its normalised queries and keys), encoder (bert), both (t5)."""
    vocab_size: Count | None = None
    """Rows of the embedding; derived: the tokenizer's size, rounded up to a multiple of 64."""
    hidden_size: Count | None = None
    """Width: features of a token between layers."""
    num_layers: Count | None = None
    """Depth."""
    num_heads: Count | None = None
    """Attention heads of a layer."""
    num_kv_heads: Count | None = None
    """Fewer than ``num_heads`` shares keys and values between heads."""
    mlp_size: Count | None = None
    """Width of the feed-forward part."""
    max_position: Count | None = None
    """Longest context, in tokens; derived from ``seq_len``."""
    rope_theta: Positive = 10000.0
    """Base of the rotary frequencies (RoFormer: 10,000; larger for long contexts)."""
    tied_embeddings: bool = True
    """The output matrix is the embedding: at small sizes it would be half of the model."""
    init_std: Positive = 0.02
    """Standard deviation of new weights, a normal cut at 3 sigma; residual outputs are divided by sqrt(2 layers)
    (GPT-2, OLMo)."""


class AdapterConfig(Part):
    """A small trainable part over a frozen model."""

    kind: Literal["lora", "dora", "prefix", "prompt", "ia3", "bottleneck"] = "lora"
    """What is put beside the model's layers; see the recipes of these names."""
    rank: Count = 16
    """LoRA, DoRA: columns of A and rows of B."""
    alpha: Positive = 32.0
    """LoRA, DoRA: the product is scaled by alpha/rank (alpha/sqrt(rank) with ``rslora``)."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the adapter's inputs that is dropped while training."""
    rslora: bool = False
    """Scale by alpha/sqrt(rank), which keeps high ranks learning (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_plus: Positive = 1.0
    """B learns this many times as fast as A (LoRA+, arXiv 2402.12354, recommends 16); 1 is plain LoRA."""
    targets: str | list[str] = "all-linear"
    """Which linear layers: ``all-linear`` (never the output matrix), or names such as ``[q_proj, v_proj]``."""
    layers: list[int] | None = None
    """Only these layers, counted from 0; None is all."""
    virtual_tokens: Count = 20
    """Prefix and prompt tuning: positions that are learned."""
    init_text: str | None = None
    """Prefix and prompt tuning: begin as the model reads this text (repeated or cut to ``virtual_tokens``)."""
    bottleneck_size: Count = 64
    """Bottleneck adapters: width of the narrow layer (Houlsby 2019, arXiv 1902.00751)."""
    bottleneck_at: Literal["both", "mlp"] = "both"
    """Behind attention and feed-forward (Houlsby 2019), or behind feed-forward only (Pfeiffer 2021)."""
    new_tokens: list[str] = Field(default_factory=list)
    """Tokens added to the vocabulary; of the embedding only their rows are trained."""
    train_also: list[str] = Field(default_factory=list)
    """Modules trained whole and stored with the adapter (PEFT's ``modules_to_save``)."""


class CorruptConfig(Part):
    """How masked language modelling and span corruption spoil the text that is to be restored."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Of tokens that are masked (BERT) or lie in spans (T5)."""
    mask_share: Share = 0.8
    """MLM: chosen tokens that become the mask token (BERT: 0.8)."""
    random_share: Share = 0.1
    """MLM: chosen tokens that become a random one (BERT: 0.1); the rest stays as it is."""
    whole_words: bool = False
    """MLM: all tokens of a word are chosen together, or none (BERT's whole-word masking)."""
    span_length: Annotated[float, Field(ge=1.0)] = 3.0
    """Span corruption: mean tokens of a span (T5: 3)."""


class PreferenceConfig(Part):
    """How answers are compared: the objectives dpo, simpo, orpo and kto."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """DPO: Bradley-Terry likelihood (Rafailov 2023), a hinge (SLiC), a squared distance to 1/(2 beta) of mean
    log-ratios (IPO, Azar 2023), or the likelihood without the bias of flipped labels (Chowdhury 2024)."""
    beta: Positive = 0.1
    """DPO, KTO: how far the policy may move from the reference (smaller: farther). SimPO: scale of the mean
    log-probabilities (2.0 to 2.5). ORPO: weight of the odds ratio (the paper's lambda)."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """DPO (sigmoid, robust) and SimPO: the share of labels that are believed to be flipped."""
    gamma: Annotated[float, Field(ge=0.0)] = 0.5
    """SimPO: the margin by which the chosen answer is to win (the paper: beta times 0.3 to 0.8)."""
    sft_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """DPO, SimPO: weight of the chosen answers' likelihood beside the comparison; it keeps them from becoming rarer."""
    desirable_weight: Positive = 1.0
    """KTO: weight of good answers; with 1.33 times as many bad ones, 1.33 balances them."""
    undesirable_weight: Positive = 1.0
    """KTO: weight of bad answers."""
    reference: str | None = None
    """DPO, KTO: the model that the policy is compared with; without it the policy as it begins, which is its adapter
    switched off. Its log-probabilities are computed once and kept on disk."""


class RewardConfig(Part):
    """How a reward model learns from pairs: a scalar head, Bradley-Terry, the rows' ``margin`` where they have one."""

    center: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the squared sum of a pair's two rewards: it keeps them around zero, which the comparison alone leaves
    open (Eisenstein 2023; 0.01)."""


class DistillConfig(Part):
    """How a student learns from a teacher: the objective distill."""

    teacher: str | None = None
    """The model that is learned from: a store name, a folder, a ``.gguf`` file, or with ``url`` the name that it has
    there. Its tokenizer is the student's."""
    url: str | None = None
    """A server of OpenAI's protocol that has the teacher, up to and with the version (``http://127.0.0.1:8000/v1``). It
    scores given tokens (``/completions`` with ``echo`` and ``logprobs``: tokenmill's and vLLM's do) and says its
    ``top_k`` likeliest ones."""
    key_variable: str | None = None
    """The environment variable with the server's key."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """The distance of their next-token distributions: from the teacher (the student covers all that it may say), from
    the student (which settles on the likeliest of it), or the generalised Jensen-Shannon divergence between."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """jsd: the teacher's share of the mixture that both are compared with (GKD, arXiv 2306.13649)."""
    temperature: Positive = 1.0
    """Both distributions are flattened by it; the divergence is multiplied by its square (Hinton 2015)."""
    weight: Share = 0.9
    """Of the divergence; the data's own cross-entropy has the rest of 1."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Learn from so many of the teacher's likeliest tokens and one tail for all others, computed once before the first
    step and kept on disk, after which the teacher is let go; 0 asks the teacher in every step for all tokens."""
    lmbda: Share = 0.0
    """On-policy distillation: the share of micro-batches whose answers the student writes itself, for the teacher to
    judge (GKD's lambda, by TRL's name); the others are the data's. A row's last answer is written anew; a text without
    a prompt is continued from its middle. It is drawn at ``temperature``, and learned by the divergence alone."""
    completion_tokens: Count = 128
    """Longest answer of the student's own; what is longer is cut off there."""
    hidden_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the distance between hidden states, as a share of the teacher's squared: layer i of the student learns
    from the teacher's layer at the same share of the depth, through a learned matrix where their widths differ."""
