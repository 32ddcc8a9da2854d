"""The page with sliders: its script, run, computes what Python computes; every figure has its place; nothing from
elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
from pathlib import Path

import pytest
import quickjs

from tokenmill.plan.catalog import gpus, models, quantisations
from tokenmill.plan.page import sheet
from tokenmill.plan.page.controls import Section, sections
from tokenmill.plan.page.page import Found, arguments, page, script
from tokenmill.plan.rates import DEVICE_OVERHEAD
from tokenmill.plan.serve import Wanted, plan_serve
from tokenmill.plan.shape import from_catalog
from tokenmill.plan.subject import free_bytes, hardware, subject

SECTIONS = sections({}, {})


@pytest.fixture(scope="module")
def browser() -> quickjs.Context:
    """The page's whole script, without a document to tie it to."""
    made = quickjs.Context()
    made.eval(script(SECTIONS))
    return made


def state(draw: random.Random) -> dict[str, float]:
    """Every list on some option, every slider somewhere between its ends."""
    values: dict[str, float] = {}
    for section in SECTIONS:
        for choice in section.choices:
            values |= choice.options[draw.choice(sorted(choice.options))]
        for slider in section.sliders:
            value = draw.uniform(slider.low, slider.high)
            if slider.log:
                value = slider.low * (slider.high / slider.low) ** draw.random()
            values[slider.name] = float(round(value)) if slider.whole else value
    return values


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_the_browser_computes_what_python_computes(browser: quickjs.Context, section: Section) -> None:
    draw = random.Random(section.name)
    for _ in range(40):
        now = state(draw)
        expected = getattr(sheet, section.sheet)(**{name: now[name] for name in arguments(section.sheet)})
        browser.eval(f"Object.assign(state, {json.dumps(now)})")
        found = json.loads(browser.eval(f"JSON.stringify(compute(SECTIONS.find((s) => s.name === '{section.name}')))"))
        assert found == pytest.approx(expected, rel=1e-9), now


def test_the_first_state_is_that_of_the_controls(browser: quickjs.Context) -> None:
    fresh = quickjs.Context()
    fresh.eval(script(SECTIONS))
    now = json.loads(fresh.eval("JSON.stringify(state)"))
    for section in SECTIONS:
        assert set(arguments(section.sheet)) <= set(now), "an argument that no control sets"
        for slider in section.sliders:
            assert now[slider.name] == slider.value
    needed = {name for section in SECTIONS for name in arguments(section.sheet)}
    assert set(now) - needed == set(), "a control that nothing computes with"


def test_numbers_are_written_and_read_alike(browser: quickjs.Context) -> None:
    for value, text in (
        (812, "812"),
        (4096, "4096"),
        (1.6e11, "160B"),
        (26_300_000, "26.3M"),
        (0.25, "0.25"),
        (20_000, "20k"),
    ):
        assert browser.eval(f"short({value})") == text
        assert browser.eval(f"parsed('{text}')") == pytest.approx(value, rel=0.005)
    assert browser.eval("short(1e19)") == "1e19"
    assert browser.eval("parsed('ten')") != browser.eval("parsed('ten')")  # NaN
    assert browser.eval("time(7200)") == "2 h"
    slider = "{low: 16, high: 131072, log: true, whole: true}"
    assert browser.eval(f"valueAt({slider}, position({slider}, 1024))") == 1024


@pytest.mark.parametrize(
    ("model", "gpu", "quant", "count"),
    [
        ("llama-3.1-8b", "h100-sxm", "bf16", 1),
        ("llama-3.3-70b", "rtx-5090", "awq", 2),
        ("qwen3-coder-next", "rtx-5090", "awq", 2),
        ("gemma-2-9b", "rtx-4090", "q8_0", 1),
        ("deepseek-v3.2", "b200", "int8", 8),
    ],
)
def test_the_sheet_is_the_verbs_plan(model: str, gpu: str, quant: str, count: int) -> None:
    found = subject(
        from_catalog(models().find(model)),
        quantisations().find(quant),
        prompt_tokens=700,
        output_tokens=300,
        gpus=count,
    )
    device = hardware(gpus().find(gpu), count, quant)
    plan = plan_serve(found, device, free_bytes(found, device), Wanted(requests_per_s=9))
    now = {name: value for section in SECTIONS for choice in section.choices for name, value in ()}
    for section in SECTIONS:
        for choice in section.choices:
            picked = {"model": model, "gpu": gpu, "quant": quant, "cache": "bf16"}.get(choice.name, choice.value)
            now |= choice.options[picked]
        now |= {slider.name: slider.value for slider in section.sliders}
    now |= {"gpus": count, "prompt": 700, "output": 300, "users": plan.point.batch, "load": 9}
    shown = sheet.serving(**{name: now[name] for name in arguments("serving")})
    assert shown["alone"] == pytest.approx(plan.decode_tok_s)
    assert shown["together"] == pytest.approx(plan.point.tokens_per_s)
    assert shown["token_s"] == pytest.approx(plan.point.token_latency_s)
    assert shown["prompt_s"] == pytest.approx(plan.prompt_s)
    assert shown["weights"] == pytest.approx(found.weight_bytes)
    assert shown["overhead"] == count * DEVICE_OVERHEAD
    assert min(shown["at_once"], 1024) == plan.largest_batch
    assert shown["replicas"] == plan.replicas


def test_the_page_runs_its_own_script_alone() -> None:
    written = page("Planning", found=Found("<b>what</b>", [("a", "<script>alert(1)</script>")]))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', written)[1])  # type: ignore[index]
    scripts = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    assert len(scripts) == 1, "what came from outside is escaped"
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", written)
    assert "innerHTML" not in scripts[0]


def test_a_name_cannot_end_the_script() -> None:
    from dataclasses import replace

    shape = replace(from_catalog(models().find("llama-3.1-8b")), name="</script><img src=x>")
    written = page("x", model=shape, chosen={"model": shape.name})
    assert written.count("</script>") == 1
    assert "<img" not in written


def test_what_a_verb_found_stands_first_and_in_the_sliders() -> None:
    written = page("Cost", first="costing", values={"tokens_a_day": 12345.0}, chosen={"api": "gpt-4o-mini"})
    assert written.index('id="costing"') < written.index('id="serving"')
    made = quickjs.Context()
    made.eval(re.search(r"<script>(.*?)</script>", written, re.DOTALL)[1])  # type: ignore[index]
    assert made.eval("state.tokens_a_day") == 12345
    assert made.eval("state.input_price") == 0.15


def test_reports_without_a_script_allow_none(tmp_path: Path) -> None:
    from tokenmill.core.html.page import render_page

    assert "script-src" not in render_page('{% extends "base.html.jinja" %}')
