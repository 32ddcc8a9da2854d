"""GGUF out: mixes, importance matrices, parts, the command. (Parity of keys and tokenizers: tests/parity.)"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from fakes.tiny_llm import tiny_folder
from tokenmill.adapt import adapt, save_adapter
from tokenmill.cli import app as cli
from tokenmill.config.parts import AdapterConfig
from tokenmill.core.checksums import check_sums
from tokenmill.core.errors import FormatError, UsageError
from tokenmill.formats import GGUFFile
from tokenmill.formats.gguf import Planned, Typed, quantize, write_planned
from tokenmill.formats.gguf.imatrix import ImportanceMatrix, check_fits, read_imatrix
from tokenmill.models import load_model
from tokenmill.models.load import load_tokenizer
from tokenmill.models.weights import file_tensor, slots
from tokenmill.quant.ggml_imatrix import collect
from tokenmill.quant.ggml_mix import MIXES, Traits, fitting, mix_named, quantisable, tensor_types
from tokenmill.quant.run import quantise
from tokenmill.quant.save import write_folder
from tokenmill.quant.settings import settings

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows are 256 long, with a byte-level tokenizer and ChatML."""
    path = tiny_folder(tmp_path_factory.mktemp("wide"))
    config = json.loads((path / "config.json").read_text()) | WIDE | {"attention_bias": False, "mlp_bias": False}
    (path / "model.safetensors").unlink()
    return tiny.write(config, path)


def grouped(types: dict[str, str]) -> dict[str, str]:
    """Part of a model -> its types, layer by layer."""
    found: dict[str, list[str]] = {}
    for name in sorted(types, key=lambda name: int(name.split(".")[1]) if name.startswith("blk.") else 0):
        found.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(types[name])
    return {part: " ".join(listed) for part, listed in found.items()}


def test_mixes_are_llama_quantize_s() -> None:
    """Types that llama-quantize gave a llama of 16 layers, 256 wide, four query heads to a key head; see the golden
    file: mix (".weighted": with an importance matrix) -> part -> types of the layers."""
    golden: dict[str, dict[str, str]] = json.loads((tiny.GOLDEN / "gguf_mixes.json").read_text())
    assert len(golden) > 25
    names = [f"blk.{n}.{part}.weight" for n in range(16) for part in golden["Q4_K_M"] if "norm" not in part]
    names = [name for name in names if ".token_embd" not in name and ".output." not in name]
    shapes = dict.fromkeys([*names, "token_embd.weight", "output.weight"], (256, 256))
    for name, expected in golden.items():
        mix, _, weighted = name.partition(".")
        found = tensor_types(mix, shapes, Traits(16, queries_per_head=4, has_importance=bool(weighted)))
        assert grouped(found) == {part: types for part, types in expected.items() if "norm" not in part}, name


