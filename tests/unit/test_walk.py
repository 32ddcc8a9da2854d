"""The walk over a model's layers sees what the model computes, with the changes made on the way."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import FAMILIES, PROMPTS, write

from tokenmill.core.errors import ConfigError
from tokenmill.models import load_model, walk
from tokenmill.nn.context import Packed

DOCUMENTS = [torch.tensor(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer_of_the_walk_gives_the_models_hidden_states(family, tmp_path, monkeypatch):
    decoder = load_model(write(FAMILIES[family], tmp_path)).decoder
    monkeypatch.setattr(walk, "TOKENS_AT_ONCE", 20)  # several batches
    for step in walk.walk(decoder, DOCUMENTS):
        with torch.no_grad():
            for parameter in step.block.parameters():
                parameter.mul_(0.9)  # what follows has to see it
    lengths = [len(document) for document in DOCUMENTS]
    with torch.no_grad():
        hidden_TC = decoder.hidden(torch.cat(DOCUMENTS), Packed(lengths))
        torch.testing.assert_close(decoder.norm(torch.cat(list(step.outputs()))), hidden_TC)


def test_listeners_get_the_inputs_of_their_modules(tmp_path):
    decoder = load_model(write(FAMILIES["qwen3_moe"], tmp_path)).decoder
    step = next(walk.walk(decoder, DOCUMENTS))
    inputs, experts = [], {}
    step.watch(
        {
            "attn.q": inputs.append,
            "mlp.experts.gate": lambda x_TC, expert: experts.update({expert: experts.get(expert, 0) + len(x_TC)}),
        }
    )
    torch.testing.assert_close(torch.cat(inputs), step.block.attn_norm(torch.cat(step.inputs)))
    assert sum(experts.values()) == 3 * sum(len(document) for document in DOCUMENTS)  # three experts a token
    assert {"attn.out", "mlp.router", "mlp.experts.down"} <= step.linears().keys()


def test_a_silent_listener_is_an_error(tmp_path):
    decoder = load_model(write(FAMILIES["qwen3_moe"], tmp_path)).decoder
    step = next(walk.walk(decoder, DOCUMENTS))
    step.block.mlp.forward = lambda x_TC: x_TC
    with pytest.raises(ConfigError, match=r"layer 0: mlp\.router saw nothing"):
        step.watch({"mlp.router": lambda *given: None})


@pytest.mark.parametrize(
    ("documents", "why"),
    [([], "is empty"), ([torch.arange(129) % 90], "129 tokens"), ([torch.tensor([1, 97])], "another tokenizer")],
)
def test_unfit_documents_are_refused(documents, why, tmp_path):
    decoder = load_model(write(FAMILIES["llama"], tmp_path)).decoder
    with pytest.raises(ConfigError, match=why):
        next(walk.walk(decoder, documents))
