"""Real mounts of a service that speaks TLS: whom they trust, and that others get no request.

The service is Azurite behind a relay with certificates of an authority of our own.
"""

import errno
import os
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.azurite import Azurite, signature
from tests.certificates import Authority
from tests.mounts import MountFailed, mounted
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


def test_a_private_authority_is_trusted_by_ssl_cert_file(
    service: Service, container: str, tmp_path: Path
) -> None:
    with mounted(service.service, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x" * 1_000_000)
        mount.remount()
        assert (mount.path / "file").read_bytes() == b"x" * 1_000_000


def _old(authority: Authority) -> ssl.SSLContext:
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


NOT_TO_BE_TRUSTED: dict[str, tuple[Callable[[Authority], ssl.SSLContext], str]] = {
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
    "TLS 1.1": (_old, "SSL: TLSV1_ALERT_PROTOCOL_VERSION"),
}


@pytest.mark.parametrize("fault", NOT_TO_BE_TRUSTED)
def test_who_cannot_prove_to_be_the_service_is_refused_at_the_mount_and_asked_nothing(
    fault: str, service: Service, authority: Authority, container: str, tmp_path: Path
) -> None:
    make, pattern = NOT_TO_BE_TRUSTED[fault]
    service.tls = make(authority)
    with (
        pytest.raises(MountFailed, match=pattern) as failed,
        mounted(service.service, container, tmp_path, "timeout=2", foreground=False),
    ):
        pass
    assert len(failed.value.stderr.splitlines()) == 1
    assert service.asked == []


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


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    status: int,
    service: Service,
    azurite: Azurite,
    authority: Authority,
    container: str,
    tmp_path: Path,
) -> None:
    other = Service(azurite, authority)
    sas = azurite.sas(container)
    place = f"{other.service.url(container)}?{sas}"
    service.refusal = Refusal(status, "Moved", (("Location", place),))
    try:
        with (
            pytest.raises(MountFailed, match=str(status)) as failed,
            mounted(service.service, container, tmp_path, "timeout=2", sas=sas, foreground=False),
        ):
            pass
    finally:
        other.close()
    assert service.asked
    assert other.asked == []
    assert signature(sas) not in failed.value.stderr
