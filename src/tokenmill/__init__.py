"""tokenmill: one package that takes a language model through its whole life on hardware you control.

Names are resolved on first use (PEP 562), so that ``import tokenmill`` and ``tokenmill --help`` load no torch.
"""

from __future__ import annotations

from tokenmill.core.version import __version__

TYPE_CHECKING = False  # typing itself takes as long to import as all of this
if TYPE_CHECKING:
    from typing import Any

    from tokenmill.engine.repetition import RepetitionDetection as RepetitionDetection
    from tokenmill.engine.sampling_params import SamplingParams as SamplingParams
    from tokenmill.llm import LLM as LLM
    from tokenmill.models import load_model as load_model
    from tokenmill.models import load_tokenizer as load_tokenizer

_HOMES = {
    "LLM": "tokenmill.llm",
    "RepetitionDetection": "tokenmill.engine.repetition",
    "SamplingParams": "tokenmill.engine.sampling_params",
    "load_model": "tokenmill.models",
    "load_tokenizer": "tokenmill.models",
}

__all__ = ["LLM", "RepetitionDetection", "SamplingParams", "__version__", "load_model", "load_tokenizer", "train"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "train":  # a package that can be called
        return import_module("tokenmill.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenmill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
