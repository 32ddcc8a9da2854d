"""``tokenmill serve``: the server, until it is told to stop.

Models named here are fetched if they are missing, loaded before the server answers, and kept while there is room; any
other model of the store is loaded when somebody asks for it. Keys come from ``--api-key``, ``TOKENMILL_API_KEY`` (which
other programs of this machine cannot see) and, hashed, from the file ``api-keys`` in tokenmill's folder.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Annotated, Literal

import typer

from tokenmill.cli.output import Json, PullProgress, note, verb
from tokenmill.store import Store

app = verb()

EPILOG = """\b
Examples:
  tokenmill serve
  tokenmill serve smollm2:135m --port 8000
  tokenmill serve --host 0.0.0.0 --api-key "$(openssl rand -hex 24)"
"""


@app.command(epilog=EPILOG)
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Models to load now and keep while there is room; paths too."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")] = 11434,
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="TOKENMILL_API_KEY", help="A key that opens the server; may be repeated."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines use this server without a key.")
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option("--cors", metavar="ORIGIN", help="A site whose pages may call this server; may be repeated."),
    ] = None,
    ctx_size: Annotated[
        int | None, typer.Option("--ctx-size", min=1, help="Tokens of prompt and answer together.")
    ] = None,
    keep_alive: Annotated[
        float, typer.Option("--keep-alive", help="Seconds that an idle model stays in memory; negative is for ever.")
    ] = 300.0,
    max_models: Annotated[int, typer.Option("--max-models", min=1, help="Models in memory at a time.")] = 3,
    memory_limit: Annotated[
        float | None, typer.Option("--memory-limit", metavar="GB", help="What the models in memory may take together.")
    ] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Requests that may wait for a model.")] = 512,
    private_cache: Annotated[
        bool, typer.Option("--private-cache", help="Share no computed prompts between keys: slower, and tells nothing.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="How the log on stderr is written.")
    ] = "text",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same logits to the last bit, whoever else asks; slower.")
    ] = False,
    kv_cache_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        typer.Option("--kv-cache-dtype", help="How keys and values are kept; int8 halves bf16's memory."),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Serve models over HTTP: OpenAI's, Ollama's and Anthropic's protocols on one port."""
    from tokenmill.serve.log_format import log_as_json
    from tokenmill.serve.runner import serve as run
    from tokenmill.serve.settings import ServerSettings, key_hash, stored_key_hashes

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=frozenset(map(key_hash, api_key or ())) | stored_key_hashes(),
        insecure=insecure,
        cors_origins=tuple(cors or ()),
        ctx_size=ctx_size,
        keep_alive=keep_alive,
        max_models=max(max_models, len(names or ())),
        memory_limit=None if memory_limit is None else int(memory_limit * 1e9),
        max_queue=max_queue,
        private_cache=private_cache,
        deterministic=deterministic,
        kv_cache_dtype=kv_cache_dtype,
    )
    if log_format == "json":
        log_as_json()
    if "TOKENMILL_LOG" not in os.environ:
        logging.getLogger("tokenmill.serve").setLevel(logging.INFO)  # requests, loads and unloads are a server's news
    store = Store()
    with PullProgress() as progress:
        models = [store.resolve(name, pull=True, progress=progress) for name in names or ()]

    def ready(url: str) -> None:
        tell = logging.getLogger("tokenmill.serve").info if log_format == "json" else note
        tell(f"tokenmill serves on {url}; Ctrl-C stops it")
        if as_json:
            print(json.dumps({"url": url, "models": [files.name for files in models]}), flush=True)

    run(settings, store=store, models=models, on_ready=ready)
