"""The facade on a tiny model: text in and out, several answers at once, stop texts, faults, defaults."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import tiny
from tokenmill import LLM, SamplingParams
from tokenmill.core.errors import NotFoundError, UsageError
from tokenmill.llm import OLLAMA_DEFAULTS, default_params


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("tiny"))
    words = tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    words.save(str(folder / "tokenizer.json"))
    return LLM(folder, dtype="float32")


GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def test_answers_come_in_the_order_of_prompts_and_samples(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=6, logprobs=0, ignore_eos=True)
    together = llm.generate(["w5 w1", "w9"], params)
    for prompt, completion in zip(["w5 w1", "w9"], together, strict=True):
        for index in range(3):
            alone = llm.generate(prompt, SamplingParams(seed=5 + index, max_tokens=6, ignore_eos=True))
            assert completion.choices[index].token_ids == alone.token_ids
            assert completion.choices[index].text == alone.text
            assert len(completion.choices[index].logprobs or []) == 6
    assert [completion.prompt_tokens for completion in together] == [2, 1]


def test_pieces_add_up_to_the_answer(llm: LLM) -> None:
    pieces = list(llm.stream("w5 w1", GREEDY))
    whole = llm.generate("w5 w1", GREEDY)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].finish_reason == whole.finish_reason == "length"
    assert pieces[-1].stats is not None
    assert (pieces[-1].stats.prompt_tokens, pieces[-1].stats.completion_tokens) == (2, 6)
    assert all(piece.stats is None for piece in pieces[:-1])


def test_a_stop_text_across_tokens_ends_the_answer(llm: LLM) -> None:
    words = [f"w{i}" for i in llm.generate("w5 w1", GREEDY).token_ids]
    stop = words[1] + words[2]
    cut = "".join(words).partition(stop)[0]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop=(stop,))
    answer = llm.generate("w5 w1", params)
    assert (answer.text, answer.finish_reason) == (cut, "stop")
    assert len(answer.token_ids) < len(words)
    kept = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, stop=(stop,), include_stop_str_in_output=True)
    assert llm.generate("w5 w1", kept).text == cut + stop


def test_no_tokens_asked_is_an_answer(llm: LLM) -> None:
    answer = llm.generate("w5", SamplingParams(max_tokens=0))
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], "length")


class Guides:
    """In place of the grammar's factory: the first answer's guide fails at its third token, the others allow all."""

    stopped = False

    def __init__(self, *_: object) -> None:
        self.copies = self.seen = 0
        self.fails = False

    def from_format(self, _: object) -> Guides:
        return Guides()

    def copy(self) -> Guides:
        made = Guides()
        made.fails = self.copies == 0
        self.copies += 1
        return made

    def mask(self) -> np.ndarray:
        return np.ones(97, dtype=bool)

    def accept(self, _: int) -> None:
        self.seen += 1
        if self.fails and self.seen == 3:
            raise UsageError("too complex")


def test_a_fault_ends_one_answer_and_a_lone_answer_raises_it(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    free = llm.generate("w5 w1", GREEDY)
    monkeypatch.setattr(llm, "guides", Guides())
    broken, fine = llm.generate(["w5 w1", "w5 w1"], GREEDY, format="json")
    assert (broken.finish_reason, broken.token_ids) == ("error", free.token_ids[:2])
    assert "too complex" in str(broken.choices[0].error)
    assert (fine.text, fine.choices[0].error) == (free.text, None)
    with pytest.raises(UsageError, match="too complex"):
        llm.generate("w5 w1", GREEDY, format="json")


def test_defaults_are_the_modelfiles_over_the_models_over_ollamas() -> None:
    assert default_params({}, {}) == OLLAMA_DEFAULTS
    model = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "eos_token_id": [1, 2], "top_k": None}
    assert default_params({}, model) == SamplingParams(temperature=0.6, top_p=0.9)
    modelfile = {"num_ctx": 64, "num_predict": -1, "repeat_penalty": 1.2, "seed": -1, "stop": ["x"], "top_p": 0.5}
    expected = SamplingParams(temperature=0.6, top_p=0.5, repetition_penalty=1.2, stop=("x",))
    assert default_params(modelfile, model) == expected
    assert default_params({"num_predict": 7, "seed": 3}, {}).max_tokens == 7


def test_a_context_the_model_cannot_do_is_refused(llm: LLM) -> None:
    assert LLM(llm.files.path, ctx_size=64).ctx_size == 64
    with pytest.raises(UsageError, match="1 to 128"):
        LLM(llm.files.path, ctx_size=129)


def test_mistakes_of_python_users_are_told(llm: LLM) -> None:
    with pytest.raises(UsageError, match="list of messages"):
        llm.chat("hello")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one SamplingParams"):
        llm.generate(["a", "b"], [SamplingParams()])  # type: ignore[call-overload]
    with pytest.raises(NotFoundError, match="nowhere: no such file"):
        LLM(llm.files, adapter="nowhere")
