"""An Ollama-style registry: manifests, blobs (through a redirect to another origin), uploads, Bearer tokens.

Written after the Docker registry's v2 specification, and strict where a lax fake would hide a broken client: parts
must be in order, digests must be right, a manifest's blobs must be there, a token must be for the right scope.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs

from fakes.server import Exchange, Seen, Served, Server


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry(Server):
    """`manifests` by ``ns/model:tag``, `blobs` by digest. `guarded`: tokens are needed; `login`: ``user:password``."""

    def __init__(self, cdn: Server, *, guarded: bool = False, login: str | None = None) -> None:
        super().__init__()
        self.cdn, self.guarded, self.login = cdn, guarded, login
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.valid_tokens: dict[str, str] = {}  # token -> scope
        self.manifest_types: list[str] = []

    def add_model(self, name: str, layers: list[tuple[str, bytes]], config: bytes = b"{}") -> bytes:
        """Put a model into the registry; gives its manifest."""
        described = [{"mediaType": kind, "digest": self.add_blob(data), "size": len(data)} for kind, data in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": self.add_blob(config),
                "size": len(config),
            },
            "layers": described,
        }
        self.manifests[name] = json.dumps(manifest, indent=1).encode()
        return self.manifests[name]

    def add_blob(self, data: bytes) -> str:
        self.blobs[digest_of(data)] = data
        self.cdn.files[f"/r2/{digest_of(data)}"] = Served(data)
        return digest_of(data)

    def answer(self, exchange: Exchange, seen: Seen) -> None:
        if seen.path == "/token":
            self._token(exchange, seen)
            return
        match = re.fullmatch(r"/v2/([\w-]+/[\w.-]+)/(manifests|blobs)/(.*)", seen.path)
        if match is None:
            exchange.reply(404)
            return
        repository, kind, rest = match.groups()
        action = "pull" if seen.method in ("GET", "HEAD") else "push,pull"
        if self.guarded and not self._allowed(seen, f"repository:{repository}:{action}"):
            challenge = f'Bearer realm="{self.url}/token",service="fake",scope="repository:{repository}:{action}"'
            exchange.reply(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate=challenge)
        elif kind == "manifests":
            self._manifest(exchange, seen, f"{repository}:{rest}")
        elif rest.startswith("uploads/"):
            self._upload(exchange, seen, rest.removeprefix("uploads/"))
        elif rest not in self.blobs:
            exchange.reply(404)
        elif seen.method == "HEAD":
            exchange.reply(200)
        else:
            exchange.reply(307, Location=f"{self.cdn.url}/r2/{rest}?signature=secret")

    def _token(self, exchange: Exchange, seen: Seen) -> None:
        if self.login is not None:
            expected = "Basic " + base64.b64encode(self.login.encode()).decode()
            if seen.headers.get("authorization") != expected:
                exchange.reply(401)
                return
        token = f"token-{len(self.valid_tokens)}"
        self.valid_tokens[token] = parse_qs(seen.query)["scope"][0]
        exchange.reply(200, json.dumps({"token": token}).encode())

    def _allowed(self, seen: Seen, scope: str) -> bool:
        granted = self.valid_tokens.get(seen.headers.get("authorization", "").removeprefix("Bearer "), "")
        return granted == scope or granted == scope.replace(":pull", ":push,pull")

    def _manifest(self, exchange: Exchange, seen: Seen, name: str) -> None:
        if seen.method == "PUT":
            plain = json.loads(seen.body)
            missing = [x["digest"] for x in (plain["config"], *plain["layers"]) if x["digest"] not in self.blobs]
            self.manifest_types.append(seen.headers.get("content-type", ""))
            self.manifests[name] = seen.body
            exchange.reply(400 if missing else 201)
        elif name in self.manifests:
            exchange.reply(200, self.manifests[name])
        else:
            exchange.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')

    def _upload(self, exchange: Exchange, seen: Seen, session: str) -> None:
        base = seen.path[: seen.path.index("uploads/") + len("uploads/")]
        if seen.method == "POST":
            session = f"s{len(self.uploads)}"
            self.uploads[session] = bytearray()
        elif session not in self.uploads:
            exchange.reply(404)
            return
        if seen.method == "PATCH":
            if seen.headers["content-range"] != f"{len(self.uploads[session])}-{self._last(seen, session)}":
                exchange.reply(416)
                return
            self.uploads[session] += seen.body
        if seen.method == "PUT":
            data = bytes(self.uploads.pop(session)) + seen.body
            good = parse_qs(seen.query)["digest"][0] == digest_of(data)
            if good:
                self.add_blob(data)
            exchange.reply(201 if good else 400)
            return
        exchange.reply(202, Location=f"{base}{session}?state=1")

    def _last(self, seen: Seen, session: str) -> int:
        return len(self.uploads[session]) + len(seen.body) - 1
