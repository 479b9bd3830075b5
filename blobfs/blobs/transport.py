"""HTTP/1.1 over trio's sockets, below httpx: for bodies of megabytes.

httpx reads in pieces of 64 KiB through four layers of async generators, and its uploads copy each
piece twice; that is most of the time of a large read. This transport reads a body of known length
straight into one buffer, or into a sink that the request brings along (its extension "sink"), and
sends buffers as they are. Everything else of HTTP (redirects, cookies, compression, proxies) is
left out: `Client` uses httpx's own transport behind a proxy.
"""

import math
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self

import httpx
import trio

_HEAD_LIMIT = 64 * 1024
_READ = 64 * 1024
_MOST_PIECES = 1024  # of one writev: IOV_MAX
_UNKNOWN_LIMIT = 64 * 1024 * 1024  # bodies of unknown length are listings and errors
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
# In a header, by RFC 9110, 5.5; and NUL is what `packed` puts between the texts of a blob.
_DANGEROUS = re.compile(rb"[\0\r\n]")
_LENGTH = re.compile(rb"[0-9]{1,18}")

Origin = tuple[str, str, int]


class Sink(Protocol):
    """Where the bytes `[start, stop)` of a blob go as they come. What its methods raise ends the
    request."""

    start: int
    """The first byte that is still to come."""
    stop: int

    def begin(self) -> None:
        """An attempt begins, from `start` on, which may have gone back a little; not below where
        it was at the `begin` before."""

    async def ready(self) -> None:
        """An answer is there: wait until what it holds can be taken."""

    def room(self) -> memoryview:
        """Memory for the next bytes; none when all have come."""

    def filled(self, count: int) -> None:
        """So many bytes are in that memory."""


class Body(httpx.AsyncByteStream):
    """A request's body as buffers, which this transport sends without a copy."""

    def __init__(self, views: Sequence[memoryview], chunk: int) -> None:
        self.views = views
        self._chunks = (
            view[start : start + chunk] for view in views for start in range(0, len(view), chunk)
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        return bytes(chunk)


class SocketTransport(httpx.AsyncBaseTransport):
    """Connections to any number of origins, kept for `keepalive` seconds when idle.

    The caller limits how many requests run at once. Raises httpx's TransportErrors. A request
    that is cancelled or fails closes its connection.
    """

    def __init__(self, tls: Callable[[], ssl.SSLContext], *, keepalive: float) -> None:
        self._tls = tls
        self._keepalive = keepalive
        self._idle: dict[Origin, list[_Connection]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {}).get("read") or math.inf
        url = request.url
        origin = (url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme])
        connection = self._reusable(origin) or await self._connect(origin, timeout)
        try:
            status, headers = await connection.exchange(request, timeout)
        except BaseException:
            connection.close()
            raise
        sink = request.extensions.get("sink") if status in (200, 206) else None
        stream = _Answer(self, origin, connection, request.method, status, headers, timeout, sink)
        return httpx.Response(status, headers=headers, stream=stream, request=request)

    def _reusable(self, origin: Origin) -> "_Connection | None":
        connections = self._idle.get(origin, [])
        while connections:
            connection = connections.pop()
            if connection.idle_since + self._keepalive > trio.current_time() and connection.alive:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: Origin, timeout: float) -> "_Connection":
        scheme, host, port = origin
        tcp: trio.SocketStream | None = None
        try:
            with trio.fail_after(timeout):
                tcp = await trio.open_tcp_stream(host, port)
                if scheme == "http":
                    return _Connection(tcp, tcp)
                stream = trio.SSLStream(
                    tcp, self._tls(), server_hostname=host, https_compatible=True
                )
                await stream.do_handshake()
                return _Connection(tcp, stream)
        except BaseException as exc:
            if tcp is not None:
                tcp.socket.close()
            if isinstance(exc, trio.TooSlowError):
                raise httpx.ConnectTimeout(f"no connection within {timeout:g} s") from exc
            if isinstance(exc, OSError | trio.BrokenResourceError):
                raise httpx.ConnectError(cause_of(exc)) from exc
            raise

    def keep(self, origin: Origin, connection: "_Connection") -> None:
        connection.idle_since = trio.current_time()
        self._idle.setdefault(origin, []).append(connection)

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()


def cause_of(exc: BaseException) -> str:
    """Why the network failed: trio's broken connections say nothing, but what broke them does."""
    while not str(exc) and (inner := exc.__cause__ or exc.__context__):
        exc = inner
    return str(exc) or type(exc).__name__


