"""Where a model runs and in which number format, when the person does not say. torch is imported only when asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenmill.core.errors import UsageError, did_you_mean
from tokenmill.core.log import get_logger, info_once
from tokenmill.core.machine import cpu_flags, probe_machine

if TYPE_CHECKING:
    import torch

log = get_logger(__name__)
DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16"}
DTYPES["fp16"] = "float16"


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """``device`` as given and checked, else CUDA where there is one, else the CPU."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device; use cpu, cuda or cuda:0") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is not supported; use cpu, cuda or cuda:0")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not here: torch sees {torch.cuda.device_count()} CUDA devices")
    return chosen


def pick_dtype(
    dtype: str | torch.dtype | None, device: torch.device, stored: torch.dtype | None, parameters: int
) -> torch.dtype:
    """``dtype`` as given, else what suits the device.

    ``stored``: the file's float format, None for quantised blocks. CUDA computes in 16 bit. On a CPU, float16 and
    bfloat16 become float32 where there are no instructions for bfloat16; quantised blocks become float32, which keeps
    what they say to the last bit, while that takes no more than a quarter of the memory, and bfloat16 beyond.
    """
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None and dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; use auto, {', '.join(DTYPES)}")
        return getattr(torch, DTYPES[dtype])
    if device.type == "cuda":
        return stored if stored in (torch.float16, torch.bfloat16) else torch.bfloat16
    if stored is None:
        small = 4 * parameters <= (probe_machine().memory_total or 0) / 4
        info_once(log, f"dequantising to {'float32' if small else 'bfloat16, for float32 takes too much memory'}")
        return torch.float32 if small else torch.bfloat16
    if stored != torch.float32 and not cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        info_once(log, f"computing in float32: this CPU is slow at {stored}")
        return torch.float32
    return stored


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be claimed on this device; None where nobody says."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return probe_machine().memory_available
