"""``tokenmill export gguf --lora``: a PEFT LoRA adapter as a GGUF adapter for llama.cpp and Ollama."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tokenmill.cli.output import emit, human_size
from tokenmill.core.errors import MissingFileError

MOST_KL = 1e-5
"""Nats a token between the model with the folder's adapter and with the file's: both are computed in float32."""


def export_lora(name: str, folder: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write the adapter in ``folder``, made for the model ``name``. Both are put on the model at the end, and what it
    then says of a text is compared."""
    from tokenmill.adapt.folder import load_adapter
    from tokenmill.adapt.gguf import gguf_of_adapter
    from tokenmill.cli.export_gguf import check_out, open_model
    from tokenmill.core.checksums import sha256_of
    from tokenmill.evals.handover import agree, check, next_tokens, probe
    from tokenmill.formats import write_gguf
    from tokenmill.models.load import model_from_file

    check_out(out, force)
    if not folder.is_dir():
        raise MissingFileError(f"--lora {folder}: no such folder")
    opened = open_model(name)
    model, ids = model_from_file(opened.file, device="cpu", dtype="float32"), probe(opened.tokenizer)
    metadata, tensors = gguf_of_adapter(model, folder)
    load_adapter(model, folder)
    before = next_tokens(model.decoder, ids)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        path = Path(aside) / out.name
        write_gguf(path, metadata, tensors)
        products = load_adapter(model, path, "written")  # on instead of the folder's
        found = agree(before, next_tokens(model.decoder, ids))
        check(found, MOST_KL, str(out))
        check_out(out, force)  # once more: another command may have written there meanwhile
        os.replace(path, out)
    size = out.stat().st_size
    document = {"model": name, "adapter": str(folder), "out": str(out), "size": size, "layers": products}
    document |= {"sha256": sha256_of(out), "check": found.asdict()}
    emit(document, as_json, f"{out}: LoRA for {products} layers of {name}, {human_size(size)}")
