"""``tokenmill export gguf``: a model, or an adapter of it, as a file for llama.cpp, Ollama and what builds on them."""

from __future__ import annotations

import glob
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenmill.cli.inputs import text_of
from tokenmill.cli.output import Json, PullProgress, emit, human_size, note, step_meter
from tokenmill.core.errors import UsageError

if TYPE_CHECKING:
    from tokenmill.formats import TensorFile
    from tokenmill.formats.gguf.imatrix import ImportanceMatrix
    from tokenmill.models.load import Model
    from tokenmill.quant.ggml_export import Source, Written
    from tokenmill.text.tokenizer import Tokenizer

EPILOG = """\b
Examples:
  tokenmill export gguf smollm2:135m --out small.gguf --type Q4_K_M
  tokenmill export gguf runs/latest/model --out mine.gguf --type Q4_K_M --calibrate book.txt
  tokenmill export gguf smollm2:135m --lora runs/latest/model --out adapter.gguf
"""
_UNITS = {"M": 10**6, "G": 10**9}
MOST_KL = {"F32": 0.001, "F16": 0.01, "BF16": 0.05, "Q8_0": 0.05}
"""Nats a token that a type may cost before the file is held to be broken; for smaller types `OTHER_KL`."""
OTHER_KL = 5.0
DEFAULT = "Q4_K_M"
Type = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Q4_K_M, Q5_K_M, Q6_K, Q8_0, Q3_K_M, Q2_K, IQ4_NL, F16, BF16, …; nearest: what holds a quantised folder's "
        "codes. [default: Q4_K_M; of a quantised folder, nearest]",
    ),
]
Imatrix = Annotated[Path | None, typer.Option(metavar="FILE", help="An importance matrix, of ours or of llama.cpp.")]
Calibrate = Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8 text to collect an importance matrix on.")]


def gguf(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; pulled when it is missing.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; ends in .gguf.")],
    type: Type = None,
    imatrix: Imatrix = None,
    calibrate: Calibrate = None,
    save_imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what --calibrate collected (.gguf, or .dat as of old).")
    ] = None,
    split_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of a file, such as 2G or 500M; more become parts.")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write this PEFT LoRA adapter of MODEL, not MODEL itself.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as GGUF. The file is read again and compared with the original before it gets its name."""
    if lora is not None:
        others = {"type": type, "imatrix": imatrix, "calibrate": calibrate, "save-imatrix": save_imatrix}
        if odd := [f"--{name}" for name, value in (others | {"split-size": split_size}).items() if value is not None]:
            raise UsageError(f"--lora writes an adapter, to which {', '.join(odd)} means nothing")
        from tokenmill.cli.export_lora import export_lora

        return export_lora(model, lora, out, force, as_json)
    wanted = Wanted(out, type, imatrix, calibrate, save_imatrix, parse_size(split_size), force)
    wanted.check()
    document = export(wanted, open_model(model))
    emit(document, as_json, human_lines(document))


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    out: Path
    type: str | None = None
    imatrix: Path | None = None
    calibrate: Path | None = None
    save_imatrix: Path | None = None
    part_bytes: int | None = None
    force: bool = False

    def mix(self, quantised: bool) -> str:
        """What is written of a model, ``quantised`` or not."""
        from tokenmill.quant.ggml_mix import NEAREST, mix_named

        counted = self.imatrix is not None or self.calibrate is not None
        return mix_named(self.type or (NEAREST if quantised and not counted else DEFAULT))

    def check(self) -> None:
        """UsageError for what contradicts itself, before anything long begins."""
        from tokenmill.quant.ggml_mix import mix_named, reads_importance

        mix = mix_named(self.type or DEFAULT)
        check_out(self.out, self.force)
        if self.part_bytes is not None:
            parts = glob.escape(self.out.stem) + "-?????-of-?????.gguf"
            for part in () if self.force else sorted(self.out.parent.glob(parts)):
                raise UsageError(f"{part} is there already; --force replaces the parts of a model of this name")
        if not reads_importance(mix) and (self.imatrix or self.calibrate):
            raise UsageError(f"importances mean nothing to {mix}: leave --imatrix and --calibrate out")
        if self.imatrix is not None and self.calibrate is not None:
            raise UsageError("--imatrix and --calibrate are two sources of one thing: give one")
        if self.save_imatrix is not None and self.calibrate is None:
            raise UsageError("--save-imatrix keeps what --calibrate collects: give --calibrate FILE")


def check_out(out: Path, force: bool) -> None:
    """UsageError for a name that no GGUF file should have, or one that is taken."""
    if out.suffix != ".gguf":
        raise UsageError(f"--out {out}: a GGUF file's name ends in .gguf")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if out.exists() and not force:
        raise UsageError(f"--out {out} is there already; --force replaces it")


