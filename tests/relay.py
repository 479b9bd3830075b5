"""An HTTP relay in front of Azurite that fails, holds or answers the requests a test chooses."""

import copy
import functools
import http.client
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakSet

from tests.azurite import Azurite

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>chosen by the test</Message></Error>"
_FROM_SERVICE = [("x-ms-version", "2021-12-02"), ("x-ms-request-id", "of-the-relay")]
_XML = [*_FROM_SERVICE, ("Content-Type", "application/xml")]
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a RST, now


class Asked(NamedTuple):
    """A request as the relay sees it; `name` is the blob's, `source` that of what it copies."""

    method: str
    name: str
    is_copy: bool
    query: dict[str, list[str]]
    source: str = ""


class Refusal(NamedTuple):
    """An error of the service; `fields` are headers beside those that it has anyway."""

    status: int
    code: str
    fields: tuple[tuple[str, str], ...] = ()


class Reply(NamedTuple):
    """An answer, its `fields` without a Content-Length unless it is one to HEAD."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""


class Exchange:
    """One request at the relay, to be passed on or not, and answered or not."""

    def __init__(self, handler: BaseHTTPRequestHandler, relay: "Relay") -> None:
        self._handler = handler
        self._relay = relay
        url = urlsplit(handler.path)
        source = handler.headers.get("x-ms-copy-source", "")
        self.asked = Asked(
            handler.command,
            relay.name_in(url.path),
            bool(source),
            parse_qs(url.query),
            relay.name_in(urlsplit(source).path),
        )

    @functools.cached_property
    def body(self) -> bytes:
        return self._handler.rfile.read(int(self._handler.headers.get("Content-Length", 0)))

    @property
    def path(self) -> str:
        """The request's target, with its SAS."""
        return self._handler.path

    def forward(self, path: str = "", body: bytes | None = None) -> Reply:
        """What the service answers, which has applied the request then; also to another path or
        body of the same length."""
        handler = self._handler
        connection = http.client.HTTPConnection("127.0.0.1", self._relay.port, timeout=60)
        try:
            connection.putrequest(
                handler.command,
                self._relay.rewrite(path or handler.path),
                skip_host=True,
                skip_accept_encoding=True,
            )
            for field, value in handler.headers.items():
                connection.putheader(field, value)
            connection.endheaders(self.body if body is None else body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        hop = {"transfer-encoding", "connection", "keep-alive"}
        if handler.command != "HEAD":
            hop.add("content-length")
        fields = [(k, v) for k, v in response.getheaders() if k.lower() not in hop]
        return Reply(response.status, fields, data)

    def forward_half(self) -> None:
        """The service gets half of the request, and then the end of the connection."""
        handler = self._handler
        lines = [f"{handler.command} {handler.path} HTTP/1.1"]
        lines += [f"{field}: {value}" for field, value in handler.headers.items()]
        head = "\r\n".join(lines).encode("latin-1")
        cut = len(head) + 4 + len(self.body) // 2 if self.body else len(head) // 2
        with socket.create_connection(("127.0.0.1", self._relay.port)) as service:
            service.sendall((head + b"\r\n\r\n" + self.body)[:cut])

    def wire(self, reply: Reply, length: int | None = None) -> bytes:
        """The answer's bytes, which say that its body has `length`."""
        lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, '')}"]
        lines += [f"{field}: {value}" for field, value in reply.fields]
        if self.asked.method != "HEAD":
            lines.append(f"Content-Length: {len(reply.body) if length is None else length}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + reply.body

    def send(self, data: bytes) -> None:
        _ = self.body  # what was not read would be taken for the next request
        self._handler.wfile.write(data)

    def answer(self, reply: Reply) -> None:
        self.send(self.wire(reply))

    def refuse(self, refusal: Refusal) -> None:
        head = self.asked.method == "HEAD"
        fields = [*_XML, ("x-ms-error-code", refusal.code), *refusal.fields]
        body = b"" if head else _ERROR.format(refusal.code).encode()
        self.answer(Reply(refusal.status, fields, body))

    def hold(self, seconds: float | None = None) -> bool:
        """Wait until the client gives up (True), or so long."""
        _ = self.body
        return bool(select.select([self._handler.connection], [], [], seconds)[0])

    def close(self, *, reset: bool = False) -> None:
        """No further request on this connection, which ends here."""
        self._handler.close_connection = True
        connection = self._handler.connection
        with suppress(OSError):
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            else:
                connection.shutdown(socket.SHUT_RDWR)


Act = Callable[[Exchange], None]
"""Does all that is done about a request."""

Choose = Callable[[Asked], Refusal | bytes | Act | None]
"""What is answered instead of the service: a failure, or a document; or what is done."""


class Relay:
    """`service` is the Azurite given, at the other end of this relay.

    With `tls` it speaks https, as that says to each who connects, and is called localhost.
    """

    def __init__(self, azurite: Azurite, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self._connections: WeakSet[socket.socket] = WeakSet()
        self.choose: Choose = lambda asked: None
        self.rewrite: Callable[[str], str] = lambda path: path
        self.port = azurite.port
        self._account = azurite.account
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                exchange = Exchange(self, relay)
                chosen = relay.choose(exchange.asked)
                if chosen is None:
                    exchange.answer(exchange.forward())
                elif isinstance(chosen, bytes):
                    exchange.answer(Reply(200, _XML, chosen))
                elif isinstance(chosen, Refusal):
                    exchange.refuse(chosen)
                else:
                    chosen(exchange)

            do_GET = do_HEAD = do_PUT = do_DELETE = _relay

            def log_message(self, format: str, *args: object) -> None:
                """Request lines hold the SAS."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                if relay.tls is not None:
                    connection = relay.tls.wrap_socket(connection, server_side=True)
                relay._connections.add(connection)
                return connection, address

            def handle_error(self, request: object, client_address: object) -> None:
                """A daemon that was killed leaves its connections half way."""

            def shutdown_request(
                self, request: socket.socket | tuple[bytes, socket.socket]
            ) -> None:
                assert isinstance(request, socket.socket)
                self.close_request(request)  # no FIN in front of a RST

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.service = copy.copy(azurite)
        port = self._server.server_address[1]
        self.service.endpoint = azurite.endpoint.replace(f":{azurite.port}/", f":{port}/")
        if tls is not None:
            self.service.endpoint = f"https://localhost:{port}/{azurite.account}"

    def disconnect(self) -> None:
        """End the connections that there are."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def name_in(self, path: str) -> str:
        """The name of the blob that a URL's path addresses."""
        return unquote(path).removeprefix(f"/{self._account}/").partition("/")[2]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
