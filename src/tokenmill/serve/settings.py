"""What a server is told when it starts. Keys are kept as SHA-256 digests, never as they are.

Refused: listening beyond this machine without a key, unless ``insecure`` says that this is meant.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass

from tokenmill.core.errors import ConfigError, UsageError
from tokenmill.core.paths import home

DEFAULT_PORT = 11434
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_keys: frozenset[str] = frozenset()
    """Hex SHA-256 of the keys that open the server; none means that it is open."""
    insecure: bool = False
    """Listen beyond this machine without a key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the server; ``*`` is any. None: only the server's own."""
    max_body_bytes: int = 32 << 20
    max_upload_bytes: int = 100 << 30
    """Of a model file that is sent to the store, which is written as it comes."""
    max_queue: int = 512
    """Requests that may wait for a place in a model's batch."""
    private_cache: bool = False
    """Clients (keys, else addresses) do not share computed prompts, so that none can learn another's by timing."""
    max_models: int = 3
    """Models in memory at a time."""
    memory_limit: int | None = None
    """Bytes that the files of the models in memory may have together; None is no limit."""
    keep_alive: float = 300.0
    """Seconds that an idle model stays in memory; negative is for ever, 0 not at all."""
    ping_s: float = 15.0
    """Seconds without a word after which a stream of events says that it is alive."""
    drain_s: float = 60.0
    """Seconds that running requests have when the server is told to stop."""
    deterministic: bool = False
    """Logits that are the same to the last bit whatever else is in the batch; slower."""
    kv_cache_dtype: str = "auto"
    """How keys and values are kept: auto, fp32, bf16 or int8; a model that cannot is not loaded."""
    ctx_size: int | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if not (self.api_keys or self.insecure or is_loopback(self.host)):
            raise UsageError(
                f"{self.host} can be reached from other machines: give --api-key, or --insecure if everyone who "
                "reaches it may use this server"
            )
        problems = [
            f"{name} must be at least {least}, not {value}"
            for name, least, value in (
                ("max_body_bytes", 1, self.max_body_bytes),
                ("max_queue", 1, self.max_queue),
                ("max_models", 1, self.max_models),
                ("drain_s", 0, self.drain_s),
                ("ping_s", 0.001, self.ping_s),
            )
            if value < least
        ]
        if problems:
            raise UsageError("; ".join(problems))


def key_hash(key: str) -> str:
    """What is kept of an API key. A fast hash will do: keys are long and random, unlike passwords."""
    if len(key) < 8:
        raise UsageError("an API key has at least 8 characters; `openssl rand -hex 24` makes a good one")
    return hashlib.sha256(key.encode()).hexdigest()


def stored_key_hashes() -> frozenset[str]:
    """The keys of this machine's server: a SHA-256 in hex a line of ``api-keys`` in tokenmill's folder, if it is there.

    ``#`` begins a comment. ``printf %s KEY | sha256sum`` makes a line.
    """
    path = home() / "api-keys"
    if not path.is_file():
        return frozenset()
    lines = [line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [words[0].lower() for words in lines if words]
    if bad := [number for number, words in enumerate(lines, 1) if words and not _SHA256.fullmatch(words[0].lower())]:
        raise ConfigError(f"{path}, line {bad[0]}: a key's SHA-256 in hex is expected, never the key itself")
    return frozenset(found)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, and who knows what it resolves to
        return False
