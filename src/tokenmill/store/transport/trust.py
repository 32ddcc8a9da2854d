"""Which hosts may be contacted, and a connection that goes to the very address that was checked.

A name to pull may come from anybody (a request to the server, a redirect, a Modelfile), so that an address on this
machine or its network must not be reachable through it (server-side request forgery). The rule: https only, and every
address private, loopback, link-local, multicast or reserved is refused, unless the person's own environment names the
host: ``HF_ENDPOINT``, ``TOKENMILL_OLLAMA_REGISTRY``, ``TOKENMILL_TRUSTED_HOSTS`` (``host`` or ``host:port``, comma
separated). A trusted host may also speak plain http.

The host is resolved once and the connection made to the checked address, with the host's name kept for TLS and the
``Host`` header, so that a name that resolves differently the second time (DNS rebinding) gains nothing. Behind a proxy
the proxy resolves; there only what the URL itself says can be checked.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx

from tokenmill.core.errors import UsageError

TRUSTED_HOSTS = "TOKENMILL_TRUSTED_HOSTS"
_CONFIGURED_URLS = ("HF_ENDPOINT", "TOKENMILL_OLLAMA_REGISTRY")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONNECT_TRIES = 4


def port_of(url: httpx.URL) -> int:
    """The port that a request to `url` connects to; 0 for a scheme other than http and https."""
    return url.port or _DEFAULT_PORTS.get(url.scheme, 0)


def shown(url: httpx.URL | str) -> str:
    """`url` for a message: without query and credentials, because a signed address is a secret."""
    url = httpx.URL(url)
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}{url.path}"


@dataclass(frozen=True)
class Trust:
    """The hosts that the person's own configuration names, as ``(host, port)``; port None means every port."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Trust:
        """Reads `environ` (default: the process's). Raises UsageError for an entry that names no host."""
        environ = os.environ if environ is None else environ
        hosts: set[tuple[str, int | None]] = set()
        for variable in _CONFIGURED_URLS:
            if given := environ.get(variable):
                url = _parse(given, variable)
                hosts.add((url.host, port_of(url)))
        for entry in filter(None, (part.strip() for part in environ.get(TRUSTED_HOSTS, "").split(","))):
            url = _parse(f"https://{entry}", TRUSTED_HOSTS)
            hosts.add((url.host, url.port))
        return cls(frozenset(hosts))

    def includes(self, url: httpx.URL) -> bool:
        """Whether the person's configuration names the host (and port) of `url`."""
        return (url.host, None) in self.hosts or (url.host, port_of(url)) in self.hosts

    def check(self, url: httpx.URL) -> None:
        """Raises UsageError where the URL alone says that it must not be fetched; resolves nothing."""
        if url.scheme not in _DEFAULT_PORTS or not url.host:
            raise UsageError(f"{shown(url)}: only https addresses can be fetched")
        if url.userinfo:
            raise UsageError(f"{shown(url)}: a user name or password in the address is refused; it would be kept")
        if self.includes(url):
            return
        if url.scheme == "http":
            raise UsageError(f"{shown(url)}: plain http is refused; use https, or {_how_to_trust(url)}")
        if (literal := _literal_address(url.host)) and not is_public(literal):
            raise UsageError(_refusal(url, literal))
        if url.host == "localhost" or url.host.endswith(".localhost"):
            raise UsageError(_refusal(url, "this machine"))


def is_public(address: str) -> bool:
    """Whether `address` (IPv4 or IPv6) is on the public internet; an address that embeds another one is unwrapped."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour or ip.teredo or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def public_addresses(url: httpx.URL) -> list[str]:
    """The public addresses that the host of `url` resolves to, in the resolver's order, at most a few.

    Raises UsageError when it resolves to private addresses only, httpx.ConnectError when it does not resolve.
    """
    try:
        found = socket.getaddrinfo(url.raw_host.decode("ascii"), port_of(url), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"cannot resolve {url.host}: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    public = [address for address in addresses if is_public(address)]
    if not public:
        raise UsageError(_refusal(url, addresses[0]))
    return public[:_CONNECT_TRIES]


class GuardedTransport(httpx.BaseTransport):
    """An httpx transport that connects to checked addresses only; honours the proxy variables of the environment."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        # One pool a host: a pool is keyed by address, and two hosts behind one address must not share a TLS session
        self._pools: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        self._trust.check(url)
        if (proxy := _proxy_for(url)) is not None:
            return self._pool(proxy, proxy=proxy).handle_request(request)
        pool = self._pool(f"{url.host}:{port_of(url)}")
        if self._trust.includes(url):
            return pool.handle_request(request)
        failure: httpx.TransportError | None = None
        for pinned in _pinned(request, public_addresses(url)):
            try:
                return pool.handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _pool(self, key: str, proxy: str | None = None) -> httpx.HTTPTransport:
        if key not in self._pools:
            self._pools[key] = httpx.HTTPTransport(proxy=proxy)
        return self._pools[key]


def _pinned(request: httpx.Request, addresses: list[str]) -> Iterator[httpx.Request]:
    """`request` once for each address; name and certificate stay those of the host (httpx keeps the Host header)."""
    for address in addresses:
        yield httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
        )


def _proxy_for(url: httpx.URL) -> str | None:
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _literal_address(host: str) -> str | None:
    """The address that `host` spells, in any of the spellings that resolvers take (``127.1``, ``0x7f000001``)."""
    try:
        return str(ipaddress.ip_address(host.strip("[]").split("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def _refusal(url: httpx.URL, address: str) -> str:
    return f"{shown(url)}: leads to {address}, which is not on the public internet: refused; {_how_to_trust(url)}"


def _how_to_trust(url: httpx.URL) -> str:
    return f"set {TRUSTED_HOSTS}={url.host}:{port_of(url)} if you trust it"


def _parse(text: str, variable: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UsageError(f"{variable}: {text!r} is not an address: {error}") from error
    if not url.host or url.scheme not in _DEFAULT_PORTS:
        raise UsageError(f"{variable}: {text!r} names no host; give https://HOST or, for a list, HOST[:PORT],…")
    return url
