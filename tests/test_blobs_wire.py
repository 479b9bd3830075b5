"""What goes over the wire: names, the SAS, metadata; and that the SAS goes nowhere else."""

import contextlib
import datetime
import logging
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from blobfs.blobs import Client, Container, ContentHeaders, RetryPolicy, metadata_size, wire
from blobfs.errors import Rejected, ServiceError, Unavailable, Untrusted
from tests.strict import Script, answer

# Reserved, unsafe and doubly encoded characters, in no order: none may be changed on the way.
TOKEN = (
    "sp=rl&sv=2025-11-05&se=2030-01-01T00:00:00Z&sip=1.2.3.4-5.6.7.8&spr=https,http"
    "&q='{}|^`\"<>&sig=a%2Bb/c%252F%3d%3D"
)
SIGNATURE = "a%2Bb/c%252F%3d%3D"

NO_HEADERS = ContentHeaders()
ONCE = RetryPolicy(attempts=1)


def container(transport: httpx.AsyncBaseTransport, token: str = TOKEN) -> Container:
    client = Client(transport=transport, retry=ONCE)
    return Container(client, "https://account.blob.core.windows.net/box", lambda: token)


@asynccontextmanager
async def recording_server(reply: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A TCP server that records the head of each request, gives the same reply to all, and closes
    the connection."""
    heads: list[bytes] = []
    closing = reply.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = await stream.receive_some()
            if not received:
                return
            head += received
        heads.append(head)
        await stream.send_all(closing)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1], heads
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a b", "a%20b"),
        (" lead/trail ", "%20lead/trail%20"),
        ("100%", "100%25"),
        ("a%20b", "a%2520b"),
        ("a+b", "a%2Bb"),
        ("a#b?c", "a%23b%3Fc"),
        ("a&b=c", "a%26b%3Dc"),
        ("it's", "it%27s"),
        ("~user/-_.x", "~user/-_.x"),
        ("ü/日本", "%C3%BC/%E6%97%A5%E6%9C%AC"),
        ("a//b/", "a//b/"),
        ("/root", "/root"),
        ("a\nb\tc", "a%0Ab%09c"),
        ("a:b@c;d,e!f$g(h)*[i]", "a%3Ab%40c%3Bd%2Ce%21f%24g%28h%29%2A%5Bi%5D"),
    ],
)
async def test_a_name_reaches_the_service_as_it_is(name: str, path: str) -> None:
    script = Script(answer())
    await container(script).head(name)
    assert script.requests[0].url.raw_path.decode() == f"/box/{path}?{TOKEN}"


@pytest.mark.parametrize("name", ["", ".", "..", "../other/blob", "a/./b", "a/..", "\udc80"])
async def test_a_name_that_addresses_something_else_is_never_sent(name: str) -> None:
    script = Script()
    with pytest.raises(Rejected):
        await container(script).delete(name)
    assert script.requests == []


async def test_the_sas_is_sent_byte_for_byte() -> None:
    reply = b'HTTP/1.1 200 OK\r\nx-ms-request-id: 1\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n'
    async with recording_server(reply) as (port, heads), Client(retry=ONCE) as client:
        box = Container(client, f"http://127.0.0.1:{port}/account/box", lambda: TOKEN)
        await box.head("a b")
        await box.set_metadata("a b", {"Key": "v"}, if_match="1")
    assert heads[0].startswith(f"HEAD /account/box/a%20b?{TOKEN} HTTP/1.1\r\n".encode())
    assert heads[1].startswith(
        f"PUT /account/box/a%20b?comp=metadata&{TOKEN} HTTP/1.1\r\n".encode()
    )
    assert f"\r\nHost: 127.0.0.1:{port}\r\n".encode() in heads[0]
    assert b'\r\nx-ms-meta-Key: v\r\nIf-Match: "1"\r\n' in heads[1]


async def test_a_proxy_is_used_and_does_not_see_the_sas(monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording_server(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as (
        port,
        heads,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        async with Client(retry=ONCE) as client:
            box = Container(client, "https://account.blob.core.windows.net/box", lambda: TOKEN)
            with pytest.raises(Unavailable):
                await box.head("a")
    assert heads[0].startswith(b"CONNECT account.blob.core.windows.net:443 HTTP/1.1\r\n")
    assert b"sig=" not in b"".join(heads)


async def test_a_service_without_a_trusted_certificate_gets_no_request(
    tmp_path: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    encoding, nothing = serialization.Encoding.PEM, serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem.write_bytes(key.private_bytes(encoding, form, nothing) + certificate.public_bytes(encoding))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    received: list[bytes] = []

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            received.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, serve, 0, context)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        async with Client(retry=ONCE) as client:
            box = Container(client, f"https://localhost:{port}/box", lambda: TOKEN)
            with pytest.raises(Untrusted, match="certificate is refused: self-signed"):
                await box.probe()
        nursery.cancel_scope.cancel()
    assert received == []


async def test_each_request_asks_for_the_token_anew() -> None:
    script = Script(answer(), answer())
    tokens = iter(["sig=old", "sig=new"])
    box = Container(Client(transport=script), "https://host/box", lambda: next(tokens))
    await box.head("a")
    await box.head("a")
    assert [request.url.raw_path for request in script.requests] == [
        b"/box/a?sig=old",
        b"/box/a?sig=new",
    ]


async def test_the_source_of_a_copy_carries_the_sas() -> None:
    script = Script(answer(202, x_ms_copy_status="success"))
    await container(script).copy("a b", "c", source_etag="0x5")
    headers = script.requests[0].headers
    assert headers["x-ms-copy-source"] == (
        f"https://account.blob.core.windows.net/box/a%20b?{TOKEN}"
    )
    assert headers["x-ms-source-if-match"] == '"0x5"'


async def test_no_log_line_holds_the_signature(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reply = (
        f'HTTP/1.1 200 OK\r\nx-ms-request-id: 1\r\nETag: "1"\r\nx-ms-copy-source: '
        f"http://h/c/b?{TOKEN}\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    async with recording_server(reply) as (port, heads), Client(retry=ONCE) as client:
        box = Container(client, f"http://127.0.0.1:{port}/box", lambda: TOKEN)
        await box.head("a")
        await box.copy("a", "b", source_etag="1")
    assert f"sig={SIGNATURE}".encode() in b"".join(heads)
    assert "sig=" not in caplog.text


async def test_no_exception_or_repr_holds_the_signature() -> None:
    failures = [
        httpx.ConnectError("no route"),
        httpx.LocalProtocolError(f"Illegal header value b'https://h/c/b?{TOKEN}'"),
        answer(403, f"<Error><Code>X</Code><Message>at ?{TOKEN}</Message></Error>".encode()),
        answer(400, f"<html>{TOKEN}</html>".encode(), x_ms_error_code=f"?{TOKEN}"),
    ]
    box = container(Script(*failures))
    for _ in failures:
        with pytest.raises(ServiceError) as caught:
            await box.copy("a", "b", source_etag="1")
        assert "sig=" not in "".join(traceback.format_exception(caught.value))
    assert "sig=" not in repr(box)


async def test_metadata_keeps_its_case_both_ways() -> None:
    script = Script(answer(), answer(x_ms_meta_MixedCase="v"))
    box = container(script)
    await box.set_metadata("a", {"MixedCase": "v"}, if_match="0x1")
    assert (b"x-ms-meta-MixedCase", b"v") in script.requests[0].headers.raw
    assert (await box.head("a")).metadata == {"MixedCase": "v"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"with-hyphen": "v"},
        {"1st": "v"},
        {"": "v"},
        {"ключ": "v"},
        {"a": "ü"},
        {"a": "line\nbreak"},
        {"a": " blank before"},
        {"a": "blank after "},
        {"a": "1", "A": "2"},
        {"a": "x" * 8192},
    ],
)
async def test_metadata_that_azure_cannot_hold_is_never_sent(metadata: dict[str, str]) -> None:
    script = Script()
    box = container(script)
    for write in (
        box.set_metadata("a", metadata, if_match="0x1"),
        box.put("a", b"", metadata=metadata, headers=NO_HEADERS),
        box.put_block_list("a", [], metadata=metadata, headers=NO_HEADERS),
        box.copy("a", "b", source_etag="0x1", metadata=metadata),
    ):
        with pytest.raises(Rejected):
            await write
    assert script.requests == []


def test_metadata_may_fill_the_8_kib_to_the_last_byte() -> None:
    metadata = {"name": "x" * (wire.METADATA_LIMIT - 4)}
    assert metadata_size(metadata) == 8192
    assert wire.metadata_headers(metadata) == {"x-ms-meta-name": metadata["name"]}


async def test_a_put_sends_all_that_the_blob_is_to_have() -> None:
    script = Script(answer(201))
    headers = ContentHeaders("text/plain", "no-cache", "gzip", "de", 'inline; filename="ü"', "md5=")
    body = [b"abc", bytearray(b"de"), memoryview(b"f")]
    await container(script).put(
        "a", body, metadata={"k": "v"}, headers=headers, tags={"a b": "c&d"}, tier="Cool",
        if_none_match=True,
    )  # fmt: skip
    sent = dict(script.requests[0].headers.raw)
    expected = {
        b"Content-Length": b"6",
        b"If-None-Match": b"*",
        b"x-ms-access-tier": b"Cool",
        b"x-ms-blob-cache-control": b"no-cache",
        b"x-ms-blob-content-disposition": 'inline; filename="ü"'.encode(),
        b"x-ms-blob-content-encoding": b"gzip",
        b"x-ms-blob-content-language": b"de",
        b"x-ms-blob-content-type": b"text/plain",
        b"x-ms-blob-type": b"BlockBlob",
        b"x-ms-meta-k": b"v",
        b"x-ms-tags": b"a%20b=c%26d",
        b"x-ms-version": b"2025-11-05",
    }
    assert expected.items() <= sent.items()
    assert script.requests[0].content == b"abcdef"
    # It is the hash of the old body.
    assert b"x-ms-blob-content-md5" not in sent


async def test_a_large_body_is_sent_whole_and_in_order() -> None:
    script = Script(answer(201))
    body = bytes(range(256)) * 4096 + b"tail"
    await container(script).put_block("a", "QUFB", body)
    assert script.requests[0].content == body