class _Connection:
    """One connection; one request at a time."""

    def __init__(
        self,
        tcp: trio.SocketStream,
        stream: "trio.SocketStream | trio.SSLStream[trio.SocketStream]",
    ) -> None:
        self._tcp = tcp
        self._stream = stream
        self._plain = stream is tcp
        self._socket = tcp.socket.fileno()
        self._buffer = bytearray()  # received, not consumed
        self._piece = memoryview(bytearray(_READ))
        self._is_asked = False  # a request was sent, and nothing of its answer has come
        self.idle_since = 0.0

    @property
    def alive(self) -> bool:
        """Readable while idle means that the server has closed it, or speaks out of turn."""
        return not self._buffer and not self._tcp.socket.is_readable()

    def close(self) -> None:
        self._tcp.socket.close()

    async def exchange(
        self, request: httpx.Request, timeout: float
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Send the request; the status and headers of its answer."""
        broken: httpx.WriteError | None = None
        try:
            await self._send(request, timeout)
        except httpx.WriteError as exc:
            broken = exc  # a server that refuses a body answers, then closes
        self._is_asked = True
        try:
            while True:
                status, headers = _parse_head(await self._head(timeout))
                if status >= 200:
                    return status, headers
        except httpx.TransportError:
            if broken is not None:
                raise broken from None
            raise

    async def _send(self, request: httpx.Request, timeout: float) -> None:
        target = request.url.raw_path
        lines = [request.method.encode() + b" " + target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in request.headers.raw]
        head = b"\r\n".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1:
            raise httpx.LocalProtocolError("a header or the target has a line break in it")
        pieces = [memoryview(head + b"\r\n\r\n")]
        if isinstance(request.stream, Body):
            pieces += request.stream.views
        else:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            pieces += [memoryview(chunk) async for chunk in request.stream]
        try:
            if self._plain:
                await self._write_plain(pieces, timeout)
            else:
                await self._write_encrypted(pieces, timeout)
        except trio.TooSlowError as exc:
            raise httpx.WriteTimeout(f"nothing sent for {timeout:g} s") from exc
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpx.WriteError(cause_of(exc)) from exc

    async def _write_plain(self, pieces: list[memoryview], timeout: float) -> None:
        while pieces:
            try:
                sent = os.writev(self._socket, pieces[:_MOST_PIECES])
            except BlockingIOError:
                await _within(timeout, trio.lowlevel.wait_writable, self._socket)
                continue
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.pop(0))
            if sent:
                pieces[0] = pieces[0][sent:]

    async def _write_encrypted(self, pieces: list[memoryview], timeout: float) -> None:
        if sum(map(len, pieces)) <= _READ:
            pieces = [memoryview(b"".join(pieces))]  # one record, one packet
        for piece in pieces:
            for start in range(0, len(piece), _READ):
                with trio.fail_after(timeout):
                    await self._stream.send_all(piece[start : start + _READ])

    async def _receive(self, buffer: memoryview, timeout: float) -> int:
        """Some bytes into `buffer`, how many; 0 at the end."""
        try:
            if self._plain:
                return await self._receive_plain(buffer, timeout)
            with trio.fail_after(timeout):
                data = await self._stream.receive_some(len(buffer))
            buffer[: len(data)] = data
            return len(data)
        except trio.TooSlowError as exc:
            raise httpx.ReadTimeout(f"nothing received for {timeout:g} s") from exc
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise httpx.ReadError(cause_of(exc)) from exc

    async def _receive_plain(self, buffer: memoryview, timeout: float) -> int:
        if self._is_asked:  # no answer comes that soon
            self._is_asked = False
            await _within(timeout, trio.lowlevel.wait_readable, self._socket)
        while True:
            try:
                return os.readv(self._socket, [buffer])
            except BlockingIOError:
                await _within(timeout, trio.lowlevel.wait_readable, self._socket)

    async def _more(self, timeout: float) -> None:
        count = await self._receive(self._piece, timeout)
        if count == 0:
            raise httpx.RemoteProtocolError("the server closed the connection in an answer")
        self._buffer += self._piece[:count]

    async def _until(self, end: bytes, timeout: float) -> bytes:
        """Up to and without `end`, which is consumed too."""
        searched = 0
        while (found := self._buffer.find(end, searched)) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise httpx.RemoteProtocolError("an answer's head is too long")
            searched = max(0, len(self._buffer) - len(end))
            await self._more(timeout)
        text = bytes(self._buffer[:found])
        del self._buffer[: found + len(end)]
        return text

    async def _head(self, timeout: float) -> bytes:
        return await self._until(b"\r\n\r\n", timeout)

    async def some(self, most: int, timeout: float) -> bytes:
        """The next bytes, `most` at most; none at the end."""
        if not self._buffer:
            count = await self._receive(self._piece[:most], timeout)
            return bytes(self._piece[:count])
        taken = bytes(self._buffer[:most])
        del self._buffer[: len(taken)]
        return taken

    async def read_to_sink(self, sink: Sink, size: int, timeout: float) -> None:
        """Fill the sink with the `size` bytes of a body, for which it has room."""
        left = size
        while left:
            room = sink.room()[:left]
            if self._buffer:
                count = min(len(room), len(self._buffer))
                room[:count] = self._buffer[:count]
                del self._buffer[:count]
            else:
                count = await self._receive(room, timeout)
            if count == 0:
                raise httpx.RemoteProtocolError(f"{size - left} bytes of a body of {size} bytes")
            sink.filled(count)
            left -= count

    async def chunk_size(self, timeout: float) -> int:
        """Of the next chunk; 0 after the last one, with its trailers read."""
        line = (await self._until(b"\r\n", timeout)).split(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(line):
            raise httpx.RemoteProtocolError("a chunk without a size")
        size = int(line, 16)
        while not size and await self._until(b"\r\n", timeout):
            pass
        return size

    async def end_chunk(self, timeout: float) -> None:
        if await self._until(b"\r\n", timeout):
            raise httpx.RemoteProtocolError("a chunk is longer than it says")


async def _within(timeout: float, wait: Callable[[int], Awaitable[None]], descriptor: int) -> None:
    """Raises TooSlowError. Not by fail_after, whose generators take longer than all else here."""
    with trio.CancelScope(deadline=trio.current_time() + timeout) as scope:
        await wait(descriptor)
    if scope.cancelled_caught:
        raise trio.TooSlowError


def _parse_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    first, *lines = head.split(b"\r\n")
    version, _, rest = first.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or not status.isdigit():
        raise httpx.RemoteProtocolError("not an answer of HTTP/1.1")
    if _DANGEROUS.search(b"".join(lines)):
        raise httpx.RemoteProtocolError("a malformed header")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip()
        if not colon or not name or name != name.strip() or not name.isascii():
            raise httpx.RemoteProtocolError("a malformed header")
        if name.lower() == b"content-length" and not _LENGTH.fullmatch(value):
            raise httpx.RemoteProtocolError("a length that is no number")
        headers.append((name, value))
    return int(status), headers


class _Answer(httpx.AsyncByteStream):
    """The body of an answer, in the pieces in which it comes; with a sink it goes there."""

    def __init__(
        self,
        transport: SocketTransport,
        origin: Origin,
        connection: _Connection,
        method: str,
        status: int,
        headers: list[tuple[bytes, bytes]],
        timeout: float,
        sink: Sink | None,
    ) -> None:
        self._sink = sink
        self._transport = transport
        self._origin = origin
        self._connection = connection
        self._timeout = timeout
        fields = {name.lower(): value for name, value in headers}
        self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        self._length: int | None = None
        if method == "HEAD" or status in (204, 304):
            self._length, self._chunked = 0, False
        elif b"content-length" in fields and not self._chunked:
            self._length = int(fields[b"content-length"])
        self._keeps = b"close" not in fields.get(b"connection", b"").lower()
        self._left = self._length or 0  # of the body, or of a chunk
        self._size = 0
        self._done = self._length == 0
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = b""
        if self._done:
            raise StopAsyncIteration
        if self._sink is not None and self._length is not None:
            await self._connection.read_to_sink(self._sink, self._length, self._timeout)
            self._left = 0
        elif self._chunked:
            piece = await self._of_chunk()
        elif self._length is not None:
            piece = await self._of_rest()
        else:
            piece = await self._connection.some(_READ, self._timeout)
            self._keeps = False
        self._size += len(piece)
        if self._length is None and self._size > _UNKNOWN_LIMIT:
            raise httpx.RemoteProtocolError("an answer is too long")
        self._done = not piece if self._length is None else self._left == 0
        if not piece:
            raise StopAsyncIteration
        return piece

    async def _of_rest(self) -> bytes:
        piece = await self._connection.some(min(self._left, _READ), self._timeout)
        self._left -= len(piece)
        if not piece:
            raise httpx.RemoteProtocolError(f"{self._left} bytes of a body are missing")
        return piece

    async def _of_chunk(self) -> bytes:
        if self._left == 0:
            self._left = await self._connection.chunk_size(self._timeout)
            if self._left == 0:
                return b""
        piece = await self._of_rest()
        if self._left == 0:
            await self._connection.end_chunk(self._timeout)
        return piece

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._done and self._keeps:
            self._transport.keep(self._origin, self._connection)
        else:
            self._connection.close()
