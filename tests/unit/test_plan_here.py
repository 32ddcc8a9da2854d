"""This processor as a device: a planted machine is found exactly, a real one roughly (others use it while tests
run)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.core.errors import UsageError
from tokenmill.plan import here
from tokenmill.plan.here import LARGE, SMALL, Round, device_of, measure_here, probe
from tokenmill.plan.serve import step_seconds
from tokenmill.plan.shape import from_catalog
from tokenmill.plan.subject import subject_of_bytes

TINY = {"hidden": 256, "layers": 1, "heads": 4, "kv": 2, "mlp": 768, "vocab": 512}


def test_a_planted_machine_is_found_and_predicts_any_model() -> None:
    """20 GB/s of which the kernels reach 60 %, and 2 ms a step that no byte explains."""
    from tokenmill.plan.catalog import models

    def step(read: float) -> float:
        return read / (20e9 * 0.6) + 2e-3

    device = device_of(Round(20e9, step(5e6), step(120e6), 1.0, 0.0), 5e6, 120e6, 1e12, 16e9)
    assert device.bandwidth_efficiency == pytest.approx(0.6)
    assert device.overhead_s == pytest.approx(2e-3)
    shape = from_catalog(models().find("smollm2-135m"))
    asked = subject_of_bytes(
        shape, weight_bytes=97e6, read_bytes=97e6, prompt_tokens=32, output_tokens=32, cache_bits=32
    )
    assert step_seconds(asked, device, 1) == pytest.approx(step(97e6 + asked.kv_read_bytes), rel=1e-6)


def test_probes_are_of_the_format_and_read_what_is_counted(tmp_path: Path) -> None:
    from tokenmill.nn.cost import parameters

    network, read = probe(tmp_path / "probe.gguf", "Q4_1", 0, TINY)
    assert read == pytest.approx(parameters(network.config) * 5 / 8, rel=0.02)
    assert LARGE["layers"] * LARGE["hidden"] > 5 * SMALL["layers"] * SMALL["hidden"]


def test_a_real_model_is_predicted_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole way on a model of its own dimensions. The bound is wide: tests share the cores with others; what was
    measured with fewer of them stands in docs/plan.md."""
    monkeypatch.setattr(here, "ROUNDS", 3)
    monkeypatch.setattr(here, "SMALL", TINY)
    monkeypatch.setattr(here, "LARGE", SMALL)
    path = tmp_path / "model.gguf"
    probe(path, "Q4_0", 7, {**SMALL, "layers": 4})
    found = measure_here(str(path), 16, 12)
    assert found.number_format == "Q4_0"
    assert 1 / 3 < found.predicted_tok_s / found.measured_tok_s < 3
    assert found.as_dict()["error"] == pytest.approx(found.predicted_tok_s / found.measured_tok_s - 1)


def test_mixtures_are_refused(tmp_path: Path) -> None:
    import tiny

    folder = tiny.write(tiny.FAMILIES["mixtral"], tmp_path / "mixtral")
    with pytest.raises(UsageError, match="experts"):
        measure_here(str(folder), 8, 4)
