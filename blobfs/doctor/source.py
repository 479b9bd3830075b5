"""What the mount of one source with given options needs."""

import os
import socket
import ssl
import stat
from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_bytes
from urllib.parse import urlsplit

import trio

from blobfs.access import Access
from blobfs.attributes import value_of
from blobfs.blobs import BlobInfo, Client, Container, RetryPolicy, proxy_of
from blobfs.doctor.findings import Findings
from blobfs.envelope import METADATA_KEY, EncryptionData
from blobfs.errors import (
    BlobfsError,
    Denied,
    KeyUnknown,
    NotFound,
    OptionError,
    SasError,
    ServiceError,
    TokenRefused,
    UsageError,
    WrongKey,
)
from blobfs.options import MountOptions, parse_source, split_options
from blobfs.recovery import SUFFIX
from blobfs.sas import PERMISSIONS, describe
from blobfs.session import open_keyring, parse_by_clock
from blobfs.source import Source, split_source

LIMIT = 15.0
"""Seconds that one check may take."""

CLOCK_TOLERANCE = 60.0
"""Seconds of difference from the service's clock that do no harm to begin with."""

CLOCK_LIMIT = 15 * 60.0
"""Seconds from which on tokens are refused as expired or not yet valid."""

ENDS_SOON = timedelta(hours=24)
FEW_BYTES = 1024**3

_SAMPLE = 100  # blobs looked at for one that a key can be tried on


def asks_for_others(options: Sequence[str]) -> bool:
    """Whether the options let other users in."""
    with suppress(OptionError):  # examine_source says it
        names = {name for text in options for name, _ in split_options(text)}
        return not names.isdisjoint({"allow_other", "allow_root"})
    return False


async def examine_source(text: str, options: Sequence[str], findings: Findings) -> None:
    """`text` is the source and `options` the texts of all `-o`, as `blobfs mount` takes them."""
    findings.begin("options")
    try:
        source, _ = split_source(text)
    except UsageError as exc:
        findings.wrong("source", exc)
        return
    # In a thread, since asking a sas_command, or the service's clock, runs a loop of its own.
    chosen = await trio.to_thread.run_sync(_options, text, options, findings)
    reachable = await _network(source, findings)
    if chosen is None:
        return
    stored = []
    for access in chosen.accesses:
        label = f" of {access.source.container}" if len(chosen.accesses) > 1 else ""
        if reachable:
            stored += await _service(access, label, findings)
        _token(access, label, findings)
    for note in chosen.notes:
        findings.warn("note", note, "")
    await _keys(chosen, stored, findings)
    _spool(chosen, findings)


def _options(text: str, options: Sequence[str], findings: Findings) -> MountOptions | None:
    try:
        chosen = parse_by_clock(lambda now: parse_source(text, options, now=now))
    except SasError as exc:
        findings.wrong("token", exc)
        return None
    except OptionError as exc:
        findings.wrong("options", exc, "blobfs mount --help explains each option")
        return None
    findings.ok("options", "are accepted")
    return chosen


# --- the way to the service ------------------------------------------------------------------


async def _network(source: Source, findings: Findings) -> bool:
    """Whether the service can be asked."""
    parts = urlsplit(f"{source.scheme}://{source.netloc}")
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}[source.scheme]
    if proxy := proxy_of(source.scheme, host):
        shown = proxy.partition("://")[2].rpartition("@")[2].rstrip("/")  # without its password
        findings.ok("proxy", f"requests go through {shown}")
        return True
    findings.begin("name")
    try:
        with trio.fail_after(LIMIT):
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else f"no answer in {LIMIT:g} s"
        findings.wrong(
            "name",
            f"{host} has no address: {reason}",
            "check the account's name in the source, and the DNS of this machine",
        )
        return False
    findings.ok("name", f"{host} is {', '.join(dict.fromkeys(str(f[4][0]) for f in found))}")
    findings.begin("connection")
    try:
        with trio.fail_after(LIMIT):
            stream = await trio.open_tcp_stream(host, port)
            async with stream:
                said = await _handshake(stream, host) if source.scheme == "https" else "not used"
    except ssl.SSLCertVerificationError as exc:
        findings.wrong(
            "TLS",
            f"the certificate of {host} is refused: {exc.verify_message}",
            "see who answers there; for a proxy that opens TLS put its certificate into "
            "/usr/local/share/ca-certificates and run update-ca-certificates",
        )
        return False
    except ssl.SSLError as exc:
        findings.wrong("TLS", f"{host} does not speak TLS 1.2: {exc.reason}", "check the source")
        return False
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
        reason = (
            f"no answer in {LIMIT:g} s" if isinstance(exc, trio.TooSlowError) else _reason_of(exc)
        )
        findings.wrong(
            "connection",
            f"{host}:{port} cannot be reached: {reason}",
            "check the network, the firewall, and whether a proxy is needed (HTTPS_PROXY)",
        )
        return False
    findings.ok("TLS", said)
    return True


def _reason_of(exc: BaseException) -> str:
    """Of the innermost cause, since trio's own say little."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    if isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return str(getattr(exc, "strerror", None) or exc or type(exc).__name__)


async def _handshake(stream: trio.SocketStream, host: str) -> str:
    """What was agreed on. Raises ssl.SSLError."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    secure = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secure.do_handshake()
    except trio.BrokenResourceError as exc:
        if isinstance(exc.__cause__, ssl.SSLError):
            raise exc.__cause__ from None
        raise
    certificate = secure.getpeercert()
    return f"{secure.version()}, certificate valid until {certificate['notAfter']}"


