"""A tiny model that calls tools: the tiny llama, a short template with a place for tools, whole calls as single tokens,
taught in a second to ask ``lookup`` and to say what it says."""

from __future__ import annotations

import json
from pathlib import Path

from fakes.tiny_llm import VOCABULARY, tiny_folder
from tokenmill.models import load_tokenizer
from tokenmill.train.run import train

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ {'name': call.function.name, 'arguments': "
    "call.function.arguments} | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = ("lookup", "boom", "nothing")
SECRET = "the cat"


def call(name: str) -> str:
    """A call as the model writes it: one token."""
    return f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'


TOOLS = f'''"""Tools of the tests."""
import os, time

def lookup() -> str:
    """Looks it up."""
    return "{SECRET}"

def boom() -> float:
    """Fails in the way that BOOM says."""
    how = os.environ.get("BOOM", "raise")
    if how == "raise":
        raise RuntimeError("boom")
    if how == "exit":
        os._exit(3)
    if how == "hang":
        time.sleep(60)
    return float("nan")
'''


def tool_folder(folder: Path, *, steps: int = 40) -> Path:
    """The model in ``model``, the tools' file ``tools.py``, prompts ``prompts.jsonl``."""
    begun = tiny_folder(folder / "begun", chat_template=TEMPLATE)
    tokenizer = load_tokenizer(begun).with_tokens([*map(call, NAMES), SECRET])
    assert tokenizer.vocab_size <= VOCABULARY
    tokenizer.save(begun)
    asked = [f"what is {word}" for word in ("on the mat", "on the log", "hello", "there")]
    tools = [{"name": name, "parameters": {}} for name in ("lookup", "boom")]
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]},
                {"role": "tool", "content": SECRET},
                {"role": "assistant", "content": SECRET},
            ],
            "tools": tools,
        }
        for question in asked
        for name in NAMES
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    (folder / "tools.py").write_text(TOOLS)
    taught = train(
        {"objective": "sft", "model": str(begun), "data": {"path": str(folder / "chats.jsonl"), "eval_share": 0.0},
         "steps": steps, "lr": 1e-2, "schedule": "constant", "warmup": 0, "seq_len": 128, "micro_batch": 4,
         "dtype": "float32", "eval_every": 0, "save_every": 0, "sample_tokens": 0, "trackers": [],
         "out": str(folder / "taught")},
        watchers=[],
    )  # fmt: skip
    assert taught.model is not None
    (folder / "model").symlink_to(taught.model)
    return folder
