"""Byte-level BPE against transformers: the default model's own, and every way to cut that transformers defines, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_SPLIT

import texts
from tokenmill.formats.gguf import GGUFFile
from tokenmill.text.gguf import tokenizer_from_gguf
from tokenmill.text.load import tokenizer_from_folder
from tokenmill.text.pretokenizers import KINDS

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)

# As the models' own tokenizer.json write them, by the name that GGUF files give
REFERENCES: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [GPT2],
    "smollm": [DIGITS, GPT2],
    "starcoder": [DIGITS, GPT2],
    "command-r": [DIGITS, GPT2],
    "qwen2": [*split(QWEN2_SPLIT), BYTES],
    "falcon": [
        pre_tokenizers.Punctuation(behavior="contiguous"),
        GPT2,
        pre_tokenizers.Digits(individual_digits=False),
        *split("[0-9][0-9][0-9]"),
    ],
    "deepseek-coder": [*split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES],
    "deepseek-v3": [
        *split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
        *split(
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
        ),
        BYTES,
    ],
    **{name: [*split(pattern), BYTES] for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items()},
}
COMPOSED = {"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "qwen35"}
IGNORE_MERGES = {
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
}


def reference(pre: str) -> Backend:
    """A small vocabulary, cut as the reference cuts."""
    backend = Backend(models.BPE(ignore_merges=pre in IGNORE_MERGES))
    backend.pre_tokenizer = pre_tokenizers.Sequence(REFERENCES[pre])
    backend.decoder = decoders.ByteLevel()
    if pre in COMPOSED:
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts.training_text(), trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


def test_the_default_model_equals_its_published_definition(default_gguf: Path) -> None:
    fields = GGUFFile(default_gguf).metadata
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = {token: n for n, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab, [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]))
    backend.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, GPT2])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens[:17])
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    ours = tokenizer_from_gguf(fields, default_gguf)
    for text in texts.corpus():
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
    chat = ours.render_chat([{"role": "user", "content": "Hi"}])
    assert ours.encode(chat, add_special_tokens=False) == theirs.encode(chat)
    assert (ours.bos_token_id, ours.eos_token_id, ours.vocab_size) == (1, 2, 49152)
    assert {0, 2} <= ours.eos_token_ids <= ours.special_ids


@pytest.mark.parametrize("pre", sorted(REFERENCES))
def test_ids_equal_for_each_way_to_cut(pre: str) -> None:
    backend = reference(pre)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    ours = tokenizer_from_gguf(
        texts.bpe_metadata(backend, pre) | {"tokenizer.ggml.add_bos_token": False}, Path("small.gguf")
    )
    for text in texts.corpus():
        assert ours.encode(text) == theirs.encode(text), text


def test_every_known_cut_is_lossless() -> None:
    """The kinds that nobody here defines a second time at least lose nothing and crash on nothing."""
    backend = reference("gpt-2")
    for pre in KINDS:
        ours = tokenizer_from_gguf(texts.bpe_metadata(backend, pre), Path("small.gguf"))
        for text in texts.corpus()[:90]:
            composed = text if not KINDS[pre].nfc else normalizers.NFC().normalize_str(text)
            assert ours.decode(ours.encode(text, parse_special=False)) == composed, (pre, text)


def test_a_saved_tokenizer_is_the_same_in_transformers_and_here(default_gguf: Path, tmp_path: Path) -> None:
    fields = GGUFFile(default_gguf).metadata
    first = tokenizer_from_gguf(fields, default_gguf)
    first.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in texts.corpus():
        assert first.encode(text) == theirs.encode(text) == again.encode(text), text
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == again.render_chat(messages) == first.render_chat(messages)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert (again.special_ids, again.eos_token_ids) == (first.special_ids, first.eos_token_ids)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True}])
@pytest.mark.parametrize("framed", [False, True])
def test_a_folder_with_tokenizer_json_frames_texts_as_transformers_does(
    tmp_path: Path, flags: dict[str, bool], framed: bool
) -> None:
    backend = reference("llama-bpe")
    if framed:
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", 1)]
        )
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>").save_pretrained(
        tmp_path
    )
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", "{" + "".join(f'"{k}": true, ' for k in flags), 1))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in texts.corpus()[:40]:
        assert ours.encode(text) == theirs.encode(text, truncation=False, padding=False), text
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges_files_equal_transformers(tmp_path: Path, kind: str) -> None:
    backend = reference("qwen2" if kind == "Qwen2Tokenizer" else "gpt-2")
    backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "{kind}", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "bos_token": null}}'
    )
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in texts.corpus():
        assert ours.encode(text) == theirs.encode(text), text