async def _service(access: Access, label: str, findings: Findings) -> list[BlobInfo]:
    """Some blobs, by a listing; also tells of the clock."""
    findings.begin(f"service{label}")
    prefix = access.source.prefix and access.source.prefix + "/"
    blobs: list[BlobInfo] = []
    async with Client(retry=RetryPolicy(attempts=1, attempt_timeout=LIMIT)) as client:
        try:
            # Not a mount's container, which would wait for another token.
            container = Container(client, access.source.container_url, lambda: access.sas.query)
            page = await container.list(prefix, delimiter="", max_results=_SAMPLE)
        except NotFound as exc:
            findings.wrong(
                f"service{label}",
                f"{access.source.container_url} does not exist: {exc}",
                "check account and container in the source, or make the container",
            )
        except TokenRefused as exc:
            findings.wrong(
                f"service{label}",
                exc,
                "get a new token; or the account's firewall refuses this host's address",
            )
        except Denied as exc:
            findings.wrong(f"service{label}", exc, "get a token with r and l at least")
        except (ServiceError, OptionError) as exc:
            findings.wrong(f"service{label}", exc, "check the network; try again later")
        else:
            blobs = list(page.blobs)
            findings.ok(f"service{label}", "answers, accepts the token and lists the container")
        _clock(client.clock_skew, findings)
    return blobs


def _clock(skew: float | None, findings: Findings) -> None:
    if skew is None:
        findings.skip("clock", "the service did not tell its time")
        return
    ahead = "behind" if skew > 0 else "ahead of"
    text = f"this machine's clock is {abs(skew):.0f} s {ahead} the service's"
    advice = "set it: timedatectl set-ntp true"
    if abs(skew) < CLOCK_TOLERANCE:
        findings.ok("clock", text)
    elif abs(skew) < CLOCK_LIMIT:
        findings.warn("clock", text, advice)
    else:
        findings.wrong("clock", f"{text}: tokens are taken for expired or too early", advice)


def _token(access: Access, label: str, findings: Findings) -> None:
    sas, now = access.sas, datetime.now(UTC)
    if sas.permissions is None:
        rights = f"the rights of the stored access policy {sas.identifier}"
    else:
        rights = "rights " + "".join(x for x in PERMISSIONS if x in sas.permissions)
    ends = [text for name, text in describe(sas, now) if name in ("se", "ske")]
    text = ", ".join([rights, *ends])
    expiry = sas.effective_expiry
    if expiry is not None and expiry - now < ENDS_SOON:
        findings.warn(f"token{label}", text, "have the next one ready")
    else:
        findings.ok(f"token{label}", text)


# --- keys and spool --------------------------------------------------------------------------


async def _keys(chosen: MountOptions, stored: list[BlobInfo], findings: Findings) -> None:
    findings.begin("keys")
    try:
        with trio.fail_after(2 * LIMIT):
            # One wraps and the other unwraps: the first would remember what it has wrapped.
            async with (
                aclosing(open_keyring(chosen)) as keyring,
                aclosing(open_keyring(chosen)) as other,
            ):
                if keyring.can_write:
                    payload = token_bytes(32)
                    wrapped = await keyring.wrap(payload)
                    if await other.unwrap(wrapped) != payload:
                        findings.wrong("keys", f"{wrapped.key_id!r} does not open what it closed")
                        return
                    findings.ok(
                        "keys", f"{wrapped.key_id!r} wraps and unwraps ({wrapped.algorithm})"
                    )
                elif chosen.read_only:
                    findings.skip("keys", "no key wraps, which a read-only mount can do without")
                else:
                    findings.wrong("keys", "no key wraps", "name one with key_id=")
                sample = next((b for b in stored if value_of(b.metadata, METADATA_KEY)), None)
                if sample is None:
                    findings.skip("contents", "nothing encrypted was found to try the keys on")
                    return
                findings.begin("contents")
                data = EncryptionData.parse(value_of(sample.metadata, METADATA_KEY) or "")
                await other.content_key(data)
                findings.ok("contents", f"a file under the key {data.wrapped.key_id!r} opens")
    except trio.TooSlowError:
        findings.wrong("keys", f"no answer in {2 * LIMIT:g} s", "check the key provider")
    except (KeyUnknown, WrongKey) as exc:
        findings.wrong("keys", exc, "give the key that the files were written with, too")
    except BlobfsError as exc:
        findings.wrong("keys", exc)


def _spool(chosen: MountOptions, findings: Findings) -> None:
    findings.begin("spool")
    path = chosen.spool_dir
    exists = path.exists()
    nearest = path if exists else next(p for p in path.parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        findings.wrong(
            "spool",
            f"{nearest} cannot be written to: files over buffer_size could not be kept",
            "give another spool_dir=, or chown it to the user who mounts",
        )
        return
    space = os.statvfs(nearest)
    free = space.f_bavail * space.f_frsize
    left = _recovery_files(path)
    if left:
        findings.warn(
            "recovery",
            f"{path} has {left} files that a failed close could not store",
            "see Reading errors in the README",
        )
    if exists and path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        findings.warn("spool", f"{path} can be written to by others", f"chmod 700 {path}")
    elif free < FEW_BYTES:
        findings.warn("spool", f"{nearest} has {free >> 20} MiB free", "make room, or spool_dir=")
    else:
        findings.ok("spool", f"{path}, {free >> 30} GiB free")


def _recovery_files(path: Path) -> int:
    return len(list(path.glob(f"*{SUFFIX}")))
