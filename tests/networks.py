"""A host's own network: a namespace in which the service is where it is here, until it is cut off.

    with network(azurite.port) as net, mounted(…, prefix=net.prefix) as m:
        net.cut()

The service listens on this machine's loopback. In the namespace its port is a socket of that
namespace, which we hold, and whatever connects to it is carried to the service by us.
"""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakSet

# One process for all: to start another closes a copy of each of our files, and so stores them.
_HOLD = """
PATH=$PATH:/usr/sbin
while read -r state; do ip link set lo $state && echo $state; done
"""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Network:
    """`prefix` are the words before a command that is to run there."""

    def __init__(self, port: int) -> None:
        self._port = port
        # fmt: off
        self._holder = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL", "unshare", "--net",
                "sh", "-c", _HOLD,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )
        # fmt: on
        try:
            self._set_loopback("up")
            self.prefix = ("nsenter", "-t", str(self._holder.pid), "-n")
            self._listener = self._listen()
        except BaseException:
            self._end_holder()
            raise
        self._connections: WeakSet[socket.socket] = WeakSet()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing gets through any more, in connections that are open, either."""
        self._set_loopback("down")

    def restore(self) -> None:
        self._set_loopback("up")

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._end_holder()

    def _end_holder(self) -> None:
        self._holder.kill()
        self._holder.communicate()

    def _set_loopback(self, state: str) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(f"{state}\n")
        self._holder.stdin.flush()
        assert self._holder.stdout.readline() == f"{state}\n", "no network namespace"

    def _listen(self) -> socket.socket:
        """A socket belongs to the namespace of the thread that makes it."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                namespace = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                finally:
                    os.close(namespace)
                made.append(socket.create_server(("127.0.0.1", self._port), backlog=256))
            except OSError as exc:
                made.append(exc)

        thread = threading.Thread(target=make)  # it ends there, and so needs no way back
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, OSError):
            raise result
        return result

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                inside, _ = self._listener.accept()
                outside = socket.create_connection(("127.0.0.1", self._port))
                for end in (inside, outside):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.update((inside, outside))
                for ends in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_carry, args=ends, daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()


@contextmanager
def network(port: int) -> Iterator[Network]:
    """One for a service that listens on 127.0.0.1 here. Needs root."""
    made = Network(port)
    try:
        yield made
    finally:
        made.close()
