"""The HTTP client of every pull and push: guarded, bounded, patient.

- Redirects are followed by hand; whatever is secret or about the old host stays behind when the origin changes.
- 408, 425, 429, 5xx, timeouts and cut connections are tried again, with exponential backoff, jitter and Retry-After.
  As long as nobody ever answered, one more try is all, so that a fallback source gets its turn.
- Answers are read up to a limit; compressed transfer is neither asked for nor accepted, because sizes and digests are
  promises about the plain bytes.
- A registry's Bearer challenge is answered once a request (`bearer.py`).
"""

from __future__ import annotations

import email.utils
import random
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import httpx

from tokenmill.core.errors import NetworkError, NotFoundError
from tokenmill.core.version import __version__
from tokenmill.store.transport import bearer
from tokenmill.store.transport.trust import GuardedTransport, Trust, port_of, shown

T = TypeVar("T")
Body = bytes | Callable[[], Iterable[bytes]] | None

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_PATIENCE_S = 300.0  # a server that asks for more than this is not waited for
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
# What may follow a redirect to another origin; anything else (Authorization, Cookie, X-…) may be a secret
_PORTABLE = frozenset(
    {"accept", "accept-encoding", "content-type", "content-length", "if-range", "range", "user-agent"}
)


class Transient(Exception):
    """An attempt failed in a way that another attempt may mend. Never leaves `Client.retrying`."""

    def __init__(
        self, reason: str, *, wait_s: float | None = None, answered: bool = False, progressed: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s, self.answered, self.progressed = wait_s, answered, progressed


class DeniedError(NetworkError):
    """401 or 403: the host wants to know who asks, or says no."""


@dataclass(frozen=True)
class Reply:
    """A whole answer, read into memory."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


class Client:
    """One pull's or push's connections. Not shared between threads. Use as a context manager.

    Args:
        trust: hosts allowed beyond the public https ones; default: what the environment names.
        retries: attempts after the first; those that got data do not count.
        timeout_s: silence after which a connection counts as cut.
        sleep, jitter: seconds to wait and a number in [0, 1), replaceable for tests.
    """

    def __init__(
        self,
        trust: Trust | None = None,
        *,
        retries: int = 5,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        trust = Trust.from_environment() if trust is None else trust
        self._http = httpx.Client(
            transport=GuardedTransport(trust),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            headers={"User-Agent": f"tokenmill/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"},
        )
        self._retries, self._sleep, self._jitter = retries, sleep, jitter
        self._answered = False
        self._tokens: dict[tuple[str, str, int], str] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def retrying(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it stops raising Transient; after too many failures in a row, NetworkError."""
        failures = 0
        while True:
            try:
                return attempt()
            except Transient as error:
                failures = 1 if error.progressed else failures + 1
                self._answered |= error.answered
                if failures > self._retries or (failures > 1 and not self._answered):
                    raise NetworkError(f"{error}; given up after {failures} tries in a row") from error
                if error.wait_s is not None and error.wait_s > _PATIENCE_S:
                    raise NetworkError(f"{error}; the server asks to wait {error.wait_s:.0f} s: try then") from error
                backoff = min(_FIRST_WAIT_S * 2 ** (failures - 1), _LONGEST_WAIT_S) * (0.5 + 0.5 * self._jitter())
                self._sleep(max(backoff, error.wait_s or 0.0))

    def read(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Body = None,
        limit: int = 4 << 20,
        follow: bool = True,
        accept: frozenset[int] = frozenset(),
    ) -> Reply:
        """A request and its whole answer, at most `limit` bytes; `accept`: error statuses that the caller handles."""

        def attempt() -> Reply:
            with self.stream(method, url, headers=headers, content=content, follow=follow, accept=accept) as response:
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > limit:
                        raise NetworkError(f"{shown(response.url)}: the answer is longer than {limit} bytes")
                return Reply(response.status_code, response.headers, bytes(body), str(response.url))

        return self.retrying(attempt)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Body = None,
        follow: bool = True,
        accept: frozenset[int] = frozenset(),
    ) -> Iterator[httpx.Response]:
        """One attempt at a request; the answer's body is still to be read.

        Raises Transient, NotFoundError (404, 410), DeniedError (401, 403), NetworkError (any other error status), and
        UsageError for an address that is refused. For use inside `retrying`.
        """
        response: httpx.Response | None = None
        try:
            response = self._send(method, httpx.URL(url), dict(headers or {}), content, follow)
            self._answered = True
            if response.status_code not in accept:
                check_status(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise NetworkError(f"{shown(response.url)}: sent compressed although that was not asked for")
            yield response
        except httpx.InvalidURL as error:
            raise NetworkError(f"{url!r} is not an address: {error}") from error
        except httpx.UnsupportedProtocol as error:
            raise NetworkError(f"{shown(url)}: {error}") from error
        except httpx.TransportError as error:
            if _distrusts_certificate(error):
                raise NetworkError(f"{shown(url)}: {error}; SSL_CERT_FILE names other certificates to trust") from error
            raise Transient(f"{shown(url)}: {_reason(error)}") from error
        finally:
            if response is not None:
                response.close()

    def _send(
        self, method: str, url: httpx.URL, headers: dict[str, str], content: Body, follow: bool
    ) -> httpx.Response:
        """Send and follow redirects by hand; answers one Bearer challenge an origin."""
        challenged: set[tuple[str, str, int]] = set()
        for _ in range(_MAX_REDIRECTS + 1):
            origin = (url.scheme, url.host, port_of(url))
            own = headers if "authorization" in _lower(headers) else {**headers, **self._token_header(origin)}
            request = self._http.build_request(
                method, url, headers=own, content=content() if callable(content) else content
            )
            response = self._http.send(request, stream=True, follow_redirects=False)
            if response.status_code == 401 and origin not in challenged:
                challenged.add(origin)
                if self._answer_challenge(origin, response):
                    response.close()
                    headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
                    continue
            if not follow or response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            response.close()
            target = url.join(response.headers["location"])
            if (target.scheme, target.host, port_of(target)) != origin:
                headers = {name: value for name, value in headers.items() if name.lower() in _PORTABLE}
            if response.status_code == 303 and method != "HEAD":
                method, content = "GET", None
            url = target
        raise NetworkError(f"{shown(url)}: more than {_MAX_REDIRECTS} redirects")

    def _token_header(self, origin: tuple[str, str, int]) -> dict[str, str]:
        token = self._tokens.get(origin)
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _answer_challenge(self, origin: tuple[str, str, int], response: httpx.Response) -> bool:
        """Fetch the token that a 401 asks for; False when it asks for something else."""
        url = bearer.token_url(response.headers.get("www-authenticate", ""))
        if url is None:
            return False
        request = self._http.build_request("GET", url, headers=bearer.login_header(url.host))
        with self._http.stream("GET", request.url, headers=request.headers, follow_redirects=False) as answer:
            if answer.status_code in (401, 403):
                return False
            check_status(answer)
            body = b""
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > bearer.TOKEN_BYTES:
                    raise NetworkError(f"{shown(url)}: the token is longer than {bearer.TOKEN_BYTES} bytes")
        self._tokens[origin] = bearer.parse_token(body, url)
        return True


def check_status(response: httpx.Response) -> None:
    """Raises the typed error that an answer of 3xx to 5xx stands for."""
    status, where = response.status_code, shown(response.url)
    if status < 300:
        return
    if status in (401, 403):
        raise DeniedError(f"{where}: {status}, access denied. {how_to_authenticate(response.url)}")
    if status in (404, 410):
        raise NotFoundError(f"{where}: not found ({status})")
    if status in _PASSING:
        raise Transient(f"{where}: {status} {response.reason_phrase}", wait_s=retry_after_s(response.headers))
    raise NetworkError(f"{where}: unexpected answer {status} {response.reason_phrase}")


def how_to_authenticate(url: httpx.URL) -> str:
    """What the person can do about a 401 or 403 from `url`."""
    if "/v2/" in url.path:
        return f"If the model is private, put a login for the registry ({url.host} or its token server) into ~/.netrc"
    return (
        "If the model is private or gated, accept its terms on its page and set HF_TOKEN to an access token "
        "(or run `hf auth login`)"
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None when there is none that can be read."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _lower(headers: Mapping[str, str]) -> set[str]:
    return {name.lower() for name in headers}


def _distrusts_certificate(error: BaseException | None) -> bool:
    """Whether TLS failed over the certificate, which trying again does not mend."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__
