"""HTTP/1.1 as the transport reads it from a socket, whatever the other side does."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trio.testing

from blobfs.blobs import Client, Container, RetryPolicy
from blobfs.blobs.transport import Body, SocketTransport


@asynccontextmanager
async def server(*connections: Sequence[bytes]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads a request's head, then sends the next of its answers; when a connection
    has no more it closes it. Yields its URL and the heads."""
    heads: list[bytes] = []
    scripts = iter(connections)

    async def serve(stream: trio.SocketStream) -> None:
        for answer in next(scripts):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = await stream.receive_some(1)
                if not piece:
                    return
                head += piece
            heads.append(head)
            await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/", heads
        nursery.cancel_scope.cancel()


def no_tls() -> ssl.SSLContext:
    raise AssertionError("plain http needs no TLS")


@asynccontextmanager
async def client(keepalive: float = 30.0) -> AsyncIterator[httpx.AsyncClient]:
    transport = SocketTransport(no_tls, keepalive=keepalive)
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(5.0)) as http:
        yield http


def whole(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 3_000_000])
async def test_a_body_of_known_length_arrives_whole(size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    async with server([whole(body[:size])]) as (url, _), client() as http:
        assert (await http.get(url)).content == body[:size]


class Sink:
    """Takes what comes in pieces of 1,000 bytes."""

    def __init__(self, size: int) -> None:
        self.start, self.stop = 0, size
        self.body = bytearray(size)

    def begin(self) -> None:
        pass

    async def ready(self) -> None:
        pass

    def room(self) -> memoryview:
        return memoryview(self.body)[self.start : min(self.stop, self.start // 1000 * 1000 + 1000)]

    def filled(self, count: int) -> None:
        self.start += count
        if self.start == 4000:
            raise OverflowError("enough")


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 3999])
async def test_a_sink_is_filled_as_the_bytes_come(size: int) -> None:
    body, sink = bytes(n % 251 for n in range(size)), Sink(size)
    async with server([whole(body), whole(b"next")]) as (url, heads), client() as http:
        request = httpx.Request("GET", url, extensions={"sink": sink})
        assert (await http.send(request)).content == b""
        assert sink.body == body
        assert (await http.get(url)).content == b"next"
        assert len(heads) == 2


async def test_a_connection_that_a_sink_did_not_empty_is_not_used_again() -> None:
    body = bytes(9000)
    async with server([whole(body)], [whole(b"next")]) as (url, _), client() as http:
        with pytest.raises(OverflowError):
            await http.send(httpx.Request("GET", url, extensions={"sink": Sink(9000)}))
        assert (await http.get(url)).content == b"next"


async def test_a_sink_is_told_when_the_body_is_cut() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + bytes(2500)
    sink = Sink(3000)
    async with server([answer]) as (url, _), client() as http:
        with pytest.raises(httpx.RemoteProtocolError, match="2500 bytes of a body of 3000"):
            await http.send(httpx.Request("GET", url, extensions={"sink": sink}))
    assert sink.start == 2500


async def test_a_chunked_body_is_put_together() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    )
    async with server([answer, whole(b"next")]) as (url, heads), client() as http:
        assert (await http.get(url)).content == b"abc0123456789"
        assert (await http.get(url)).content == b"next"
        assert len(heads) == 2


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with server([b"HTTP/1.1 200 OK\r\n\r\nall of it"]) as (url, _), client() as http:
        assert (await http.get(url)).content == b"all of it"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123456789",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\n12345\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n12345\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12345\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: a\rY: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-\xc3\xa9: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
    ],
)
async def test_a_cut_or_malformed_answer_is_an_error(answer: bytes) -> None:
    async with server([answer]) as (url, _), client() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(url)