def test_rows_that_blocks_do_not_divide_fall_back() -> None:
    assert [fitting(t, 96) for t in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")] == [
        *("Q4_0", "Q4_0", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
    ]
    assert fitting("Q4_K", 48) == "F16"
    assert fitting("Q8_0", 48) == "F16"
    assert fitting("Q4_K", 512) == "Q4_K"
    tied = tensor_types("Q4_K_M", {"token_embd.weight": (10, 96)}, Traits(2, tied=True))
    assert tied == {"token_embd.weight": "Q8_0"}


def test_norms_routers_and_positions_stay_as_they_are() -> None:
    kept = ["blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "position_embd.weight", "rope_freqs.weight"]
    assert not any(quantisable(name, (256, 256)) for name in kept)
    assert not quantisable("blk.0.attn_q.bias", (256,))


def test_mix_names() -> None:
    assert mix_named("q4_k_m") == "Q4_K_M"
    assert mix_named("Q4_K") == "Q4_K_M"
    with pytest.raises(UsageError, match="did you mean 'Q4_K_M'"):
        mix_named("Q4_KM")


def _planned(count: int) -> list[Planned]:
    tensors = [torch.full((4, 32), float(n)) for n in range(count)]
    return [Planned(f"t{n}", (4, 32), "F32", lambda t=t: quantize(t, "F32")) for n, t in enumerate(tensors)]  # type: ignore[misc]


def test_parts_are_named_and_marked_as_llama_cpp_s(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    files = write_planned(
        tmp_path / "m.gguf", {"a": 1}, _planned(5), part_bytes=1100, progress=lambda done, all: seen.append((done, all))
    )
    assert [path.name for path in files] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert seen[-1] == (2560, 2560)
    file = GGUFFile(files[1])
    assert list(file.infos()) == [f"t{n}" for n in range(5)]
    assert [int(file.load(f"t{n}")[0, 0]) for n in range(5)] == list(range(5))
    assert file.metadata["split.tensors.count"] == 5
    assert file.metadata_types["split.count"] == "uint16"
    files[2].unlink()
    with pytest.raises(FormatError, match="parts missing"):
        GGUFFile(files[0])


def test_a_failure_in_a_late_part_leaves_no_part(tmp_path: Path) -> None:
    tensors = _planned(3)

    def broken() -> torch.Tensor:
        raise UsageError("out of luck")

    tensors.append(Planned("bad", (4, 32), "F32", broken))
    with pytest.raises(FormatError, match="tensor 'bad': out of luck"):
        write_planned(tmp_path / "m.gguf", {}, tensors, part_bytes=600)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.gguf", "m.dat"])
def test_importance_matrices_come_back(tmp_path: Path, name: str) -> None:
    matrix = ImportanceMatrix(datasets=["book.txt"], chunk_size=4)
    matrix.sums = {"blk.0.attn_q.weight": torch.tensor([[8.0, 16.0]]), "blk.0.ffn_up_exps.weight": torch.ones(3, 2)}
    matrix.counts = {"blk.0.attn_q.weight": torch.tensor([8.0]), "blk.0.ffn_up_exps.weight": torch.tensor([4.0, 2, 0])}
    matrix.save(tmp_path / name)
    again = read_imatrix(tmp_path / name)
    assert again.datasets == ["book.txt"]
    assert torch.equal(again.of("blk.0.attn_q.weight"), torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    experts = again.of("blk.0.ffn_up_exps.weight", 3)
    assert torch.allclose(experts, torch.tensor([[0.25] * 2, [0.5] * 2, [1.0] * 2]))  # type: ignore[arg-type]
    assert again.of("output.weight") is None


def test_broken_importance_matrices_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    name = b"blk.0.attn_q.weight"
    whole = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii2f", 1, 2, 1.0, 2.0)
    for data, problem in (
        (whole[:-3], "cut off"),
        (struct.pack("<i", 1 << 30), "cut off"),
        (b"\x01\0\0\0\x02\0\0\0\xff\xfe", "is no name"),
        (struct.pack("<i", 0), "no entries"),
        (whole[:-4] + struct.pack("<f", float("nan")), "no sums of squares"),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=problem):
            read_imatrix(path)
    path.write_bytes(whole)
    matrix = read_imatrix(path)
    check_fits(matrix, {"blk.0.attn_q.weight": (7, 2)})
    with pytest.raises(FormatError, match="2 columns"):
        check_fits(matrix, {"blk.0.attn_q.weight": (7, 3)})
    with pytest.raises(FormatError, match="of another model"):
        check_fits(matrix, {"blk.0.ffn_up.weight": (7, 2)})


def test_importances_are_the_mean_squares_of_inputs(tmp_path: Path) -> None:
    model = load_model(tiny.write(tiny.FAMILIES["mixtral"], tmp_path / "m"), dtype="float32")
    ids = [n % 97 for n in range(256)]
    matrix = collect(model, ids, dataset="counting", ctx=64, bos_token_id=1)
    assert matrix.chunks == 4
    assert "output.weight" not in matrix.sums
    router = model.network.get_submodule("layers.0.mlp.router")
    seen: list[torch.Tensor] = []
    router.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    again = collect(model, ids, dataset="counting", ctx=64, bos_token_id=1)
    x_TK = torch.cat(seen)
    found = matrix.of("blk.0.ffn_gate_inp.weight")
    assert torch.allclose(found, (x_TK * x_TK).mean(0), rtol=1e-5)  # type: ignore[arg-type]
    experts = again.counts["blk.0.ffn_up_exps.weight"]
    assert experts.sum() == 2 * 256  # each token meets two of the five
    assert matrix.sums["blk.0.ffn_up_exps.weight"].shape == (5, 48)
    with pytest.raises(UsageError, match="has 100 tokens"):
        collect(model, ids[:100], dataset="short", ctx=64)


def test_the_command_writes_checks_and_says(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 110)
    out, kept = tmp_path / "out" / "m.gguf", tmp_path / "kept.gguf"
    words = ["export", "gguf", str(folder), "--out", str(out), "--type", "q4_k_m", "--calibrate", str(text)]
    assert cli.main([*words, "--save-imatrix", str(kept), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["tensor_types"] == {"F32": 5, "Q4_K": 13, "Q6_K": 3}
    assert said["check"]["kl"] < 2
    assert list(out.parent.iterdir()) == [out]
    file = GGUFFile(out)
    assert file.metadata["general.file_type"] == MIXES["Q4_K_M"][0]
    assert file.metadata["quantize.imatrix.dataset"] == "text.txt"
    assert len(read_imatrix(kept).sums) == 14
    assert load_tokenizer(out).encode("the cat 12 ü") == load_tokenizer(folder).encode("the cat 12 ü")
    assert load_tokenizer(out).chat_template == load_tokenizer(folder).chat_template

    # a GGUF file is a source too: all it says is taken over
    again = tmp_path / "again.gguf"
    assert cli.main(["export", "gguf", str(out), "--out", str(again), "--type", "Q8_0", "--split-size", "1M"]) == 0
    parts = sorted(tmp_path.glob("again-*.gguf"))
    assert len(parts) == 2
    words = ["export", "gguf", str(out), "--out", str(again), "--type", "Q8_0", "--split-size"]
    before = [(part.stat().st_ino, part.name) for part in parts]
    assert cli.main([*words, "2M"]) == 2, "parts are no more overwritten than files"
    assert "again-00001-of-00002.gguf is there already" in capsys.readouterr().err
    assert [(part.stat().st_ino, part.name) for part in sorted(tmp_path.glob("again-*.gguf"))] == before
    assert cli.main([*words, "1M", "--force"]) == 0
    assert GGUFFile(parts[0]).metadata["tokenizer.ggml.tokens"] == file.metadata["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--out", "m.bin"], "ends in .gguf"),
        (["--out", "m.gguf", "--type", "Q4_X"], "is not known"),
        (["--out", "m.gguf", "--split-size", "2T"], "such as 2G"),
        (["--out", "m.gguf", "--imatrix", "a", "--calibrate", "b"], "give one"),
        (["--out", "m.gguf", "--save-imatrix", "a"], "give --calibrate"),
        (["--out", "m.gguf", "--type", "Q2_K_S"], "no good without an importance matrix"),
        (["--out", "m.gguf", "--imatrix", "none.gguf"], "no such file"),
        (["--out", "m.gguf", "--lora", "nowhere"], "no such folder"),
        (["--out", "m.gguf", "--lora", "x", "--type", "Q8_0"], "--type means nothing"),
        (["--out", "m.gguf", "--lora", "x", "--save-imatrix", "y"], "--save-imatrix means nothing"),
        (["--out", "m.gguf", "--type", "F16", "--imatrix", "a"], "importances mean nothing to F16"),
        (["--out", "m.gguf", "--type", "nearest"], "is for quantised folders"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "gguf", str(folder), *more]) in (1, 2)
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_another_command_wrote_meanwhile_is_not_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenmill.evals import handover

    out = tmp_path / "m.gguf"
    monkeypatch.setattr(handover, "check", lambda *given: out.write_text("another's"))
    words = ["export", "gguf", str(folder), "--out", str(out), "--type", "F16"]
    assert cli.main(words) == 2
    assert "m.gguf is there already" in capsys.readouterr().err
    assert (out.read_text(), list(tmp_path.iterdir())) == ("another's", [out])
    assert cli.main([*words, "--force"]) == 0
    assert GGUFFile(out).metadata["general.architecture"] == "llama"


def test_a_file_that_is_another_model_gets_no_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted fault: the encoder turns all signs around."""
    from tokenmill.quant import ggml_export

    true = ggml_export.encode_blocks
    monkeypatch.setattr(ggml_export, "encode_blocks", lambda x, type, importance=None: true(-x, type, importance))
    assert cli.main(["export", "gguf", str(folder), "--out", str(tmp_path / "m.gguf"), "--type", "F16"]) == 1
    assert "nats a token from the original" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "type"),
    [
        ({"method": "rtn", "group_size": 64}, "Q4_0"),
        ({"method": "rtn", "bits": 3, "group_size": 32, "symmetric": False}, "Q4_1"),
        ({"method": "w8a8", "smooth": 0.0}, "Q8_0"),
    ],
)
def test_codes_of_a_folder_are_kept(
    how: dict[str, Any], type: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by the gguf package, the file has the folder's very numbers; rows of queries and keys in llama's order."""
    gguf = pytest.importorskip("gguf")
    small, out = tmp_path / "small", tmp_path / "m.gguf"
    done = quantise(load_model(folder, dtype="float32"), settings(**how), [], tmp_path / "work", source="wide")
    write_folder(done, small, torch.float16)
    load_tokenizer(folder).save(small)
    assert cli.main(["export", "gguf", str(small), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["type"] == type
    assert said["tensor_types"] == {"F16": 2, "F32": 5, type: 14}
    model = load_model(small, dtype="float32")
    parameters = dict(model.decoder.named_parameters())
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    for slot in slots(model.decoder, model.family.gguf_weights):
        wanted = file_tensor(model.decoder, slot, [parameters[name].detach() for name in slot.ours])
        tensor = read[slot.theirs]
        found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).view(wanted.shape)
        # a minimum is rounded to half precision, a sixteenth of a thousandth of the range
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item()), slot.theirs
        if type != "Q4_1":
            assert torch.equal(found, wanted), slot.theirs


def test_an_adapter_is_put_on_the_model_before_its_file_gets_a_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A planted fault: the file's alpha is half of what it should be."""
    from tokenmill.adapt import gguf

    model = load_model(folder, dtype="float32")
    adapt(model, AdapterConfig(rank=2))
    for number, (name, parameter) in enumerate(model.network.named_parameters()):
        if ".adapters." in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    save_adapter(model, tmp_path / "lora")
    words = ["export", "gguf", str(folder), "--lora", str(tmp_path / "lora"), "--out", str(tmp_path / "a.gguf")]
    assert cli.main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["check"]["kl"] < 1e-7
    assert said["sha256"] == hashlib.sha256((tmp_path / "a.gguf").read_bytes()).hexdigest()
    (tmp_path / "a.gguf").unlink()
    true = gguf.gguf_of_adapter

    def halved(*given: Any) -> Any:
        keys, tensors = true(*given)
        return {**keys, "adapter.lora.alpha": Typed(keys["adapter.lora.alpha"].value / 2, "float32")}, tensors

    monkeypatch.setattr(gguf, "gguf_of_adapter", halved)
    assert cli.main(words) == 1
    assert "nats a token from the original" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_a_folder_for_ollama(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenmill.store import Store
    from tokenmill.store.modelfile import parse_modelfile

    out = tmp_path / "o"
    words = ["export", "ollama", str(folder), "--out", str(out), "--type", "Q8_0", "--system", "Be brief."]
    assert cli.main([*words, "--create", "handed-over", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "SHA256SUMS", "model.gguf"]
    assert told["sha256"]["model.gguf"] == hashlib.sha256((out / "model.gguf").read_bytes()).hexdigest()
    check_sums(out)
    card = (out / "README.md").read_text()
    for part in ("library_name: gguf", "in Q8_0", "ollama create o -f Modelfile", "| bits_per_weight | ", "## Licence"):
        assert part in card, part
    found = parse_modelfile((out / "Modelfile").read_text())
    assert found.system == "Be brief."
    assert found.parameters["stop"] == ["<|im_end|>"] or "<|im_end|>" in found.parameters["stop"]
    assert found.template is not None
    assert "{{ range .Messages }}<|im_start|>{{ .Role }}" in found.template
    assert Store().resolve("handed-over").system == "Be brief."
    Store().remove("handed-over")
