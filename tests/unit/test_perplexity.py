"""Perplexity on a tiny model, against the definition written out."""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from tokenmill.core.errors import UsageError
from tokenmill.evals import perplexity as measure
from tokenmill.evals.perplexity import perplexity
from tokenmill.models import load_model
from tokenmill.nn.context import Packed
from tokenmill.nn.decoder import Decoder

IDS = [(7 * i * i + 3 * i) % 97 for i in range(75)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_model(tiny.write(tiny.FAMILIES["llama"], tmp_path_factory.mktemp("llama")), dtype="float32").decoder


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize("rows", [256, 3])
def test_the_second_half_of_each_window_is_scored(
    model: Decoder, bos: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LOGIT_ROWS", rows)
    nats, size = [], 0
    for start in (0, 20, 40):  # 75 tokens are three windows of 20; 15 are left over
        window = IDS[start : start + 20]
        read = window if bos is None else [bos, *window[1:]]
        with torch.inference_mode():
            log_p = torch.log_softmax(model(torch.tensor(read), Packed([20])), dim=-1)
        nats += [-float(log_p[i, window[i + 1]]) for i in range(10, 19)]
        size += sum(window[i + 1] for i in range(10, 19))
    result = perplexity(model, IDS, 20, byte_lengths=IDS, bos_token_id=bos)
    mean = sum(nats) / len(nats)
    spread = math.sqrt(sum((n - mean) ** 2 for n in nats) / (len(nats) - 1) / len(nats))
    assert result.tokens == len(nats) == 27
    assert result.ppl == pytest.approx(math.exp(mean), rel=1e-4)
    assert result.stderr == pytest.approx(math.exp(mean) * spread, rel=1e-4)
    assert result.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / size, rel=1e-4)


def test_windows_that_cannot_be_are_refused(model: Decoder) -> None:
    for ctx, word in ((3, "from 4 to"), (129, "128"), (100, "75 tokens")):
        with pytest.raises(UsageError, match=word):
            perplexity(model, IDS, ctx, byte_lengths=IDS)