def parse_size(text: str | None) -> int | None:
    """``2G`` and ``500M`` as bytes, decimal as llama-gguf-split counts."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)([MG])", text.strip().upper())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"--split-size {text!r}: give a whole number with M or G, such as 2G")
    return int(found[1]) * _UNITS[found[2]]


def open_model(name: str) -> Opened:
    """The model of this name, pulled when it is missing."""
    from tokenmill.formats import open_tensors
    from tokenmill.store import Store

    with PullProgress() as progress:
        return Opened(name, open_tensors(Store().resolve(name, pull=True, progress=progress).weights()))


def export(wanted: Wanted, opened: Opened) -> dict[str, Any]:
    """Do what was asked for and checked; what ``--json`` prints."""
    from tokenmill.core.checksums import sha256_of
    from tokenmill.quant.ggml_mix import NEAREST

    begin = time.perf_counter()
    with step_meter() as meter:
        importance = _importance(wanted, opened, meter)
        source = opened.source()
        if source.requantised and wanted.mix(opened.quantised) != NEAREST:
            note(f"{opened.name} is quantised already ({source.requantised}): what that cost stays, and more is added")
        written, agreement = _write_checked(wanted, opened, source, importance, meter)
    if written.window is not None:
        note(
            f"warning: llama.cpp has no sliding windows for {opened.name}'s architecture: beyond {written.window} "
            "tokens of context it computes another model"
        )
    return {
        "model": opened.name,
        "out": [str(path) for path in written.files],
        "sha256": {path.name: sha256_of(path) for path in written.files},
        "type": written.mix,
        "size": written.size,
        "bits_per_weight": written.bits,
        "parameters": written.parameters,
        "tensor_types": written.types,
        "fallbacks": written.fallbacks,
        "without_importance": written.unimportant,
        "same_up_to_tokens": written.window,
        "check": agreement,
        "seconds": time.perf_counter() - begin,
    }


class Opened:
    """A model that is exported: its file, and what is made of it when it is needed."""

    def __init__(self, name: str, file: TensorFile) -> None:
        self.name, self.file = name, file
        self._model: Model | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def model(self) -> Model:
        if self._model is None:
            from tokenmill.models.load import model_from_file

            self._model = model_from_file(self.file, device="cpu", dtype=None if self._is_gguf else "auto")
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            from tokenmill.models.load import tokenizer_from_file

            self._tokenizer = tokenizer_from_file(self.file)
        return self._tokenizer

    @property
    def quantised(self) -> bool:
        """Whether it is a folder of codes."""
        from tokenmill.formats import QuantisedFolder

        return isinstance(self.file, QuantisedFolder)

    @property
    def _is_gguf(self) -> bool:
        from tokenmill.formats import GGUFFile

        return isinstance(self.file, GGUFFile)

    def source(self) -> Source:
        """What is written."""
        from tokenmill.formats import GGUFFile, QuantisedFolder
        from tokenmill.quant.ggml_card import general_keys
        from tokenmill.quant.ggml_export import source_from_gguf, source_from_model

        if isinstance(self.file, GGUFFile):
            return source_from_gguf(self.file)
        path = Path(self.file.path)
        codes = self.file if isinstance(self.file, QuantisedFolder) else None
        return source_from_model(self.model, self.tokenizer, path, general_keys(path, self.name), codes)


def _importance(wanted: Wanted, opened: Opened, meter: Any) -> ImportanceMatrix | None:
    if wanted.imatrix is not None:
        from tokenmill.formats.gguf.imatrix import read_imatrix

        return read_imatrix(wanted.imatrix)
    if wanted.calibrate is None:
        return None
    text = text_of("--calibrate", wanted.calibrate)
    from tokenmill.quant.ggml_imatrix import collect

    tokenizer = opened.tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    begins = ids[:1] == [tokenizer.bos_token_id]
    matrix = collect(
        opened.model,
        ids,
        dataset=wanted.calibrate.name,
        bos_token_id=tokenizer.bos_token_id if begins else None,
        progress=lambda done, total: meter("calibration", done, total),
    )
    if wanted.save_imatrix is not None:
        matrix.save(wanted.save_imatrix)
    return matrix


def _write_checked(
    wanted: Wanted, opened: Opened, source: Source, importance: ImportanceMatrix | None, meter: Any
) -> tuple[Written, dict[str, float]]:
    """Write into a folder of its own beside the target, compare, then move: what fails leaves nothing behind."""
    from dataclasses import replace

    from tokenmill.evals.handover import agree, check, next_tokens, probe
    from tokenmill.models.load import load_model
    from tokenmill.quant.ggml_export import write_source

    mix, folder = wanted.mix(opened.quantised), wanted.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{wanted.out.name}.") as aside:
        written = write_source(
            source,
            Path(aside) / wanted.out.name,
            mix,
            importance=importance,
            part_bytes=wanted.part_bytes,
            progress=lambda done, total: meter("megabytes", done // 1_000_000, max(1, total // 1_000_000)),
        )
        ids = probe(opened.tokenizer)
        before = next_tokens(opened.model.decoder, ids)
        found = agree(before, next_tokens(load_model(written.files[0], device="cpu").decoder, ids))
        check(found, MOST_KL.get(mix, OTHER_KL), str(wanted.out))
        wanted.check()  # once more: another command may have written there meanwhile
        moved = [folder / path.name for path in written.files]
        for path, target in zip(written.files, moved, strict=True):
            os.replace(path, target)
    return replace(written, files=moved), found.asdict()


def human_lines(document: dict[str, Any]) -> str:
    """For people."""
    check, types = document["check"], document["tensor_types"]
    lines = [
        f"{', '.join(document['out'])}: {document['type']}, {human_size(document['size'])}, "
        f"{document['bits_per_weight']:.2f} bits a weight",
        "tensors  " + ", ".join(f"{count} {type}" for type, count in types.items()),
        f"check    {check['kl']:.2g} nats a token from the original, the same likeliest token in "
        f"{100 * check['agreement']:.1f} % of {check['tokens']} places",
    ]
    if document["fallbacks"]:
        lines.append(
            f"note     rows of {len(document['fallbacks'])} matrices are no multiple of 256: other types for them"
        )
    return "\n".join(lines)