@pytest.mark.parametrize("own", [True, False], ids=["ours", "httpx's, for proxies"])
@pytest.mark.parametrize("header", [b"Content-Length: abc", b"Content-Length: 5, 6", b"\xc3: x"])
async def test_an_answer_with_a_malformed_header_is_asked_for_again(
    own: bool, header: bytes
) -> None:
    broken = b"HTTP/1.1 206 Partial Content\r\n" + header + b"\r\n\r\nabcd"
    good = b"\r\n".join(
        [
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 0-3/4",
            b'x-ms-request-id: 1\r\nETag: "0x1"\r\nLast-Modified: Fri, 22 Nov 2024 06:36:00 GMT',
            b"\r\nabcd",
        ]
    )
    client = Client(
        transport=None if own else httpx.AsyncHTTPTransport(),
        retry=RetryPolicy(attempts=2, first_delay=0.01),
    )
    async with server([broken], [good]) as (url, heads), client:
        container = Container(client, f"{url}box", lambda: "sig=x")
        assert (await container.get("blob", 0, 4))[1] == b"abcd"
    assert len(heads) == 2


async def test_a_connection_is_used_again() -> None:
    async with server([whole(b"one"), whole(b"two")]) as (url, heads), client() as http:
        assert (await http.get(url)).content == b"one"
        assert (await http.get(url)).content == b"two"
        assert len(heads) == 2


async def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used() -> None:
    async with server([whole(b"one")], [whole(b"two")]) as (url, _), client() as http:
        assert (await http.get(url)).content == b"one"
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await http.get(url)).content == b"two"


async def test_a_connection_that_idled_too_long_is_replaced() -> None:
    answers = [whole(b"one"), whole(b"")], [whole(b"two")]
    async with server(*answers) as (url, _), client(keepalive=0) as http:
        assert (await http.get(url)).content == b"one"
        assert (await http.get(url)).content == b"two"


async def test_a_connection_that_says_close_is_not_kept() -> None:
    answers = [whole(b"one", b"Connection: close")], [whole(b"two")]
    async with server(*answers) as (url, _), client() as http:
        assert (await http.get(url)).content == b"one"
        assert (await http.get(url)).content == b"two"


async def test_the_answer_to_a_refused_body_is_heard() -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    body = memoryview(bytes(8_000_000))
    async with server([refusal]) as (url, _), client() as http:
        request = httpx.Request(
            "PUT", url, headers={"Content-Length": "8000000"}, stream=Body([body], 65536)
        )
        try:
            answer = await http.send(request)
        except httpx.WriteError:
            return  # the reset came before the answer was read: an error all the same
        assert (answer.status_code, answer.content) == (403, b"no")


async def test_a_body_of_several_buffers_is_sent_in_order() -> None:
    received = bytearray()

    async def serve(stream: trio.SocketStream) -> None:
        while not received.endswith(b"end"):
            received.extend(await stream.receive_some())
        await stream.send_all(whole(b""))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        async with client() as http:
            views = [memoryview(b"first "), memoryview(bytearray(b"then ")), memoryview(b"end")]
            stream = Body(views, 4)
            url = f"http://127.0.0.1:{port}/"
            await http.send(
                httpx.Request("PUT", url, headers={"Content-Length": "14"}, stream=stream)
            )
        nursery.cancel_scope.cancel()
    assert received.partition(b"\r\n\r\n")[2] == b"first then end"


async def test_an_interim_answer_is_passed_over() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"body")
    async with server([answer]) as (url, _), client() as http:
        assert (await http.get(url)).content == b"body"


async def test_an_answer_to_head_has_no_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    async with server([head, whole(b"next")]) as (url, _), client() as http:
        assert (await http.head(url)).headers["content-length"] == "100"
        assert (await http.get(url)).content == b"next"


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _silence, 0)
        port = listeners[0].socket.getsockname()[1]
        async with client() as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.get(f"http://127.0.0.1:{port}/", timeout=0.05)
        nursery.cancel_scope.cancel()


async def _silence(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_a_line_break_in_a_header_is_never_sent() -> None:
    async with server([whole(b"")]) as (url, heads), client() as http:
        with pytest.raises(httpx.LocalProtocolError):
            await http.get(url, headers={"X-Evil": "a\r\nY: b"})
        assert heads == []
