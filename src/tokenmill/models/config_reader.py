"""Reads a model's ``config.json`` so that nothing that changes the mathematics is skipped.

Every key is either asked for by the family, or known to say nothing about the forward pass, or refused by name. All
problems come in one message. Silence here is how a model loads and talks nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from tokenmill.core.errors import ConfigError, did_you_mean

T = TypeVar("T")
REQUIRED: Any = object()

# Keys that say nothing about what the forward pass computes: names, token ids, initialisation, dropout, auxiliary
# losses, and the sampling that old files keep here instead of in generation_config.json.
NEUTRAL = frozenset(
    """
    _name_or_path _attn_implementation architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout decoder_start_token_id dtype eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_range is_decoder is_llama_config keys_to_ignore_at_inference label2id
    model_type n_ctx output_attentions output_hidden_states output_router_logits pad_token_id prefix problem_type
    pretraining_tp pruned_heads remove_invalid_values reorder_and_upcast_attn return_dict
    router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params tf_legacy_loss
    tokenizer_class torch_dtype torchscript transformers_version transformers.js_config unsloth_fixed use_bfloat16
    use_cache attention_dropout attn_pdrop embd_pdrop embedding_dropout resid_pdrop residual_dropout dropout
    cross_attention_hidden_size diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    gradient_checkpointing length_penalty max_length min_length n_special no_repeat_ngram_size num_beam_groups num_beams
    _num_labels num_return_sequences output_past output_scores predict_special_tokens repetition_penalty
    return_dict_in_generate temperature top_k top_p typical_p
    hidden_dropout hidden_dropout_prob attention_probs_dropout_prob dropout_rate initializer_factor
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    """.split()  # noqa: SIM905 - easier to read and to add to than ninety quoted strings
)


class ConfigReader:
    """A mapping that remembers what was asked of it. Call :meth:`finish` when everything has been read."""

    def __init__(self, config: Mapping[str, Any], source: str, neutral: frozenset[str] = NEUTRAL) -> None:
        self.config, self.source, self.neutral = config, source, neutral
        self._asked: set[str] = set()
        self._problems: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands, or ``default`` where the key is absent (not where it is null)."""
        self._asked.add(key)
        value = self.config.get(key, default)
        if value is REQUIRED:
            self.problem(f"{key!r} is missing")
        return value

    def integer(self, key: str, default: Any = REQUIRED, *, most: int = 1 << 31) -> int:
        """A count from 1 to ``most``; null counts as absent."""
        return self._number(key, default, int, 1, most)

    def number(self, key: str, default: Any = REQUIRED, *, least: float = -1e30, most: float = 1e30) -> float:
        """A number from ``least`` to ``most``; null counts as absent."""
        return float(self._number(key, default, (int, float), least, most))

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A finite number, or None where the configuration says null or nothing (and no default is given)."""
        value = self.get(key, default)
        return None if value is None else float(self._number(key, default, (int, float), -1e30, 1e30))

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(f"{key!r} must be true or false, not {value!r}")
        return bool(value)

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            self.problem(f"{key!r} must be a string, not {value!r}")
            return default
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """The key may be absent or have one of these values; anything else is mathematics we do not do."""
        self._asked.add(key)
        if key in self.config and self.config[key] not in allowed:
            known = " or ".join(map(repr, allowed))
            self.problem(f"{key!r} = {self.config[key]!r} is not supported; only {known} is")

    def sequence(self, key: str) -> list[Any] | None:
        """A list, or None where the configuration says null or nothing."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            self.problem(f"{key!r} must be a list, not {value!r}")
            return None
        return value

    def part(self, settings: Mapping[str, Any]) -> ConfigReader:
        """A reader of an object inside this one; what is wrong in it is told with the rest."""
        inner = ConfigReader(settings, self.source, self.neutral)
        inner._problems = self._problems
        return inner

    def problem(self, text: str) -> None:
        """Note what is wrong; :meth:`finish` raises with everything noted."""
        self._problems.append(text)

    def finish(self) -> None:
        """Raise ConfigError if anything was wrong, or if a key was neither asked for nor known to be neutral."""
        for key in sorted(set(self.config) - self._asked - self.neutral):
            near = did_you_mean(key, self._asked)
            self._problems.append(f"{key!r} = {str(self.config[key])[:80]} is not understood{near}; refusing to guess")
        if told := dict.fromkeys(self._problems):  # a key may have been asked for twice
            raise ConfigError("\n  ".join([f"{self.source}: this configuration cannot be used:", *told]))

    def _number(self, key: str, default: Any, kind: Any, least: float, most: float) -> Any:
        value = self.get(key, default)
        if value is None and default is not REQUIRED:
            value = default
        good = isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most
        if not good and value is not REQUIRED:
            self.problem(f"{key!r} must be a number from {least:g} to {most:g}, not {value!r}")
        return value if good else 1
