"""The demo's report in a browser: charts readable, nothing over anything else, no link that leads nowhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tokenmill.core.html import Interval, Series, interval_chart, line_chart, radar_chart

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

LOOK = """<script>
addEventListener("load", () => {
  const problems = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth + 1) problems.push(`wider than the window: ${root.scrollWidth} of ${innerWidth}`);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5 &&
                         Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    const seen = { opacityProperty: true, visibilityProperty: true };  // values at the pointer are hidden till it comes
    const words = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim() && t.checkVisibility(seen));
    if (!words.length) problems.push("a chart without words");
    words.forEach((one, i) => {
      const place = one.getBoundingClientRect();
      if (place.left < box.left - 2 || place.right > box.right + 2) problems.push(`cut off: ${one.textContent}`);
      for (const other of words.slice(i + 1))
        if (over(place, other.getBoundingClientRect())) problems.push(`${one.textContent} over ${other.textContent}`);
    });
  }
  const blocks = [...document.querySelectorAll("section, nav, header, footer")];
  blocks.forEach((one, i) => blocks.slice(i + 1).forEach((other) => {
    const inside = one.contains(other) || other.contains(one);
    if (!inside && over(one.getBoundingClientRect(), other.getBoundingClientRect()))
      problems.push(`${one.tagName} over ${other.tagName}`);
  }));
  const links = [...document.querySelectorAll("a[href]")].map((a) => a.getAttribute("href"));
  root.dataset.seen = JSON.stringify({ problems, links, charts: document.querySelectorAll("svg").length });
});
</script>"""


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A report as the demo writes it, with every kind of chart and links to what is there."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("demo", "life", "life.stage"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import demo

    folder = tmp_path / "runs" / "2026-01-01_000000-demo"
    (folder / "compared").mkdir(parents=True)
    (folder / "compared" / "report.html").write_text("here")
    curves = [Series(name, [(n, 3.0 / (n + 1)) for n in range(40)]) for name in ("training", "held out")]
    axes = ["reading", "facts", "format", "tools"]
    radar = radar_chart("By category", axes, {"base": [0.1, 0.7, 0.4, 0.3], "tuned": [0.9, 0.6, 0.5, 0.2]})
    ranges = [Interval("reading, acc", 0.1, -0.05, 0.25), Interval("facts, acc_norm", -0.2, -0.3, -0.1)]
    charts = [[], [line_chart("Loss", curves)], [radar], [interval_chart("Differences", ranges)]]
    stages = [demo.Stage(f"Stage {n}", "Why it is done. " * n, seconds=3.0 * n) for n in range(1, 5)]
    for stage, drawn in zip(stages, charts, strict=True):
        stage.charts = drawn
        stage.commands.append("tokenmill train lora model=smollm2:135m data=data/definitions.jsonl " + "a=b " * 20)
        stage.figure("a figure with a long name, first and last three rollouts", "0.22, 0.42 of 1,234,567 tokens")
        stage.quote, stage.result = "before: a long answer. " * 12, "it does as it should"
    stages[2].links.append(("row by row", "compared/report.html"))
    written: Path = demo.write_report(stages, folder)
    return written


def look(page: Path, width: int, shot: Path) -> dict[str, Any]:
    """What the browser made of it."""
    looked = page.with_name(f"looked-{width}.html")
    text = re.sub(
        r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8")
    )  # it forbids scripts, and LOOK is one
    looked.write_text(text.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2400"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", f"--screenshot={shot}", "--dump-dom", looked.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(unescape(seen[1]))
    return found


@pytest.mark.parametrize("width", [1280, 600])
def test_the_report_is_readable(report: Path, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "report.png"
    seen = look(report, width, shot)
    assert seen["problems"] == []
    assert seen["charts"] == 3
    assert shot.stat().st_size > 20_000, "an empty picture"
    for link in seen["links"]:
        assert link.startswith("#") or (report.parent / link).is_file(), link
