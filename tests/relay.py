"""An HTTP relay in front of Azurite that fails, holds or answers the requests a test chooses."""

import copy
import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.azurite import Azurite

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>chosen by the test</Message></Error>"


class Asked(NamedTuple):
    """A request as the relay sees it; `name` is the blob's."""

    method: str
    name: str
    is_copy: bool
    query: dict[str, list[str]]


class Refusal(NamedTuple):
    status: int
    code: str


Choose = Callable[[Asked], Refusal | bytes | None]
"""What is answered instead of the service: a failure, or a document."""


class Relay:
    """`service` is the Azurite given, at the other end of this relay."""

    def __init__(self, azurite: Azurite) -> None:
        self.choose: Choose = lambda asked: None
        self.rewrite: Callable[[str], str] = lambda path: path
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                url = urlsplit(self.path)
                path = unquote(url.path)
                name = path.removeprefix(f"/{azurite.account}/").partition("/")[2]
                is_copy = "x-ms-copy-source" in self.headers
                asked = Asked(self.command, name, is_copy, parse_qs(url.query))
                refusal = relay.choose(asked)
                if refusal is None:
                    self._pass_on(body)
                elif isinstance(refusal, bytes):
                    fields = [("Content-Type", "application/xml"), ("x-ms-version", "2021-12-02")]
                    self._answer(200, [*fields, ("x-ms-request-id", "of-the-relay")], refusal)
                else:
                    self._answer(
                        refusal.status,
                        [("x-ms-error-code", refusal.code), ("Content-Type", "application/xml")],
                        b"" if self.command == "HEAD" else _ERROR.format(refusal.code).encode(),
                    )

            def _pass_on(self, body: bytes) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", azurite.port, timeout=60)
                try:
                    connection.putrequest(
                        self.command,
                        relay.rewrite(self.path),
                        skip_host=True,
                        skip_accept_encoding=True,
                    )
                    for field, value in self.headers.items():
                        connection.putheader(field, value)
                    connection.endheaders(body)
                    response = connection.getresponse()
                    data = response.read()
                finally:
                    connection.close()
                hop = {"transfer-encoding", "connection", "keep-alive"}
                if self.command != "HEAD":
                    hop.add("content-length")
                fields = [(k, v) for k, v in response.getheaders() if k.lower() not in hop]
                self._answer(response.status, fields, data)

            def _answer(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for field, value in fields:
                    self.send_header(field, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_DELETE = _relay

            def log_message(self, format: str, *args: object) -> None:
                """Request lines hold the SAS."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                """A daemon that was killed leaves its connections half way."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.service = copy.copy(azurite)
        port = self._server.server_address[1]
        self.service.endpoint = azurite.endpoint.replace(f":{azurite.port}/", f":{port}/")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
