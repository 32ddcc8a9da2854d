"""A server on a tiny random model: a llama of a few thousand weights, a byte-level tokenizer trained here, ChatML.

``tiny_app`` gives the application with the model "tiny" in a store of its own, ``serving`` runs an application under
uvicorn in a thread and gives its address, so that real clients can talk to it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import uvicorn
from fastapi import FastAPI
from tokenizers import decoders, models, pre_tokenizers, trainers

import tiny
from tokenmill.serve.app import create_app
from tokenmill.serve.settings import ServerSettings
from tokenmill.store import Store

NAME = "tiny"
VOCABULARY = 320
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = ["the cat sat on the mat and the dog sat on the log", "hello there, what is the capital of France?"]


def tiny_folder(folder: Path, *, chat_template: str = CHATML, context: int = 512) -> Path:
    """A Hugging Face folder with weights, tokenizer and chat template. Weights are the same on any machine."""
    config = {
        **tiny.FAMILIES["llama"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": context,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    tiny.write(config, folder)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_TEXT, trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_store(root: Path, *, modelfile: str = "", **folder: Any) -> Store:
    """A store below `root` whose model "tiny" is the tiny folder; `modelfile` are further lines of its Modelfile."""
    path = root / "tiny-model"
    if not path.exists():
        tiny_folder(path, **folder)
    store = Store(root / "models")
    store.create(NAME, f"FROM {path}\n{modelfile}", root)
    return store


def tiny_app(root: Path, *, store: Store | None = None, **settings: Any) -> FastAPI:
    """The application with the model "tiny" in its store; `settings` are ServerSettings' fields."""
    return create_app(replace(ServerSettings(dtype="float32"), **settings), store or tiny_store(root))


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """`app` under uvicorn on a free port of the loopback interface; gives ``http://127.0.0.1:PORT``."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
