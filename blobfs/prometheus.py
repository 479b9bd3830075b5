"""A mount's numbers for Prometheus, over HTTP on a loopback address or a Unix socket.

The text is made by Prometheus's own client library, from a registry of this mount's own. It says
nothing of names, tokens or keys, since every local user can ask a loopback address.
"""

import logging
import socket
import stat
from collections.abc import Iterator
from errno import EADDRINUSE
from http import HTTPStatus
from pathlib import Path

import h11
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from blobfs import __version__
from blobfs.address import Address
from blobfs.blobs import VERBS
from blobfs.control import listen_at
from blobfs.errors import OptionError, errno_name
from blobfs.metrics import BOUNDS, Latencies
from blobfs.status import MountStatus, memory

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds for one request and its answer."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format that every Prometheus reads. Others could be asked for, but the library fails on an
Accept header that is malformed."""

_MAX_CLIENTS = 8
_PATHS = (b"/metrics", b"/")


# --- what is told ----------------------------------------------------------------------------


class MountCollector(Collector):
    """Reads a mount's counters when it is asked; nothing is counted twice."""

    def __init__(self, status: MountStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("blobfs", "This mount's software.", {"version": __version__})
        yield from self._requests()
        yield from self._operations()
        yield from self._gauges()

    def _requests(self) -> Iterator[Metric]:
        client = self._status.client
        requests = CounterMetricFamily(
            "blobfs_requests",
            "Requests to the Blob service; status 0: no answer.",
            labels=["operation", "verb", "status"],
        )
        for (name, status), count in client.requests.items():
            requests.add_metric([name, VERBS[name], str(status)], count)
        yield requests
        yield _histogram("blobfs_request_duration_seconds", "Time of each attempt.", client.latency)
        under_way = GaugeMetricFamily(
            "blobfs_requests_in_flight", "Requests under way.", labels=["operation"]
        )
        for name, count in client.under_way.items():
            under_way.add_metric([name], count)
        yield under_way
        for direction, count in (("sent", client.bytes_sent), ("received", client.bytes_received)):
            yield CounterMetricFamily(
                f"blobfs_{direction}_bytes", f"Bodies {direction}, encrypted.", count
            )

    def _operations(self) -> Iterator[Metric]:
        operations = self._status.operations
        yield _histogram(
            "blobfs_operation_duration_seconds", "Time of file operations.", operations.latency
        )
        failures = CounterMetricFamily(
            "blobfs_operation_failures",
            "File operations that failed, other than by ENOENT and ENODATA.",
            labels=["operation", "errno"],
        )
        for (name, code), count in operations.failures.items():
            failures.add_metric([name, errno_name(code)], count)
        yield failures
        yield CounterMetricFamily(
            "blobfs_read_bytes", "Contents read from files.", operations.bytes_read
        )
        yield CounterMetricFamily(
            "blobfs_written_bytes", "Contents written to files.", operations.bytes_written
        )

    def _gauges(self) -> Iterator[Metric]:
        reader, files = self._status.fs.store.reader, self._status.files()
        yield CounterMetricFamily("blobfs_cache_hits", "Blocks read from memory.", reader.hits)
        yield CounterMetricFamily("blobfs_cache_misses", "Blocks waited for.", reader.misses)
        gauges = {
            "blobfs_cache_bytes": ("Decrypted contents in memory.", reader.cached_bytes),
            "blobfs_known_files": ("Inodes that are known.", files["known"]),
            "blobfs_open_files": ("Open handles.", files["open"]),
            "blobfs_unsaved_files": ("Files with contents not stored yet.", files["unsaved"]),
            "blobfs_unsaved_bytes": ("Sizes of these files.", files["unsaved_bytes"]),
            "blobfs_staged_bytes": ("Of these, at the service already.", files["staged_bytes"]),
            "blobfs_buffer_bytes": ("Of these, in memory.", files["memory_bytes"]),
            "blobfs_spool_bytes": ("Of these, in the spool.", files["spool_bytes"]),
            "blobfs_deleting_files": ("Files whose deletion is under way.", files["deleting"]),
            "blobfs_resident_memory_bytes": ("Memory of the daemon.", memory()["resident"]),
            "blobfs_start_time_seconds": ("Time of the mount.", self._status.since.timestamp()),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value)
        expiry = GaugeMetricFamily(
            "blobfs_token_expiry_time_seconds",
            "When the token of each container, in the mount's order, expires.",
            labels=["token"],
        )
        for number, access in enumerate(self._status.accesses()):
            if access.sas.effective_expiry is not None:
                expiry.add_metric([str(number)], access.sas.effective_expiry.timestamp())
        yield expiry


def _histogram(name: str, text: str, latencies: Latencies) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["operation"])
    for kind, histogram in latencies.items():
        bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
        buckets = list(zip(bounds, map(float, histogram.cumulative()), strict=True))
        family.add_metric([kind], buckets, histogram.seconds)
    return family


