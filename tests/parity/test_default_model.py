"""The default model against transformers on the dequantised file, and against llama.cpp's perplexity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill import LLM, SamplingParams
from tokenmill.evals.perplexity import perplexity

TEXT = Path(__file__).parents[1] / "data" / "texts" / "gpl-3.txt"
LLAMA_CPP_PPL = 18.39  # llama-perplexity -c 512 on the same file and text
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Translate to Spanish: Good morning, my friend.",
    "def fibonacci(n):",
    "List three prime numbers.",
    "Why is the sky blue? Answer in one sentence.",
    "Résumé: naïve café ☕ — what do these words share?",
    "2 + 2 =",
    "Tell me about the history of the bicycle.",
    "Give me a JSON object with the keys name and age.",
]


@pytest.fixture(scope="module")
def llm(default_gguf: Path) -> LLM:
    return LLM(default_gguf, dtype="float32")


@pytest.fixture(scope="module")
def theirs(llm: LLM, default_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    from tokenmill.models import load_model

    folder = tmp_path_factory.mktemp("dequantised")
    load_model(default_gguf, dtype="float32").save(folder)
    llm.tokenizer.save(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), folder


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_are_transformers_tokens(prompt: str, llm: LLM, theirs: Any) -> None:
    """Each token of ours is the argmax of transformers given the same beginning: so its greedy answer is the same."""
    model, _ = theirs
    messages = [{"role": "user", "content": prompt}]
    answer = llm.chat(messages, SamplingParams(temperature=0, max_tokens=24)).token_ids
    ids = llm.prompt_ids(messages)
    with torch.inference_mode():
        logits = model(torch.tensor([[*ids, *answer]])).logits[0]
    expected = logits[len(ids) - 1 : -1].argmax(-1).tolist()
    assert answer == expected


def test_the_saved_folder_renders_and_encodes_alike_in_transformers(llm: LLM, theirs: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(theirs[1])
    messages = [{"role": "user", "content": "Hello  there 123!"}, {"role": "assistant", "content": "Hé"}]
    got = llm.prompt_ids([*messages, {"role": "user", "content": "x"}])
    expected = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=False
    )
    assert got == expected


def test_the_capital_of_france(llm: LLM) -> None:
    answer = llm.chat([{"role": "user", "content": PROMPTS[0]}], SamplingParams(temperature=0, max_tokens=20))
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_perplexity_is_llama_cpps(llm: LLM) -> None:
    ids = llm.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    result = perplexity(llm.model, ids, 512, byte_lengths=[len(llm.tokenizer.token_bytes(i)) for i in ids])
    assert result.ppl == pytest.approx(LLAMA_CPP_PPL, rel=0.005)
    assert result.tokens == 14 * 255
    assert 0.5 < result.bits_per_byte < 1.5
