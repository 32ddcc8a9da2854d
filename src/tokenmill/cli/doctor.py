"""``tokenmill doctor``: what this machine has, what is active, and what to do about what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import platform
from typing import Any

import tokenmill
from tokenmill.cli.output import Json, emit, human_size, sections, verb
from tokenmill.core.machine import free_disk, probe_machine
from tokenmill.core.paths import home

app = verb()

EPILOG = """\b
Examples:
  tokenmill doctor
  tokenmill doctor --json
"""

# Below this much free memory or disk a small model no longer fits comfortably.
LITTLE_MEMORY, LITTLE_DISK = 2 * 10**9, 5 * 10**9


@app.command(epilog=EPILOG)
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, which kernels and extras are active, and what to do about what is missing."""
    report: dict[str, Any] = {
        "software": software(),
        "machine": machine(),
        "accelerators": accelerators(),
        "kernels": kernels(),
        "operations": operations(),
        "code": foreign_code(),
        "extras": extras(),
        "store": store(),
    }
    report["advice"] = advice(report)
    emit(report, as_json, _text(report))


def software() -> dict[str, str]:
    """Versions of what everything stands on."""
    names = ("torch", "numpy", "tokenizers", "safetensors", "gguf")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"tokenmill": tokenmill.__version__, "python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """Processor, threads and memory."""
    seen = probe_machine()  # before torch, which may bind this thread to one core
    import torch

    return {
        "system": seen.system,
        "cpu": seen.cpu,
        "cores": seen.cores,
        "threads": torch.get_num_threads(),
        "features": list(seen.features),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_total": seen.memory_total,
        "memory_available": seen.memory_available,
    }


def accelerators() -> list[dict[str, Any]]:
    """CUDA devices, if torch was built for them and the driver shows any."""
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": device.name,
                "memory": device.total_memory,
                "capability": f"{device.major}.{device.minor}",
            }
        )
    return found


def kernels() -> dict[str, Any]:
    """The compiled CPU kernels: the instruction set they run on, or why they are not used."""
    from tokenmill.ops.native import native, why_not

    found = native()
    return {"isa": found and found.isa, "threads": found and found.pool.threads, "reason": why_not()}


def operations() -> dict[str, list[str]]:
    """Each operation's backends, the most wanted first; each takes the calls that it can do, the reference the rest."""
    import tokenmill.ops
    from tokenmill.ops.registry import registered_ops

    for module in pkgutil.iter_modules(tokenmill.ops.__path__):
        try:
            importlib.import_module(f"tokenmill.ops.{module.name}")
        except ModuleNotFoundError as error:  # kernels in a language that is not installed: their operation says so
            if (error.name or "").startswith("tokenmill"):
                raise
    return {name: list(op.names) for name, op in sorted(registered_ops().items())}


def foreign_code() -> dict[str, Any]:
    """Whether programs that a model wrote can be run here without harm, by which layers, and what is missing."""
    from tokenmill.core.code_sandbox import isolation

    found = isolation()
    return {"isolated": found.enough, "layers": list(found.active), "missing": found.missing}


def extras() -> dict[str, dict[str, str | None]]:
    """The optional groups of this installation: package -> version, None when it is missing."""
    from packaging.requirements import Requirement

    groups: dict[str, dict[str, str | None]] = {}
    for line in importlib.metadata.requires("tokenmill") or []:
        requirement = Requirement(line)
        for extra in importlib.metadata.metadata("tokenmill").get_all("Provides-Extra") or []:
            if requirement.marker and requirement.marker.evaluate({"extra": extra}):
                groups.setdefault(extra, {})[requirement.name] = _version(requirement.name)
    return groups


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def store() -> dict[str, Any]:
    """Where models are kept and how much room is left."""
    root = home()
    writable = next(parent for parent in (root, *root.parents) if parent.exists())
    return {"path": str(root), "free": free_disk(root), "writable": os.access(writable, os.W_OK)}


def advice(report: dict[str, Any]) -> list[str]:
    """What to do, one line each; empty when all is well."""
    lines = []
    for extra, packages in report["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        if missing:
            lines.append(f"extra {extra!r} lacks {', '.join(missing)}: pip install 'tokenmill[{extra}]'")
    if reason := report["kernels"]["reason"]:
        cost = "quantised files are unpacked to float32 and decode several times slower"
        lines.append(f"no native CPU kernels, so {cost}: {reason}")
    if not report["code"]["isolated"]:
        reasons = "; ".join(f"{name}: {why}" for name, why in report["code"]["missing"].items())
        lines.append(
            f"programs that a model wrote cannot be run safely here, so rewards and tasks refuse to: {reasons}"
        )
    if not report["store"]["writable"]:
        lines.append(f"{report['store']['path']} cannot be written: set TOKENMILL_HOME to a folder of yours")
    if report["store"]["free"] < LITTLE_DISK:
        lines.append(f"only {human_size(report['store']['free'])} of disk are free: tokenmill rm what you do not need")
    available = report["machine"]["memory_available"]
    if available is not None and available < LITTLE_MEMORY:
        lines.append(f"only {human_size(available)} of memory are available: close programs, or use a smaller model")
    if report["machine"]["threads"] < report["machine"]["cores"]:
        lines.append(
            f"torch uses {report['machine']['threads']} of {report['machine']['cores']} cores: "
            f"OMP_NUM_THREADS or MKL_NUM_THREADS limits it"
        )
    return lines


def _text(report: dict[str, Any]) -> str:
    seen, place, kernel = report["machine"], report["store"], report["kernels"]
    memory = [
        f"{human_size(seen[key])} {word}"
        for key, word in (("memory_available", "available of"), ("memory_total", "in all"))
        if seen[key] is not None
    ]
    groups: dict[str, list[tuple[str, ...]]] = {
        "Software": list(report["software"].items()),
        "Machine": [
            ("system", seen["system"]),
            ("cpu", seen["cpu"]),
            ("cores", f"{seen['cores']}, torch uses {seen['threads']} threads"),
            ("features", f"{' '.join(seen['features']) or 'unknown'} (torch: {seen['torch_cpu_capability']})"),
            ("memory", " ".join(memory) or "unknown"),
        ],
        "Accelerators": [
            (a["device"], f"{a['name']}, {human_size(a['memory'])}, capability {a['capability']}")
            for a in report["accelerators"]
        ]
        or [("none", "everything runs on the CPU")],
        "Kernels": [
            (
                "native",
                f"{kernel['isa']}, {kernel['threads']} threads" if kernel["isa"] else f"none: {kernel['reason']}",
            )
        ],
        "Operations": [(name, " > ".join(backends)) for name, backends in report["operations"].items()],
        "Code of models": [
            ("isolated", "yes" if report["code"]["isolated"] else "no: it does not run here"),
            ("layers", " ".join(report["code"]["layers"]) or "none"),
            *report["code"]["missing"].items(),
        ],
        "Extras": [
            (extra, ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items()))
            for extra, packages in report["extras"].items()
        ],
        "Store": [("path", place["path"]), ("free disk", human_size(place["free"]))],
        "To do": [(line,) for line in report["advice"]] or [("nothing: all is well",)],
    }
    return sections(groups)
