"""A profile of some steps, by torch's own profiler: ``profile/trace.json`` (open it in ui.perfetto.dev or
chrome://tracing) and ``profile/summary.txt``, the operations that take the most time.

The first two steps are left out: they pay for caches, kernels that are chosen once, and memory that is first touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenmill.train.watch_protocol import RunEnd, RunStart, StepMetrics, Watcher

LEFT_OUT = 2


class Profiler(Watcher):
    """Profiles `steps` steps after the first two. A profiled step is slower: figures of speed are for the others."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen = 0
        self._folder = Path()
        self._profile: Any = None

    def on_start(self, run: RunStart) -> None:
        """Where the profile goes."""
        self._folder = run.folder / "profile"

    def on_step(self, metrics: StepMetrics) -> None:
        """Start after the steps left out, stop after those profiled."""
        self._seen += 1
        if self._seen == LEFT_OUT:
            from torch.profiler import profile

            self._profile = profile(profile_memory=False, record_shapes=False)
            self._profile.start()
        elif self._seen == LEFT_OUT + self._steps:
            self._finish()

    def on_end(self, end: RunEnd) -> None:
        """A run shorter than the profile keeps what there is."""
        self._finish()

    def _finish(self) -> None:
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(self._folder / "trace.json"))
        order = "self_device_time_total" if self._on_device(profile) else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
        (self._folder / "summary.txt").write_text(table, encoding="utf-8")

    @staticmethod
    def _on_device(profile: Any) -> bool:
        return any(event.self_device_time_total > 0 for event in profile.key_averages())
