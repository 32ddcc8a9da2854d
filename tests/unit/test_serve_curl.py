"""Calls as people type them: ``curl -d`` names its body a form, as in every example of Ollama's documentation."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fakes.tiny_llm import serving, tiny_app

CHAT = '{"model":"tiny","messages":[{"role":"user","content":"hello"}],"stream":false,"max_tokens":3}'
OLLAMA = '{"model":"tiny","messages":[{"role":"user","content":"hello"}],"stream":false,"options":{"num_predict":3}}'


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_body_called_a_form_is_read_as_json(path: str, tmp_path: Path) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    with serving(tiny_app(tmp_path)) as base, httpx.Client(base_url=base, timeout=60) as client:
        body = OLLAMA if path.startswith("/api") else CHAT
        answered = client.post(path, content=body, headers=form)
        assert answered.status_code == 200, answered.text
        # a page of another site can send forms too, but not without saying where it comes from
        foreign = client.post(path, content=body, headers={**form, "origin": "https://evil.example"})
        assert foreign.status_code == 403
