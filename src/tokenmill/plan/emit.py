"""What a plan looks like when it runs: a command, a Compose file, a Kubernetes sketch, the switches of a day.

``tokenmill serve`` serves what fits one device or a CPU; tensor parallelism and sleep levels are vLLM's, so plans that
need them are written for it. Images are named by the person: tokenmill publishes none.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenmill.plan.schedule import Schedule, clock

Engine = Literal["tokenmill", "vllm"]
PORT = {"tokenmill": 11434, "vllm": 8000}
START_S = 600
"""A pod may take so long to read its weights before Kubernetes gives it up."""


@dataclass(frozen=True)
class Service:
    """A model as it is to be run."""

    model: str
    engine: Engine
    context: int
    batch: int
    gpus: int
    """A replica."""
    replicas: int
    memory_gb: float
    """Of the weights, as ``tokenmill serve`` limits them."""

    @property
    def words(self) -> list[str]:
        """The command, listening for other machines; the key comes from the environment."""
        if self.engine == "vllm":
            return [
                *("vllm", "serve", self.model, "--host", "0.0.0.0", "--max-model-len", str(self.context)),
                *("--max-num-seqs", str(self.batch), "--tensor-parallel-size", str(self.gpus)),
            ]
        return [
            *("tokenmill", "serve", self.model, "--host", "0.0.0.0", "--ctx-size", str(self.context)),
            *("--keep-alive", "-1", "--memory-limit", f"{self.memory_gb:.1f}"),
            *("--max-queue", str(max(16, 4 * self.batch))),
        ]

    @property
    def key_variable(self) -> str:
        return "VLLM_API_KEY" if self.engine == "vllm" else "TOKENMILL_API_KEY"


def command(service: Service) -> str:
    """One line for a shell."""
    return shlex.join(service.words)


def compose(service: Service) -> str:
    """A Compose file of one replica; image and key come from the environment, and Compose stops without them."""
    port = PORT[service.engine]
    lines = [
        "services:",
        "  model:",
        "    image: ${IMAGE:?an image that has " + service.engine + " in it}",
        f"    command: {json.dumps(service.words)}",
        "    environment:",
        f"      {service.key_variable}: ${{API_KEY:?a key of at least 8 characters}}",
        "    ports:",
        f'      - "127.0.0.1:{port}:{port}"',
        "    volumes:",
        "      - models:/models",
        "    restart: unless-stopped",
        "    healthcheck:",
        f'      test: ["CMD", "python", "-c", "{_probe(port)}"]',
        f"      start_period: {START_S}s",
    ]
    if service.gpus:
        lines += [
            "    deploy:",
            "      resources:",
            "        reservations:",
            "          devices:",
            f"            - {{driver: nvidia, count: {service.gpus}, capabilities: [gpu]}}",
        ]
    return "\n".join([*lines, "volumes:", "  models:", ""])


def _probe(port: int) -> str:
    return f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/health')"


def kubernetes(service: Service) -> str:
    """A Deployment with the plan's replicas and a Service: a sketch, without storage, autoscaling and ingress."""
    port = PORT[service.engine]
    gpus = [
        "          resources:",
        f"            limits: {{nvidia.com/gpu: {service.gpus}}}",
    ]
    return "\n".join(
        [
            "apiVersion: apps/v1",
            "kind: Deployment",
            "metadata: {name: model}",
            "spec:",
            f"  replicas: {service.replicas}",
            "  selector: {matchLabels: {app: model}}",
            "  template:",
            "    metadata: {labels: {app: model}}",
            "    spec:",
            "      containers:",
            "        - name: model",
            f"          image: {service.engine}:choose-a-version",
            f"          command: {json.dumps(service.words)}",
            "          env:",
            f"            - name: {service.key_variable}",
            "              valueFrom: {secretKeyRef: {name: model-key, key: key}}",
            f"          ports: [{{containerPort: {port}}}]",
            *(gpus if service.gpus else []),
            f"          startupProbe: {{httpGet: {{path: /health, port: {port}}}, periodSeconds: 5, "
            f"failureThreshold: {START_S // 5}}}",
            f"          readinessProbe: {{httpGet: {{path: /health, port: {port}}}}}",
            f"          livenessProbe: {{httpGet: {{path: /health, port: {port}}}, failureThreshold: 6}}",
            "---",
            "apiVersion: v1",
            "kind: Service",
            "metadata: {name: model}",
            "spec:",
            "  selector: {app: model}",
            f"  ports: [{{port: {port}}}]",
            "",
        ]
    )


def switches(schedule: Schedule, ports: dict[str, int]) -> str:
    """The day as a crontab of vLLM's sleep mode (``--enable-sleep-mode`` with ``VLLM_SERVER_DEV_MODE=1``, which opens
    more than sleeping: bind it to this machine only).

    Level 2 dropped the weights, so they are read again before the cache comes back, as vLLM's documentation has it.
    """
    if schedule.level == "stop":
        raise ValueError("a schedule without sleep has no sleep calls")
    lines = []
    for switch in schedule.switches:
        calls = [_post(ports[name], f"sleep?level={schedule.level}") for name in switch.leaves]
        for name in switch.enters:
            calls += _wake(ports[name], schedule.level)
        minute, hour = switch.at % 60, switch.at // 60 % 24
        lines.append(f"# {clock(switch.at)}: {_names(switch.leaves) or 'nobody'} to {_names(switch.enters)}")
        lines.append(f"{minute} {hour} * * * {' && '.join(calls)}")
    return "\n".join([*lines, ""])


def _wake(port: int, level: str) -> list[str]:
    if level == "1":
        return [_post(port, "wake_up")]
    reload = (
        f"{_post(port, 'collective_rpc')} -H 'Content-Type: application/json' -d '{{\"method\":\"reload_weights\"}}'"
    )
    return [_post(port, "wake_up?tags=weights"), reload, _post(port, "wake_up?tags=kv_cache")]


def _post(port: int, path: str) -> str:
    return f"curl -fsS -X POST 'http://127.0.0.1:{port}/{path}'"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
