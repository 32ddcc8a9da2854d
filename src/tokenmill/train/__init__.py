"""Training: one loop for every objective, adapter and optimiser.

    import tokenmill
    result = tokenmill.train("lora", model="smollm2:135m", data="chats.jsonl", steps=100)

The module itself is what is called: a package and a function cannot share a name in any other way. What it takes is
described at :func:`tokenmill.train.run.train`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **values: Any) -> Any:
        from tokenmill.train.run import train

        return train(*args, **values)


sys.modules[__name__].__class__ = _Callable
