"""``tokenmill export``: a model as other programs want it. One file a target, one `Typer` for all of them."""

from __future__ import annotations

from tokenmill.cli import export_folder, export_gguf, export_ollama
from tokenmill.cli.output import verb

app = verb()
app.command("gguf", epilog=export_gguf.EPILOG)(export_gguf.gguf)
app.command("hf", epilog=export_folder.HF_EPILOG)(export_folder.hf)
app.command("vllm", epilog=export_folder.VLLM_EPILOG)(export_folder.vllm)
app.command("ollama", epilog=export_ollama.EPILOG)(export_ollama.ollama)


@app.callback()
def export() -> None:
    """Write a model for other programs."""
