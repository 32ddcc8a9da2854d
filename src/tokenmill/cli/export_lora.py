"""``tokenmill export gguf --lora``: a PEFT LoRA adapter as a GGUF adapter for llama.cpp and Ollama."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tokenmill.cli.output import PullProgress, emit, human_size
from tokenmill.core.errors import NotFoundError


def export_lora(name: str, folder: Path, out: Path, force: bool, as_json: bool) -> None:
    """Write the adapter in ``folder``, made for the model ``name``, and put it on the model as a check."""
    from tokenmill.adapt.folder import load_adapter
    from tokenmill.adapt.gguf import gguf_of_adapter
    from tokenmill.cli.export_gguf import check_out
    from tokenmill.formats import open_tensors, write_gguf
    from tokenmill.models.load import model_from_file
    from tokenmill.store import Store

    check_out(out, force)
    if not folder.is_dir():
        raise NotFoundError(f"--lora {folder}: no such folder")
    with PullProgress() as progress:
        file = open_tensors(Store().resolve(name, pull=True, progress=progress).weights())
    model = model_from_file(file, device="cpu")
    metadata, tensors = gguf_of_adapter(model, folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        path = Path(aside) / out.name
        write_gguf(path, metadata, tensors)
        products = load_adapter(model, path)
        os.replace(path, out)
    size = out.stat().st_size
    document = {"model": name, "adapter": str(folder), "out": str(out), "size": size, "layers": products}
    emit(document, as_json, f"{out}: LoRA for {products} layers of {name}, {human_size(size)}")
