"""A Hugging Face hub: repository metadata, files (large ones through a redirect to another origin), LFS push.

Written after the requests of huggingface_hub 2.4 and the hub's documented answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field

from fakes.server import Exchange, Seen, Served, Server

LARGE = (".gguf", ".safetensors", ".bin", ".model")


@dataclass
class Repo:
    """One commit of a repository; `token`: needed to see it; `gated`: seen, but not given."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    lies: dict[str, str] = field(default_factory=dict)  # file -> sha256 that the metadata claims


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(Server):
    """`repos` by ``ORG/REPO``; large files live on `cdn`, another origin."""

    def __init__(self, repos: dict[str, Repo], cdn: Server) -> None:
        super().__init__()
        self.repos, self.cdn = repos, cdn
        self.commits: list[list[dict[str, object]]] = []
        self.lfs: dict[str, bytes] = {}
        self.most_lfs: int | None = None  # large files that arrive before the connection is lost
        self.created: list[dict[str, object]] = []
        for repo in repos.values():
            for name, data in repo.files.items():
                if name.endswith(LARGE):
                    cdn.files[f"/cdn/{hashlib.sha256(data).hexdigest()}"] = Served(data)

    def answer(self, exchange: Exchange, seen: Seen) -> None:
        metadata = re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", seen.path)
        if metadata and seen.method == "GET":
            self._metadata(exchange, seen, metadata[1], metadata[2])
        elif match := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", seen.path):
            self._file(exchange, seen, *match.groups())
        else:
            self._push(exchange, seen)

    def _repo(self, exchange: Exchange, seen: Seen, name: str) -> Repo | None:
        """The repository if it may be seen; else the hub's answer, which is 401 also for what does not exist."""
        repo = self.repos.get(name)
        if repo and (repo.token is None or seen.headers.get("authorization") == f"Bearer {repo.token}"):
            return repo
        exchange.reply(401, X_Error_Code="RepoNotFound", WWW_Authenticate='Bearer realm="Authentication required"')
        return None

    def _metadata(self, exchange: Exchange, seen: Seen, name: str, revision: str | None) -> None:
        repo = self._repo(exchange, seen, name)
        if repo is None:
            return
        if revision is not None and revision not in (*repo.revisions, repo.commit):
            exchange.reply(404, X_Error_Code="RevisionNotFound")
            return
        siblings = []
        for path, data in repo.files.items():
            entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            if path.endswith(LARGE):
                sha256 = repo.lies.get(path, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(entry if "blobs" in seen.query else {"rfilename": path})
        info = {"id": name, "modelId": name, "sha": repo.commit, "private": False, "siblings": siblings, "tags": []}
        exchange.reply(200, json.dumps(info).encode(), Content_Type="application/json")

    def _file(self, exchange: Exchange, seen: Seen, name: str, revision: str, path: str) -> None:
        repo = self._repo(exchange, seen, name)
        if repo is None:
            return
        if repo.gated:
            exchange.reply(403, X_Error_Code="GatedRepo")
        elif revision != repo.commit or path not in repo.files:
            exchange.reply(404, X_Error_Code="EntryNotFound")
        elif path.endswith(LARGE):
            sha256 = hashlib.sha256(repo.files[path]).hexdigest()
            exchange.reply(302, Location=f"{self.cdn.url}/cdn/{sha256}?signature=secret", X_Repo_Commit=repo.commit)
        else:
            exchange.send_file(Served(repo.files[path], etag=f'"{git_sha1(repo.files[path])}"'))

    def _push(self, exchange: Exchange, seen: Seen) -> None:
        if seen.headers.get("authorization") != "Bearer hf_write" and not seen.path.startswith("/lfs/"):
            exchange.reply(401)
            return
        kind = seen.headers.get("content-type", "")
        plain = json.loads(seen.body) if kind in ("application/json", "application/vnd.git-lfs+json") else {}
        answer: object = {}
        if seen.path == "/api/validate-yaml":  # of a README's front matter
            answer = {"errors": [], "warnings": []}
        elif seen.path == "/api/repos/create":
            self.created.append(plain)
            answer = {"url": f"{self.url}/{plain['organization']}/{plain['name']}"}
        elif "/preupload/" in seen.path:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in plain["files"]
            ]
            answer = {"files": modes}
        elif seen.path.endswith("/info/lfs/objects/batch"):
            # what has arrived before needs no action
            wanted = [
                {"oid": o["oid"], "size": o["size"]}
                | ({} if o["oid"] in self.lfs else {"actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}})
                for o in plain["objects"]
            ]
            answer = {"transfer": "basic", "objects": wanted}
        elif seen.path.startswith("/lfs/") and len(self.lfs) == self.most_lfs:
            exchange.reply(400)
            return
        elif seen.path.startswith("/lfs/"):
            self.lfs[seen.path.removeprefix("/lfs/")] = seen.body
        elif "/commit/" in seen.path:
            self.commits.append([json.loads(line) for line in seen.body.splitlines()])
            repo = seen.path.removeprefix("/api/models/").split("/commit/")[0]
            answer = {"commitUrl": f"{self.url}/{repo}/commit/{'b' * 40}", "commitOid": "b" * 40}
        elif "/branch/" not in seen.path:
            exchange.reply(404)
            return
        exchange.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    def committed(self) -> dict[str, bytes]:
        """The files of the last commit."""
        files = {}
        for line in self.commits[-1]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.lfs[value["oid"]]
        return files
