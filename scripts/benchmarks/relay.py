"""An HTTP relay that holds every request for a while, as the distance to a real account does.

    python -m scripts.benchmarks.relay UPSTREAM_PORT DELAY_S

It prints its port, and for each line on standard input one line with what it has passed on so far:
requests, bytes up, bytes down. It ends when standard input does.
"""

import re
import sys

import trio

CHUNK = 256 * 1024
HEAD_LIMIT = 64 * 1024

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
# Azurite asks itself, through us, for the source of each copy, which Azure does not.
_AZURITE = re.compile(rb"\r\nuser-agent:[ \t]*axios/", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


class Relay:
    def __init__(self, upstream_port: int, delay: float) -> None:
        self._upstream_port = upstream_port
        self._delay = delay
        self.requests = self.bytes_up = self.bytes_down = 0

    async def serve(self, client: trio.SocketStream) -> None:
        """One client's connection, each way until one side ends it."""
        async with client, await trio.open_tcp_stream("127.0.0.1", self._upstream_port) as service:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_down, service, client, nursery.cancel_scope)
                    await self._pass_up(client, service)
                    nursery.cancel_scope.cancel()
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the end of a connection, whoever ended it and in whatever way

    async def _pass_down(
        self, service: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        while data := await service.receive_some(CHUNK):
            self.bytes_down += len(data)
            await client.send_all(data)
        scope.cancel()

    async def _pass_up(self, client: trio.SocketStream, service: trio.SocketStream) -> None:
        pending = b""
        while True:
            while (end := pending.find(b"\r\n\r\n")) < 0:
                data = await client.receive_some(CHUNK)
                if not data:
                    return
                pending += data
                if len(pending) > HEAD_LIMIT and b"\r\n\r\n" not in pending:
                    raise ValueError("a request's head has no end")
            end += 4
            left = self._body_length(pending[:end])
            if not _AZURITE.search(pending[:end]):
                self.requests += 1
                await trio.sleep(self._delay)
            chunk, pending = pending[: end + left], pending[end + left :]
            left -= len(chunk) - end
            while True:
                self.bytes_up += len(chunk)
                await service.send_all(chunk)
                if not left:
                    break
                chunk = await client.receive_some(min(CHUNK, left))
                if not chunk:
                    return
                left -= len(chunk)

    def _body_length(self, head: bytes) -> int:
        if _CHUNKED.search(head):
            raise ValueError("a chunked request: Blob Storage wants to know the length")
        found = _LENGTH.search(head)
        return int(found[1]) if found else 0


async def main(upstream_port: int, delay: float) -> None:
    relay = Relay(upstream_port, delay)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, relay.serve, [listener])
        questions = trio.lowlevel.FdStream(0)
        while asked := await questions.receive_some():
            for _ in range(asked.count(b"\n")):
                print(relay.requests, relay.bytes_up, relay.bytes_down, flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), float(sys.argv[2]))
