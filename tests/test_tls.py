"""Real mounts of a service that speaks TLS: whom they trust, that others get no request, and what
the proxies on the way get.

The service is Azurite behind a relay with certificates of an authority of our own.
"""

import errno
import os
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.azurite import Azurite, signature
from tests.certificates import Authority
from tests.mounts import MountFailed, mounted
from tests.proxy import Proxy
from tests.relay import Asked, Refusal, Relay

pytestmark = pytest.mark.mount


class Service(Relay):
    """`asked` is every request that came through."""

    def __init__(self, azurite: Azurite, authority: Authority) -> None:
        super().__init__(azurite, authority.server())
        self.asked: list[Asked] = []
        self.refusal: Refusal | None = None
        self.choose = self._note

    def _note(self, asked: Asked) -> Refusal | None:
        self.asked.append(asked)
        return self.refusal


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that the mounts of a test trust."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority


@pytest.fixture
def service(azurite: Azurite, authority: Authority) -> Iterator[Service]:
    service = Service(azurite, authority)
    yield service
    service.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """One that the environment does not name yet, nor another."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxy = Proxy()
    yield proxy
    proxy.close()


def test_a_private_authority_is_trusted_by_ssl_cert_file(
    service: Service, container: str, tmp_path: Path
) -> None:
    with mounted(service.service, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x" * 1_000_000)
        mount.remount()
        assert (mount.path / "file").read_bytes() == b"x" * 1_000_000


@contextmanager
def azurite_with(certificate: Path, authority: Authority, tmp_path: Path) -> Iterator[Azurite]:
    """Azurite that speaks TLS itself, as another server than that of Python."""
    azurite = Azurite(tmp_path / "azurite", certificate, authority.file)
    try:
        yield azurite
    finally:
        azurite.stop()


def test_so_is_it_with_azurites_own_tls(authority: Authority, tmp_path: Path) -> None:
    with (
        azurite_with(authority.certificate(), authority, tmp_path) as azurite,
        mounted(azurite, azurite.new_container(), tmp_path) as mount,
    ):
        (mount.path / "file").write_bytes(b"x" * 1_000_000)
        mount.remount()
        assert (mount.path / "file").read_bytes() == b"x" * 1_000_000


@pytest.mark.parametrize(
    ("name", "ends", "reason"),
    [
        ("localhost", -timedelta(days=1), "certificate has expired"),
        ("elsewhere", timedelta(days=1), "Hostname mismatch"),
    ],
)
def test_azurite_with_a_bad_certificate_is_refused(
    name: str, ends: timedelta, reason: str, authority: Authority, tmp_path: Path
) -> None:
    certificate = authority.certificate(name, ends)
    with (
        azurite_with(certificate, authority, tmp_path) as azurite,
        pytest.raises(MountFailed, match=f"certificate is refused: {reason}.*; nothing was sent"),
        mounted(azurite, "container", tmp_path, "timeout=600", foreground=False),
    ):
        pass


def _old(authority: Authority) -> ssl.SSLContext:
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


NOT_TO_BE_TRUSTED: dict[str, tuple[Callable[[Authority], ssl.SSLContext | None], str]] = {
    "expired": (
        lambda authority: authority.server(ends=-timedelta(days=1)),
        "the server's certificate is refused: certificate has expired; nothing was sent",
    ),
    "another name": (
        lambda authority: authority.server("elsewhere"),
        "the server's certificate is refused: Hostname mismatch, .* 'localhost'; nothing was sent",
    ),
    "another authority": (
        lambda authority: Authority(authority.file.parent, "an unknown authority").server(),
        "the server's certificate is refused: unable to get local issuer certificate; nothing",
    ),
    "TLS 1.1": (
        _old,
        "the server does not speak TLS 1.2: TLSV1_ALERT_PROTOCOL_VERSION; nothing was sent",
    ),
    "no TLS": (
        lambda authority: None,
        "the server does not speak TLS 1.2: WRONG_VERSION_NUMBER; nothing was sent",
    ),
}


def refused_at_once(service: Service, container: str, tmp_path: Path, pattern: str) -> str:
    """What the mount says. It has longer than it is waited for: with another attempt it would be
    there still."""
    with (
        pytest.raises(MountFailed, match=pattern) as failed,
        mounted(service.service, container, tmp_path, "timeout=600", foreground=False),
    ):
        pass
    assert failed.value.status in (1, 32)
    assert len(failed.value.stderr.splitlines()) == 1
    assert service.asked == []
    return failed.value.stderr


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a proxy"])
@pytest.mark.parametrize("fault", NOT_TO_BE_TRUSTED)
def test_who_cannot_prove_to_be_the_service_is_refused_at_the_mount_and_asked_nothing(
    fault: str,
    proxied: bool,
    service: Service,
    authority: Authority,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if proxied:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    make, pattern = NOT_TO_BE_TRUSTED[fault]
    service.tls = make(authority)
    refused_at_once(service, container, tmp_path, pattern)
    assert bool(proxy.heads) == proxied


def test_a_certificate_that_turns_bad_fails_calls_until_it_is_good_again(
    service: Service, authority: Authority, container: str, tmp_path: Path
) -> None:
    with mounted(service.service, container, tmp_path, "metadata_ttl=0", "timeout=2") as mount:
        (mount.path / "file").write_bytes(b"x")
        mount.expect_log("the server's certificate is refused: certificate has expired")
        good, service.tls = service.tls, authority.server(ends=-timedelta(days=1))
        service.disconnect()
        service.asked.clear()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (mount.path / "file").read_bytes()
        assert service.asked == []
        service.tls = good
        assert (mount.path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a proxy"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    status: int,
    proxied: bool,
    service: Service,
    azurite: Azurite,
    authority: Authority,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if proxied:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    other = Service(azurite, authority)
    sas = azurite.sas(container)
    place = f"{other.service.url(container)}?{sas}"
    service.refusal = Refusal(status, "Moved", (("Location", place),))
    host = urlsplit(place).netloc
    try:
        with (
            pytest.raises(MountFailed) as failed,
            mounted(service.service, container, tmp_path, "timeout=600", sas=sas, foreground=False),
        ):
            pass
    finally:
        other.close()
    assert len(service.asked) == 1
    assert other.asked == []
    assert len(proxy.heads) == proxied
    assert f"{status} Moved: a redirect to {host}, which is not followed" in failed.value.stderr
    assert "sig" not in failed.value.stderr


# --- proxies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_carries_the_requests_and_sees_neither_token_nor_name(
    name: str,
    service: Service,
    azurite: Azurite,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, proxy.url.removeprefix("http://"))
    sas = azurite.sas(container)
    with mounted(service.service, container, tmp_path, sas=sas) as mount:
        (mount.path / "file").write_bytes(b"x" * 1_000_000)
        mount.remount()
        assert (mount.path / "file").read_bytes() == b"x" * 1_000_000
    host = urlsplit(service.service.endpoint).netloc
    assert {head.split(b"\r\n")[0] for head in proxy.heads} == {f"CONNECT {host} HTTP/1.1".encode()}
    assert len(proxy.carried) > 2_000_000
    seen = b"".join(proxy.heads) + proxy.carried
    for hidden in (quote(signature(sas), safe=""), container, azurite.account):
        assert hidden.encode() not in seen


def test_a_proxy_may_be_asked_over_tls_and_have_a_password(
    service: Service,
    authority: Authority,
    container: str,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secure = Proxy(authority.server())
    monkeypatch.setenv("HTTPS_PROXY", secure.url.replace("//", "//user:p%40ss@"))
    try:
        with mounted(service.service, container, tmp_path) as mount:
            (mount.path / "file").write_bytes(b"x")
    finally:
        secure.close()
    assert secure.heads
    for head in secure.heads:
        assert f"Proxy-Authorization: Basic {b64encode(b'user:p@ss').decode()}".encode() in head


@pytest.mark.parametrize("hosts", ["localhost", "*", "example.org, localhost"])
def test_no_proxy_names_hosts_that_are_asked_without_one(
    hosts: str,
    service: Service,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", hosts)
    with mounted(service.service, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x")
    assert service.asked
    assert proxy.heads == []


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_plain_http_to_this_machine_goes_through_no_proxy(
    name: str,
    azurite: Azurite,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, proxy.url)
    with mounted(azurite, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x")
    assert proxy.heads == []


@pytest.mark.parametrize(
    "refusal", ["407 Proxy Authentication Required", "403 Forbidden", "302 Found"]
)
def test_a_proxy_that_refuses_is_asked_once_and_named(
    refusal: str,
    service: Service,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user:p%40ss@"))
    proxy.refusals = [f"{refusal}\r\nLocation: https://localhost:1/"] * 9
    pattern = f"the proxy refuses: {refusal}; nothing was sent; see The network in the README"
    said = refused_at_once(service, container, tmp_path, pattern)
    assert "ss@" not in said
    assert len(proxy.heads) == 1


def test_a_proxy_that_is_overloaded_is_asked_again(
    service: Service,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    proxy.refusals = ["503 Service Unavailable", "502 Bad Gateway"]
    with mounted(service.service, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x")
    assert proxy.refusals == []


def test_a_proxy_that_refuses_later_fails_calls_until_it_carries_again(
    service: Service,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    with mounted(service.service, container, tmp_path, "metadata_ttl=0") as mount:
        (mount.path / "file").write_bytes(b"x")
        mount.expect_log("the proxy refuses: 407 Proxy Authentication Required")
        proxy.refusals = ["407 Proxy Authentication Required"] * 99
        proxy.disconnect()
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (mount.path / "file").read_bytes()
        proxy.refusals = []
        assert (mount.path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["socks5://user:p%40ss@localhost:1", "ftp://user:p%40ss@localhost"])
def test_a_proxy_of_another_kind_is_no_proxy(
    url: str,
    service: Service,
    proxy: Proxy,
    container: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", url)
    said = refused_at_once(
        service,
        container,
        tmp_path,
        "exit status 1: blobfs: the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: ",
    )
    assert "ss@" not in said
