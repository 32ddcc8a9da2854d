"""Weights rounded while a model is loaded: the codes of ``quantize``, packed where there are kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from fakes.tiny_llm import tiny_folder
from tokenmill import LLM, SamplingParams
from tokenmill.core.errors import UsageError
from tokenmill.models import load_model
from tokenmill.models.packing import can_pack
from tokenmill.nn.context import Packed
from tokenmill.nn.packed import PackedLinear
from tokenmill.nn.quantised import QuantisedStacked
from tokenmill.quant.layers import as_codes
from tokenmill.quant.run import quantise
from tokenmill.quant.serving import FORMATS, format_of, quantise_loaded


def logits(model: Any) -> Tensor:
    return model.decoder(torch.arange(3, 43), Packed([40])).detach()


@pytest.mark.parametrize(
    ("name", "family"), [("int8", "llama"), ("int4", "qwen3_moe"), ("fp8", "llama"), ("nf4", "qwen3_moe")]
)
def test_the_codes_are_those_of_quantize(name: str, family: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 2}
    known = {key: value for key, value in wide.items() if key in tiny.FAMILIES[family]}
    source = tiny.write(tiny.FAMILIES[family] | known, tmp_path / "source")
    done = quantise(load_model(source, dtype="float32"), format_of(name), [], tmp_path / "work", source="tiny")
    loaded = load_model(source, dtype="float32")
    quantise_loaded(loaded, format_of(name), pack=False)
    for layer, codes in done.codes.items():
        module: Any = loaded.decoder.get_submodule(layer)
        found = module.matrices() if isinstance(module, QuantisedStacked) else [module.matrix()]
        for ours, theirs in zip(found, codes if isinstance(codes, list) else [codes], strict=True):
            assert torch.equal(ours.dense(), as_codes(theirs).dense()), layer
    if can_pack(loaded.decoder, torch.device("cpu")):
        served = load_model(source, dtype="float32")
        quantise_loaded(served, format_of(name), pack=True)
        assert isinstance(served.decoder.get_submodule("layers.0.mlp.down"), PackedLinear)
        assert (logits(served) - logits(loaded)).abs().mean() < 0.05 * logits(loaded).abs().mean() + 0.05


def test_a_model_answers_with_rounded_weights(tmp_path: Path) -> None:
    folder, greedy = tiny_folder(tmp_path / "m"), SamplingParams(temperature=0, max_tokens=4)
    assert set(FORMATS) == {"int8", "int4", "fp8", "nf4"}
    llm = LLM(folder, quant="int8")
    assert any(getattr(module, "quantization", None) in ("Q8_0", "int8") for module in llm.model.modules())
    assert llm.generate("hello", greedy).stats.completion_tokens > 0
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        LLM(folder, quant="int5")
