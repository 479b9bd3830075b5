"""A proxy on this machine that carries CONNECT, refuses it, and remembers what it has seen."""

import select
import socket
import ssl
import threading
from contextlib import suppress


class Proxy:
    """`heads` is each request, `carried` all bytes that went through, in no order.

    `refusals` are answers instead of connections, one each; with `tls` it is asked over https.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.carried = bytearray()
        self.refusals: list[str] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                self._connections.append(client)
            with client:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (received := client.recv(1)):
                        return
                    head += received
                self.heads.append(head)
                if self.refusals:
                    status = self.refusals.pop(0)
                    client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                method, target, _ = head.split(b" ", 2)
                assert method == b"CONNECT", head
                host, port = target.decode().rsplit(":", 1)
                with socket.create_connection((host, int(port))) as server:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        while True:
            readable = select.select(other, [], [])[0]
            if isinstance(client, ssl.SSLSocket) and client.pending():
                readable.append(client)
            for end in readable:
                if not (data := end.recv(65536)):
                    return
                self.carried += data
                other[end].sendall(data)

    def disconnect(self) -> None:
        """End the connections that there are."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()
