"""Write tests/data/golden/*.npz: logits of the tiny models as transformers 5.23 computes them.

Run it only to add a family: ``python tests/make_golden.py``. The parity tests compare with transformers itself where it
is installed; ``tests/unit/test_golden_logits.py`` uses these files where it is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

import tiny


def main() -> None:
    tiny.GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, config in tiny.FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                tiny.write(config, Path(folder)), dtype=torch.float32, attn_implementation="eager"
            )
            logits = {str(i): model(torch.tensor([p])).logits[0].numpy() for i, p in enumerate(tiny.PROMPTS[:3])}
            np.savez_compressed(tiny.GOLDEN / f"{name}.npz", **logits)


if __name__ == "__main__":
    main()