# --- how -------------------------------------------------------------------------------------


class Endpoint:
    """Listens from the start, so that an address in use is said before anything is mounted."""

    def __init__(self, address: Address) -> None:
        """Raises OptionError."""
        try:
            self._socket = _listen(address)
        except OSError as exc:
            shown = f"unix:{address}" if isinstance(address, Path) else f"{address[0]}:{address[1]}"
            reason = "it is in use" if exc.errno == EADDRINUSE else exc.strerror or str(exc)
            raise OptionError(f"metrics={shown} cannot be used: {reason}") from None
        self._path = address if isinstance(address, Path) else None
        name = self._socket.getsockname()
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        self.url = f"unix:{address}" if self._path else f"http://{host}:{name[1]}/metrics"

    async def serve(self, status: MountStatus) -> None:
        """Answer until cancelled, then close."""
        log.info("metrics at %s", self.url)
        registry = CollectorRegistry()
        registry.register(MountCollector(status))
        limit = trio.CapacityLimiter(_MAX_CLIENTS)

        async def handle(stream: trio.SocketStream) -> None:
            async with stream, limit:
                with trio.move_on_after(TIMEOUT):
                    try:
                        await _answer(stream, registry)
                    except (h11.ProtocolError, trio.BrokenResourceError):
                        return  # not HTTP, or gone
                    except Exception:  # whatever is asked, the mount lives on
                        log.exception("a scrape failed: a bug in blobfs")

        try:
            own = trio.socket.from_stdlib_socket(self._socket)
            await trio.serve_listeners(handle, [trio.SocketListener(own)])
        finally:
            self._socket.close()
            if self._path is not None:
                self._path.unlink(missing_ok=True)


def _listen(address: Address) -> socket.socket:
    if isinstance(address, Path):
        if address.exists() and not stat.S_ISSOCK(address.lstat().st_mode):
            raise FileExistsError(f"{address} is no socket")
        return listen_at(str(address))
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # What a mount before this one left in TIME_WAIT is no reason to refuse.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_MAX_CLIENTS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def _answer(stream: trio.SocketStream, registry: CollectorRegistry) -> None:
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(4096))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            break
        elif isinstance(event, h11.ConnectionClosed):
            return
    assert request is not None
    status, body = HTTPStatus.OK, b""
    if request.target.partition(b"?")[0] not in _PATHS:
        status = HTTPStatus.NOT_FOUND
    elif request.method not in (b"GET", b"HEAD"):
        status = HTTPStatus.METHOD_NOT_ALLOWED
    else:
        body = generate_latest(registry)
    headers = [
        ("Content-Type", CONTENT_TYPE),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    answer = h11.Response(status_code=status, headers=headers, reason=status.phrase)
    pieces = [connection.send(answer)]
    if request.method != b"HEAD":
        pieces.append(connection.send(h11.Data(data=body)))
    pieces.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(piece for piece in pieces if piece))
