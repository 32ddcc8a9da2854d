"""The page of `tokenmill label` in a browser, driven by keys as a rater would; skipped without chromium."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from fakes.tiny_llm import serving
from tokenmill.align.label import LabelLog, agreement, position_bias, read_items
from tokenmill.serve import label
from tokenmill.serve.web import HEADERS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVE = """
const $ = (id) => document.getElementById(id);
const seen = [], problems = [];
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
addEventListener("error", (event) => problems.push(String(event.message)));
async function until(what) {
  const end = performance.now() + 30000;
  while (!what()) {
    if (performance.now() > end) throw new Error("this never came true: " + what);
    await new Promise((go) => setTimeout(go, 5));
  }
}
const press = (key, more = {}, at = document.body) =>
  at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const shown = () => ({ prompt: $("prompt").innerText, left: $("left").innerText, right: $("right").innerText });
async function drive() {
  press("1", {}, $("rater"));
  press("2");  // nobody has said who they are: no verdict
  for (const rater of ["ada", "bob"]) {
    if (rater === "bob") { $("who").hidden = false; }
    $("rater").value = rater; $("who").requestSubmit();
    await until(() => $("who").hidden && !$("item").hidden);
    for (const key of ["1", "2", "t", "S", "1", "1"]) {
      const count = $("count").textContent, before = shown();
      const good = before.left.includes("good") ? "1" : "2";
      press("1", { repeat: true }); press("2", { ctrlKey: true });  // held down, and a shortcut of the browser's
      const pressed = rater === "bob" && key === "1" ? "1" : key === "1" ? good : key;
      press(pressed);
      seen.push({ rater, pressed, ...before });
      await until(() => $("count").textContent !== count);
    }
    await until(() => $("item").hidden);
  }
  return { seen, notice: $("notice").textContent, done: $("progress").value, pwned: String(window.pwned) };
}
const found = await drive().catch((error) => ({ failed: String(error) }));
await fetch("seen", { method: "POST", body: JSON.stringify({ ...found, problems }) });
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[LabelLog, dict[str, Any]]]:
    """What six items and two raters left behind, and what the page showed."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    rows: list[dict[str, Any]] = [{"prompt": f"p{n}", "answers": [f"good {n}", f"bad {n}"]} for n in range(4)]
    rows.append({"prompt": "x", "answers": ["good <img src=x onerror='window.pwned = 1'>", "bad"]})
    said = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "", "tool_calls": [call]}]
    rows.append({"prompt": [{"role": "user", "content": "2 + ?"}], "answers": list(said)})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kept, told = LabelLog(tmp_path / "labels.jsonl"), queue.Queue[dict[str, Any]]()
    app = label.create_app(read_items(str(path)), kept, secret="s")
    page = files(label).joinpath("page.html").read_text()
    page = page.replace("</head>", '<script type="module" src="drive.js"></script></head>')

    async def tell(request: Request) -> None:
        told.put(json.loads(await request.body()))

    def part(content: str, kind: str) -> Any:
        return lambda: Response(content, media_type=kind, headers=HEADERS)

    app.router.routes.insert(0, APIRoute("/s/drive.html", part(page, "text/html")))
    app.router.routes.insert(0, APIRoute("/s/drive.js", part(DRIVE, "text/javascript")))
    app.router.routes.insert(0, APIRoute("/s/seen", tell, methods=["POST"]))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    with serving(app) as url, subprocess.Popen(
        [str(BROWSER), *flags, profile, f"{url}/s/drive.html"], stderr=subprocess.DEVNULL
    ) as process:  # fmt: skip
        try:
            yield kept, told.get(timeout=90)
        finally:
            process.terminate()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_two_raters_press_keys(log: tuple[LabelLog, dict[str, Any]]) -> None:
    """Ada takes what is good, Bob the left: what is kept is what they pressed, on the side that they saw."""
    kept, found = log
    assert "failed" not in found, found
    assert (found["problems"], found["pwned"]) == ([], "undefined")
    assert (found["notice"], found["done"]) == ("All done. Thank you!", 6)
    assert len(kept.labels) == len(found["seen"]) == 12
    for said, shown in zip(kept.labels, found["seen"], strict=True):
        assert said.rater == shown["rater"]
        good_is_left = "good" in shown["left"]
        assert said.left == (0 if good_is_left else 1)
        meant = {"t": "tie", "S": "skip"}.get(shown["pressed"])
        assert said.verdict == (meant or ("first" if (shown["pressed"] == "1") == good_is_left else "second"))
    assert sum(said.seconds for said in kept.labels) > 0
    by_rater = {name: [one for one in kept.labels if one.rater == name] for name in ("ada", "bob")}
    decided = {name: [one for one in some if one.verdict in ("first", "second")] for name, some in by_rater.items()}
    assert {one.verdict for one in decided["ada"] if one is not decided["ada"][1]} == {"first"}
    bob = position_bias(by_rater["bob"])
    assert (bob.left, bob.right) == (3, 1)  # the one for the right is his only 2
    assert agreement(kept.labels).items == 5  # the skipped one is not judged
    assert any('add({"a":2})' in shown["left"] + shown["right"] for shown in found["seen"])
    assert any("<img src=x" in shown["left"] + shown["right"] for shown in found["seen"])
