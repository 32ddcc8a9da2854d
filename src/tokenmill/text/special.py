"""Which tokens end a generation, and by which names configurations call the special tokens.

A chat model often has several ends: the end of the text, of the turn, of a tool call. Files name one of them and the
rest must be known by their text, as llama.cpp does (src/llama-vocab.cpp, ``special_eog_ids``). A name counts only where
the vocabulary marks the token as special: ``<|end|>`` as ordinary text in some vocabulary ends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that configurations and chat templates know by name (transformers' names)."""

END_TOKENS = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<turn|>",
        "<|tool_response>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "</s>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek, with fullwidth bars
        "[e~[",
        # what a code model writes after a filled-in middle: the next file begins, the answer is over
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<reponame>",
        "<|file_sep|>",
    }
)


def end_token_ids(special: Mapping[str, int], declared: Iterable[int]) -> frozenset[int]:
    """All ids that end a generation: what the files declare, and the special tokens known by name.

    Args:
        special: text → id of the vocabulary's special tokens.
        declared: ids that the files name (eos, eot, eom).
    """
    found = {text: token_id for text, token_id in special.items() if text in END_TOKENS}
    # Harmony-style vocabularies close every message, thoughts included, with <|end|>: there it is not the end
    harmony = {"<|return|>", "<|call|>"} <= found.keys()
    if harmony or ("<|flush|>" in found and found.keys() & {"<|call|>", "<|calls|>"}):
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:  # gemma 4 has an ordinary </s>, as in HTML
        found.pop("</s>", None)
    return frozenset(found.values()) | frozenset(declared)
