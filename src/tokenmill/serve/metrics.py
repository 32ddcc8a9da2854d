"""What Prometheus sees: one registry an application, so that two servers in a process do not mix.

The names are vLLM's, ``vllm:`` included, so that dashboards and autoscaling rules written for it work as they are.
Counters are fed by the workers' threads; queue and cache are read when somebody asks. Labels hold names of loaded
models and of routes only, never what a client makes up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenmill.engine.request import FinishReason
from tokenmill.llm import Stats
from tokenmill.serve.manager import LoadedModel

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)


class Metrics:
    """All metrics of one application."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        model = ["model_name"]
        self.requests = Counter(
            "http_requests", "HTTP requests answered.", ["handler", "method", "status"], registry=registry
        )
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens.", model, registry=registry)
        self.generated = Counter("vllm:generation_tokens", "Tokens generated.", model, registry=registry)
        self.looked_up = Counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", model, registry=registry
        )
        self.found = Counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", model, registry=registry
        )
        self.ended = Counter(
            "vllm:request_success", "Requests that ended.", [*model, "finished_reason"], registry=registry
        )
        self.first = Histogram(
            "vllm:time_to_first_token_seconds",
            "From the request to its first token.",
            model,
            buckets=_FIRST,
            registry=registry,
        )
        self.between = Histogram(
            "vllm:inter_token_latency_seconds", "Between tokens.", model, buckets=_BETWEEN, registry=registry
        )

    def watch(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        """Show the state of these models' engines too."""
        self._registry.register(_Engines(loaded))

    def observer(self, name: str) -> ModelMetrics:
        """Takes what one model's worker reports."""
        return ModelMetrics(self, name)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """A worker's Observer."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name
        self._first, self._between = metrics.first.labels(name), metrics.between.labels(name)
        self._generated = metrics.generated.labels(name)

    def token(self, seconds: float, first: bool) -> None:
        (self._first if first else self._between).observe(seconds)
        self._generated.inc()

    def finished(self, reason: FinishReason, stats: Stats) -> None:
        metrics, name = self._metrics, self._name
        metrics.ended.labels(name, reason).inc()
        metrics.prompt_tokens.labels(name).inc(stats.prompt_tokens)
        metrics.looked_up.labels(name).inc(stats.prompt_tokens)
        metrics.found.labels(name).inc(stats.cached_tokens)


class _Engines(Collector):
    """The state of the engines at the moment of asking."""

    def __init__(self, loaded: Callable[[], Sequence[LoadedModel]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch.", labels=["model_name"])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=["model_name"])
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the KV cache in use.", labels=["model_name"])
        preempted = CounterMetricFamily("vllm:num_preemptions", "Requests put back.", labels=["model_name"])
        engines: dict[object, LoadedModel] = {}
        for model in sorted(self._loaded(), key=lambda model: model.name):
            engines.setdefault(model.worker.thread, model)  # names that share an engine are counted once
        for model in engines.values():
            engine = model.worker.llm.engine
            running.add_metric([model.name], model.worker.running)
            waiting.add_metric([model.name], model.worker.waiting)
            usage.add_metric([model.name], engine.pool.used / engine.pool.num_blocks)
            preempted.add_metric([model.name], engine.scheduler.preemptions)
        return running, waiting, usage, preempted
