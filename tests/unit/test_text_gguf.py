"""Tokenizers out of GGUF metadata: what is right, and everything that a broken or hostile file can say."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenmill.core.errors import FormatError
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.special import end_token_ids
from tokenmill.text.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "<tool>", "s>", "<"]


def llama(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *BYTES, *WORDS],
        "token_type": [2, 3, 3] + [6] * 256 + [1, 1, 1, 1, 1, 1, 4, 1, 1],
        "scores": [0.0] * 259 + [-float(n) for n in range(len(WORDS))],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**metadata, **changes}.items() if value is not None}


def gpt2(**changes: Any) -> dict[str, Any]:
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "Ġ", "ab", "Ġab", "<|im_end|>", "<|endoftext|>", "<think>"],
        "token_type": [1, 1, 1, 1, 1, 3, 3, 4],
        "merges": ["a b", "Ġ ab"],
        "eos_token_id": 5,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**metadata, **changes}.items() if value is not None}


def load(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_gguf(metadata, Path("model.gguf"))


def test_byte_level() -> None:
    tokenizer = load(gpt2())
    assert tokenizer.encode("ab ab<|im_end|><think>") == [3, 4, 5, 7]
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.vocab_size) == (5, None, 8)
    assert tokenizer.eos_token_ids == {5, 6}
    assert tokenizer.special_ids == {5, 6}
    assert tokenizer.decode([3, 4, 5, 7]) == "ab ab<think>"


def test_sentencepiece_adds_bos_and_a_space_unless_told_otherwise() -> None:
    tokens = llama()["tokenizer.ggml.tokens"]
    assert load(llama()).encode("ab") == [1, tokens.index("\u2581ab")]
    assert load(llama(add_space_prefix=False, add_bos_token=False)).encode("ab") == [tokens.index("ab")]
    assert load(llama(add_eos_token=True)).encode("ab")[-1] == 2
    newline = load(llama()).encode("\n", add_special_tokens=False)
    assert newline == [tokens.index("\u2581"), tokens.index("<0x0A>")]


def test_control_tokens_are_never_merged_out_of_text() -> None:
    """``<`` and ``s>`` are pieces here, and ``<s>`` would be their merge."""
    tokenizer = load(llama(add_space_prefix=False))
    assert tokenizer.encode("<s>", add_special_tokens=False) == [1]
    assert 1 not in tokenizer.encode("<s>", add_special_tokens=False, parse_special=False)
    assert tokenizer.encode("<s>", parse_special=False)[0] == 1  # the BOS that the tokenizer itself puts
    assert tokenizer.encode("<tool>", parse_special=False, add_special_tokens=False) == [
        265
    ]  # user-defined, not special


def test_a_control_token_that_text_alone_leads_to_is_hidden() -> None:
    """With ignore_merges a whole piece that is in the vocabulary is that token, even a control token."""
    tokenizer = load(gpt2(pre="llama-bpe", tokens=["a", "b", "Ġ", "ab", "Ġab", "EOS", "E", "O", "S"], token_type=None))
    assert tokenizer.encode("EOS") == [5]
    special = load(
        gpt2(
            pre="llama-bpe",
            tokens=["a", "b", "Ġ", "ab", "Ġab", "EOS", "E", "O", "S"],
            token_type=[1, 1, 1, 1, 1, 3, 1, 1, 1],
            merges=["a b", "Ġ ab"],
        )
    )
    assert special.encode("EOS") == [5]
    assert special.encode("EOS", parse_special=False) == [6, 7, 8]


def test_what_a_file_names_as_its_end_is_a_control_token_whatever_its_type_says() -> None:
    tokenizer = load(gpt2(token_type=None))
    assert tokenizer.special_ids == tokenizer.eos_token_ids == {5}
    assert tokenizer.encode("ab<|im_end|>") == [3, 5]


def test_arrays_may_be_numpy_arrays() -> None:
    metadata = llama(scores=np.array(llama()["tokenizer.ggml.scores"], dtype=np.float32))
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], dtype=np.int32)
    assert load(metadata).encode("ab a") == load(llama()).encode("ab a")


def test_chat_templates_come_by_name() -> None:
    tokenizer = load(gpt2() | {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"})
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.chat_template == "plain"
    assert (tokenizer.render_chat(chat), tokenizer.render_chat(chat, tools=[{}])) == ("plain", "tools")


def test_ends_of_generation() -> None:
    assert load(
        gpt2(tokens=["a", "b", "Ġ", "ab", "Ġab", "<|im_end|>", "<|end|>", "x"], eot_token_id=7)
    ).eos_token_ids == {
        5,
        6,
        7,
    }
    harmony = {"<|return|>": 1, "<|call|>": 2, "<|end|>": 3}
    assert end_token_ids(harmony, [1]) == {1, 2}
    assert end_token_ids({"<|end|>": 3}, []) == {3}
    assert end_token_ids({"</s>": 1, "<|tool_response>": 2}, []) == {2}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no model": (gpt2(model=None), "tokenizer.ggml.model"),
    "unknown model": (gpt2(model="rwkv"), "'rwkv' is not supported; known: gpt2, llama, bert, t5"),
    "model no text": (gpt2(model=3), "must be str, not int"),
    "unknown cut": (gpt2(pre="llama-bpf"), "'llama-bpf' is not known (did you mean 'llama-bpe'?)"),
    "no tokens": (gpt2(tokens=None), "no vocabulary"),
    "empty tokens": (gpt2(tokens=[]), "no vocabulary"),
    "token no text": (gpt2(tokens=["a", 1]), "tokens[1]: must be str, not int"),
    "tokens no array": (gpt2(tokens="abc"), "must be an array, not str"),
    "token twice": (gpt2(tokens=["a", "b", "Ġ", "ab", "Ġab", "a", "c", "d"]), "tokens[5]: 'a' stands at 0"),
    "few types": (gpt2(token_type=[1, 1]), "has 2 entries for 8 tokens"),
    "odd type": (gpt2(token_type=[1, 1, 1, 1, 1, 3, 3, 9]), "token_type[7]: 9 is no token type"),
    "no types": (llama(token_type=None), "byte and control tokens cannot be told apart"),
    "no merges": (gpt2(merges=None), "tokenizer.ggml.merges: missing"),
    "merge of one": (gpt2(merges=["ab"]), "merges[0]: 'ab' is not two tokens"),
    "merge of nothing": (gpt2(merges=["a "]), "merges[0]"),
    "merge of strangers": (gpt2(merges=["a z"]), "the tokenizer is broken"),
    "eos outside": (gpt2(eos_token_id=8), "eos_token_id: 8 is outside the vocabulary of 8 tokens"),
    "eot outside": (gpt2(eot_token_id=2**31), "eot_token_id: 2147483648 is outside"),
    "bos negative": (gpt2(bos_token_id=-1), "bos_token_id: -1 is outside"),
    "eos a truth": (gpt2(eos_token_id=True), "must be int, not bool"),
    "flag a number": (gpt2(add_bos_token=1), "must be bool, not int"),
    "bos wanted, none": (gpt2(add_bos_token=True), "add_bos_token: is true, but there is no bos_token_id"),
    "template no text": (gpt2() | {"tokenizer.chat_template": 3}, "must be str, not int"),
    "template escaping": (gpt2() | {"tokenizer.chat_template.../../x": "y"}, "may have only letters"),
    "no scores": (llama(scores=None), "scores: missing"),
    "score endless": (llama(scores=[float("nan")] * 268), "scores[0]: nan is not a finite number"),
    "score no number": (llama(scores=["1"] * 268), "scores[0]: must be float, not str"),
    "charsmap no bytes": (llama(model="t5", precompiled_charsmap=[999]), "must be bytes"),
    "charsmap broken": (llama(model="t5", precompiled_charsmap=[255] * 9), "the tokenizer is broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_place(name: str) -> None:
    metadata, problem = BROKEN[name]
    with pytest.raises(FormatError, match=r"^model\.gguf: .*" + re.escape(problem)):
        load(metadata)


@pytest.mark.parametrize("token", ["<0x-1>", "<0xGG>", "<0x0>", "<0x000>", "<0xab>", "x", "<0x 1>"])
def test_a_byte_token_that_names_no_byte_is_refused(token: str) -> None:
    tokens = [token if old == "<0xFF>" else old for old in llama()["tokenizer.ggml.tokens"]]
    with pytest.raises(FormatError, match="marked as a byte"):
        load(llama(tokens=tokens))


def test_a_hostile_charsmap_cannot_crash() -> None:
    """The library's own reader of these maps indexes without asking; a Rust panic must arrive as an error."""
    rng = random.Random(3)
    for size in (4, 8, 64, 256, 1024):
        for _ in range(30):
            trie = rng.randbytes(size // 4 * 4)
            charsmap = len(trie).to_bytes(4, "little") + trie + b"ab\0c\0"
            with contextlib.suppress(FormatError):
                load(llama(model="t5", precompiled_charsmap=list(charsmap))).encode("some text \u2126 é")


def test_mutated_metadata_gives_typed_errors_only() -> None:
    rng = random.Random(5)
    odd: list[Any] = [None, -1, 2**70, True, 1.5, float("inf"), "", "x", [], [None], ["a"] * 3, [1] * 268, {}, b"x"]
    accepted = 0
    for _ in range(1500):
        metadata = rng.choice([gpt2, llama])()
        for key in rng.sample(sorted(metadata), rng.randrange(1, 3)):
            value = metadata[key]
            if isinstance(value, list) and rng.random() < 0.6:
                value = list(value)
                value[rng.randrange(len(value))] = rng.choice(odd)
                metadata[key] = value
            else:
                metadata[key] = rng.choice(odd)
        try:
            load(metadata).encode("ab <s> \n é", parse_special=rng.random() < 0.5)
            accepted += 1
        except FormatError:
            pass
    assert 0 < accepted < 1400
