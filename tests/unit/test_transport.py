"""The download engine against a server that cuts, lies, redirects and refuses."""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.server import Served, Server, cut, endless, redirect, slow, status
from tokenmill.core.errors import DigestError, NetworkError, NotFoundError, StoreError, UsageError
from tokenmill.store.transport import Client, Throttle, Trust, download, retry_after_s, transfer
from tokenmill.store.transport import trust as trust_module
from tokenmill.store.transport.bearer import token_url
from tokenmill.store.transport.trust import is_public

DATA = bytes(range(256)) * 5000  # 1.28 MB
SHA = hashlib.sha256(DATA).hexdigest()
FILE = "/model.gguf"


class Waits(list[float]):
    """Stands in for time.sleep and remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def server():
    with Server({FILE: DATA}) as running:
        yield running


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def client(server: Server, waits: Waits):
    with Client(Trust(frozenset({("127.0.0.1", server.port)})), sleep=waits, jitter=lambda: 1.0, timeout_s=5) as made:
        yield made


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / "partial-x"


def test_a_plain_download_and_its_progress(server, client, partial):
    reports = []
    got = download(
        client, server.url + FILE, partial, size=len(DATA), sha256=SHA, on_bytes=lambda *a: reports.append(a)
    )
    assert (got.sha256, got.size) == (SHA, len(DATA))
    assert partial.read_bytes() == DATA
    assert reports[-1] == (len(DATA), len(DATA))
    assert [p.name for p in partial.parent.iterdir()] == [partial.name]


@pytest.mark.parametrize("etag", ['"v1"', 'W/"weak"', None])
@pytest.mark.parametrize("promised", [True, False])
def test_a_cut_connection_is_continued_where_it_was_cut(server, client, partial, waits, etag, promised):
    server.files[FILE].etag = etag
    server.fault(FILE, cut(300_000), cut(400_000))
    sha = SHA if promised else None
    assert download(client, server.url + FILE, partial, sha256=sha).sha256 == SHA
    ranges = [seen.headers.get("range") for seen in server.requests(FILE)]
    strong = etag == '"v1"'
    if promised or strong:
        assert ranges == [None, "bytes=300000-", "bytes=700000-"]
        assert [seen.headers.get("if-range") for seen in server.requests(FILE)][1:] == [etag if strong else None] * 2
    else:  # nothing proves that the rest belongs to the beginning
        assert ranges == [None, None, None]
    assert len(waits) == 2


def test_another_process_continues_the_partial(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(DATA[:500_000])
    assert download(client, server.url + FILE, partial, size=len(DATA), sha256=SHA).sha256 == SHA
    assert [seen.headers.get("range") for seen in server.requests(FILE)] == ["bytes=500000-"]


def test_an_unprovable_partial_is_fetched_anew(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(b"something else")
    assert download(client, server.url + FILE, partial).sha256 == SHA
    assert server.requests(FILE)[0].headers.get("range") is None


def test_a_complete_partial_needs_no_request(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(DATA)
    assert download(client, server.url + FILE, partial, size=len(DATA), sha256=SHA).size == len(DATA)
    assert server.seen == []


def test_a_complete_partial_of_unknown_size_is_settled_by_416(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(DATA)
    assert download(client, server.url + FILE, partial, sha256=SHA).size == len(DATA)
    assert len(server.seen) == 1


def test_416_for_a_partial_that_is_too_long_starts_over(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(DATA + b"more")
    assert download(client, server.url + FILE, partial, sha256=SHA).sha256 == SHA
    assert [seen.headers.get("range") for seen in server.requests(FILE)] == [f"bytes={len(DATA) + 4}-", None]


def test_a_server_that_ignores_ranges_starts_over(server, client, partial):
    server.files[FILE].ranges = False
    server.fault(FILE, cut(300_000))
    assert download(client, server.url + FILE, partial, size=len(DATA), sha256=SHA).sha256 == SHA


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_changed_etag_starts_over(server, client, partial, honours_if_range):
    new = bytes(reversed(DATA))
    server.fault(FILE, cut(300_000))
    if not honours_if_range:  # 206 of the new file, with its new ETag
        rest = {"Content_Range": f"bytes 300000-{len(new) - 1}/{len(new)}", "ETag": '"v2"'}
        server.fault(FILE, status(206, new[300_000:], **rest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "answer", lambda exchange, seen: exchange.send_file(Served(new, etag='"v2"')))
        got = download(client, server.url + FILE, partial)
    assert got.sha256 == hashlib.sha256(new).hexdigest()


def test_a_wrong_range_in_the_answer_starts_over(server, client, partial):
    wrong = {"Content_Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v1"'}
    server.fault(FILE, cut(300_000), status(206, DATA[5:], **wrong))
    assert download(client, server.url + FILE, partial, sha256=SHA).sha256 == SHA


def test_a_wrong_digest_is_refused_and_nothing_kept(server, client, partial):
    with pytest.raises(DigestError, match="promised was " + "0" * 64):
        download(client, server.url + FILE, partial, sha256="0" * 64)
    assert list(partial.parent.iterdir()) == []
    assert len(server.seen) == 1


def test_a_rotten_partial_gets_one_fresh_try(server, client, partial):
    partial.parent.mkdir()
    partial.write_bytes(b"\0" * 500_000)
    assert download(client, server.url + FILE, partial, size=len(DATA), sha256=SHA).sha256 == SHA
    assert len(server.seen) == 2


@pytest.mark.parametrize("asked", ["7", "date"])
def test_429_waits_as_long_as_the_server_asks(server, client, partial, waits, asked):
    value = asked if asked == "7" else format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    server.fault(FILE, status(429, Retry_After=value), status(503))
    download(client, server.url + FILE, partial, sha256=SHA)
    assert waits[0] == 7.0 if asked == "7" else 80 < waits[0] <= 90
    assert waits[1] == 1.0


def test_a_server_that_asks_for_an_hour_is_not_waited_for(server, client, partial, waits):
    server.fault(FILE, status(429, Retry_After="3600"))
    with pytest.raises(NetworkError, match="3600 s"):
        download(client, server.url + FILE, partial, sha256=SHA)
    assert waits == []


def test_backoff_doubles_and_ends(server, client, partial, waits):
    server.fault(FILE, *[status(502)] * 10)
    with pytest.raises(NetworkError, match="502"):
        download(client, server.url + FILE, partial)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_cuts_that_bring_data_do_not_count_as_failures(server, client, partial, waits):
    data = DATA * 10
    server.files[FILE] = Served(data)
    server.fault(FILE, *[cut(1 << 20)] * 9)
    assert download(client, server.url + FILE, partial, size=len(data)).sha256 == hashlib.sha256(data).hexdigest()
    assert waits == [0.5] * 9


@pytest.mark.parametrize(("code", "error", "text"), [
    (401, NetworkError, "HF_TOKEN"),
    (403, NetworkError, "HF_TOKEN"),
    (404, NotFoundError, "not found"),
    (410, NotFoundError, "not found"),
    (400, NetworkError, "400"),
])  # fmt: skip
def test_refusals_are_typed_and_not_repeated(server, client, partial, waits, code, error, text):
    server.fault(FILE, status(code))
    with pytest.raises(error, match=text):
        download(client, server.url + FILE + "?signature=secret", partial)
    assert waits == []


def test_a_signed_address_is_not_shown(server, client, partial):
    with pytest.raises(NotFoundError) as caught:
        download(client, server.url + "/none?signature=secret", partial)
    assert "secret" not in str(caught.value)


def test_an_offered_length_that_contradicts_the_promise_is_refused_before_the_body(server, client, partial):
    with pytest.raises(DigestError, match=f"offers {len(DATA)} bytes, promised were 10"):
        download(client, server.url + FILE, partial, size=10)
    assert list(partial.parent.iterdir()) == []


def test_a_content_length_beyond_the_body_ends_in_an_error_not_a_loop(server, client, partial, waits):
    server.files[FILE].length = len(DATA) + 1000
    with pytest.raises(NetworkError):
        download(client, server.url + FILE, partial)
    assert len(waits) == 5


def test_a_content_length_short_of_the_body_gives_what_was_announced_and_fails_the_digest(server, client, partial):
    server.files[FILE].length = 1000
    with pytest.raises(DigestError):
        download(client, server.url + FILE, partial, sha256=SHA)


def test_an_endless_body_is_bounded_by_the_promise(server, client, partial):
    server.fault(FILE, endless())
    with pytest.raises(DigestError, match="more than the 100000 bytes"):
        download(client, server.url + FILE, partial, size=100_000)
    assert list(partial.parent.iterdir()) == []


def test_an_endless_body_without_promise_is_bounded_too(server, client, partial, monkeypatch):
    monkeypatch.setattr(transfer, "UNANNOUNCED_LIMIT", 1 << 20)
    server.fault(FILE, endless())
    with pytest.raises(DigestError, match="more than the 1048576 bytes"):
        download(client, server.url + FILE, partial)


def test_an_answer_read_into_memory_is_bounded(server, client):
    server.fault(FILE, endless())
    with pytest.raises(NetworkError, match="longer than 100000 bytes"):
        client.read("GET", server.url + FILE, limit=100_000)


def test_compression_that_was_not_asked_for_is_refused(server, client, partial):
    server.fault(FILE, status(200, b"abc", Content_Encoding="gzip"))
    with pytest.raises(NetworkError, match="compressed"):
        download(client, server.url + FILE, partial)
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_silence_counts_as_a_cut(server, partial, waits):
    server.fault(FILE, slow(2.0))
    with Client(Trust(frozenset({("127.0.0.1", server.port)})), sleep=waits, timeout_s=0.5) as client:
        assert download(client, server.url + FILE, partial, sha256=SHA).sha256 == SHA
    assert waits


def test_a_slow_start_within_the_timeout_is_waited_for(server, client, partial, waits):
    server.fault(FILE, slow(0.3))
    download(client, server.url + FILE, partial, sha256=SHA)
    assert waits == []


def test_credentials_stay_behind_when_a_redirect_leaves_the_origin(server, waits, partial):
    secrets = {"Authorization": "Bearer hf_secret", "X-Key": "secret", "Cookie": "secret=1"}
    with Server({FILE: DATA}) as other:
        server.fault("/a", redirect("/b"))
        server.fault("/b", redirect(other.url + FILE, 307))
        trust = Trust(frozenset({("127.0.0.1", server.port), ("127.0.0.1", other.port)}))
        with Client(trust, sleep=waits) as client:
            download(client, server.url + "/a", partial, sha256=SHA, headers=secrets)
    assert [seen.headers.get("authorization") for seen in server.seen] == ["Bearer hf_secret"] * 2
    assert "secret" not in str(other.seen[0].headers)


def test_a_range_survives_a_redirect_to_another_origin(server, waits, partial):
    with Server({FILE: DATA}) as other:
        server.fault("/a", redirect(other.url + FILE), redirect(other.url + FILE))
        other.fault(FILE, cut(500_000))
        with Client(Trust(frozenset({("127.0.0.1", None)})), sleep=waits) as client:
            download(client, server.url + "/a", partial, sha256=SHA)
    assert other.seen[1].headers["range"] == "bytes=500000-"
    assert len(server.seen) == 2  # a signed address may have expired: the retry begins at the start


def test_redirects_end(server, client, partial):
    server.fault(FILE, *[redirect(FILE)] * 30)
    with pytest.raises(NetworkError, match="redirects"):
        download(client, server.url + FILE, partial)
    assert len(server.seen) == 11


@pytest.mark.parametrize("target", [
    "http://127.0.0.1:1/x", "https://127.0.0.1:1/x", "https://localhost:1/x", "https://[::1]:1/x", "https://127.1:1/x",
    "https://2130706433/x", "https://0x7f.0.0.1/x", "https://169.254.169.254/latest", "https://10.0.0.7/x",
    "https://[::ffff:10.0.0.7]/x", "https://[fe80::1]/x", "https://192.168.1.1/x", "file:///etc/passwd", "ftp://a/b",
    "http://example.com/x", "https://user:pw@example.com/x", "https://[64:ff9b::a00:1]/x", "https://0.0.0.0/x",
])  # fmt: skip
def test_redirects_off_the_public_internet_are_refused(server, client, partial, target):
    server.fault(FILE, redirect(target))
    with pytest.raises(UsageError):
        download(client, server.url + FILE, partial)
    with pytest.raises(UsageError):
        download(client, target, partial)


def test_a_name_that_resolves_to_a_private_address_is_refused(client, partial, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("192.168.0.9", 443))])
    with pytest.raises(UsageError, match=r"192\.168\.0\.9.*TOKENMILL_TRUSTED_HOSTS=models\.example:443"):
        download(client, "https://models.example/x.gguf", partial)


def test_an_unresolvable_host_is_given_up_after_one_more_try(client, partial, waits, monkeypatch):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(NetworkError, match=r"cannot resolve models\.example"):
        download(client, "https://models.example/x.gguf", partial)
    assert len(waits) == 1


def test_the_connection_goes_to_the_checked_address_and_tls_to_the_name(tmp_path, partial, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {cert} -subj /CN=models.example"
    subprocess.run([*command.split(), "-addext", "subjectAltName=DNS:models.example"], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    answers = iter(["127.0.0.1", "10.0.0.1"])  # the second lookup would lead elsewhere: there must be none
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    with Server({FILE: DATA}, tls) as server, Client(Trust()) as client:
        real, checked = socket.getaddrinfo, []

        def resolve(host: str, port: int, *args: object, **kwargs: object):
            return real(next(answers), port, *args, **kwargs) if host.endswith(".example") else real(host, port)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(trust_module, "is_public", lambda address: checked.append(address) is None)
        url = f"https://models.example:{server.port}{FILE}"
        assert download(client, url, partial, sha256=SHA).size == len(DATA)
        assert checked == ["127.0.0.1"]
        assert server.seen[0].headers["host"] == f"models.example:{server.port}"
        answers = iter(["127.0.0.1"])
        with pytest.raises(NetworkError, match=r"(?i)certificate|mismatch"):  # another name, same address
            download(client, f"https://other.example:{server.port}{FILE}", partial)


def test_what_the_environment_names_is_trusted():
    environ = {"HF_ENDPOINT": "http://hub.corp:8080/", "TOKENMILL_TRUSTED_HOSTS": "mirror.corp, 10.0.0.7:8443,"}
    trust = Trust.from_environment(environ)
    for url in ("http://hub.corp:8080/x", "http://mirror.corp/x", "https://mirror.corp:1/x", "https://10.0.0.7:8443/x"):
        trust.check(httpx.URL(url))
    for url in ("http://hub.corp/x", "https://10.0.0.7/x"):
        with pytest.raises(UsageError):
            trust.check(httpx.URL(url))
    for bad in ({"HF_ENDPOINT": "hub.corp"}, {"TOKENMILL_TRUSTED_HOSTS": "a:b:c"}, {"HF_ENDPOINT": "file:///x"}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            Trust.from_environment(bad)


def test_a_proxy_of_the_environment_is_used_and_addresses_in_the_url_are_still_checked(partial, monkeypatch):
    with Server() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with Client(Trust(), retries=0) as client:
            with pytest.raises(NetworkError):  # the fake does not tunnel; that it was asked is enough
                download(client, "https://models.example/x", partial)
            with pytest.raises(UsageError):
                download(client, "https://10.0.0.1/x", partial)


@given(st.integers(0, 2**32 - 1))
def test_an_embedded_ipv4_address_is_as_public_as_itself(number):
    plain = ipaddress.IPv4Address(number)
    assert is_public(f"::ffff:{plain}") == is_public(str(plain)) == is_public(f"64:ff9b::{plain}")
    if plain.is_private or plain.is_loopback or plain.is_multicast or plain.is_link_local:
        assert not is_public(str(plain))


def test_no_room_on_the_disk_is_said_before_the_download(server, client, partial, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(StoreError, match=r"GB are needed, 0\.00 GB are free"):
        download(client, server.url + FILE, partial, size=len(DATA))


def test_a_disk_that_fills_up_meanwhile_keeps_the_partial(server, client, partial, monkeypatch):
    def fsync(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer.os, "fsync", fsync)
    with pytest.raises(StoreError, match="disk is full"):
        download(client, server.url + FILE, partial, sha256=SHA)
    assert partial.exists()


def test_progress_is_throttled_but_the_last_byte_is_told():
    now, told = [0.0], []
    throttle = Throttle(lambda *a: told.append(a), clock=lambda: now[0])
    for step in range(1001):
        now[0] = step / 1000
        throttle(step, 1000)
    assert len(told) == 11
    assert told[-1] == (1000, 1000)


@pytest.mark.parametrize("value", ["", "soon", "-3", "9" * 400, "٣"])
def test_an_unreadable_retry_after_is_no_retry_after(value):
    assert retry_after_s({"retry-after": value}) is None


HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80)


@given(
    HEADER_TEXT
    | st.sampled_from(["Bearer realm=", 'Bearer realm="', "Bearer "]).flatmap(lambda s: HEADER_TEXT.map(s.__add__))
)
def test_any_challenge_gives_an_address_or_nothing(text):
    url = token_url(text)
    assert url is None or url.host


@given(HEADER_TEXT)
def test_any_retry_after_gives_seconds_or_nothing(text):
    seconds = retry_after_s({"retry-after": text})
    assert seconds is None or seconds >= 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(["", "/", "//", "https://", "http://", "https://[", "https:", "https://127."]), HEADER_TEXT)
def test_any_location_gives_a_typed_error(server, client, partial, start, text):
    server.fault("/start", redirect(start + text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("10.1.2.3", 443))])
        with pytest.raises((UsageError, NetworkError, NotFoundError)):
            download(client, server.url + "/start", partial)
