"""Requests to the service: limits, timeouts, retries, counting; no policy about blobs."""

import email.utils
import functools
import itertools
import logging
import random
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import httpx
import trio

from blobfs import __version__
from blobfs.blobs.messages import NOT_OF_SERVICE, REQUEST_ID, Answer, BrokenAnswer, Request
from blobfs.blobs.model import parse_date
from blobfs.blobs.proxies import ThroughProxies
from blobfs.blobs.retry import RETRIED_STATUSES, RetryPolicy, Transient, persist
from blobfs.blobs.transport import Body, Sink, SocketTransport, cause_of
from blobfs.blobs.trust import refusal, tls
from blobfs.errors import BlobfsError, Rejected, Unavailable, Untrusted
from blobfs.metrics import Latencies
from blobfs.room import Room

API_VERSION = "2025-11-05"
"""Newer than every feature used, and the newest that Azurite 3.35 (for Node 20) accepts."""

# Azure closes connections that idle for minutes; 30 s keeps them over the pauses of a file copy.
_KEEPALIVE = 30.0
# Small enough that a stalled upload is noticed, large enough to cost few calls.
_CHUNK = 256 * 1024

# httpcore logs response headers, which may hold the source URL of a copy with its SAS, and httpx
# logs every URL. An explicit level holds whatever the root logger is set to.
for _logger in ("httpx", "httpcore"):
    logging.getLogger(_logger).setLevel(logging.WARNING)


_MOST_RENEWALS = 3
"""Of one request: so that a refusal with another cause than the token's age comes to an end."""


_VERDICTS = frozenset({404, 409, 412, 416})
"""Statuses that say something of a blob when they are the service's."""


class Client:
    """Connections to the service, shared by all containers; an async context manager.

    `connections` is the limit of requests that move contents, and again of all others, so that a
    listing never waits behind reads. `transport` is for tests. Proxies are taken from the
    environment and certificates verified against the system's store.

    `requests` counts what was sent by operation and status (0: no answer), `under_way` what is
    being sent by operation; `latency` is of each attempt, and the bytes are of answered bodies.
    `clock_skew` is how many seconds the service's clock is ahead, to the second, None before the
    first answer.
    """

    def __init__(
        self,
        *,
        connections: int = 16,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self._rng = rng or random.Random()
        self._id, self._numbers = uuid.uuid4(), itertools.count(1)
        self._bulk, self._metadata = Room(connections), Room(connections)
        if transport is not None:
            self._http = transport
        else:
            self._http = SocketTransport(tls, keepalive=_KEEPALIVE)
            if urllib.request.getproxies():
                self._http = ThroughProxies(self._http, 2 * connections, _KEEPALIVE)
        # The slots queue, under the caller's deadline; the pool never has to.
        self._timeouts = httpx.Timeout(self._retry.attempt_timeout, pool=None).as_dict()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.under_way: Counter[str] = Counter()
        self.latency = Latencies()
        self.bytes_sent = 0
        self.bytes_received = 0
        self.clock_skew: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def send(self, request: Request) -> Answer:
        """The service's answer, whatever it is, after retries, and with a renewed token when the
        first was refused.

        Raises Unavailable when there is none, or one that asks to come back (`RETRIED_STATUSES`),
        after the policy's attempts or when the caller's deadline leaves no time for another;
        Untrusted at once, before anything is sent.
        A cancelled request may have been applied.
        """
        used = ""

        async def attempt() -> Answer:
            nonlocal used
            slots = self._bulk if request.operation.bulk else self._metadata
            allowed = self._retry.time_for(request.body_size + (request.longest or 0))
            await trio.lowlevel.checkpoint_if_cancelled()  # the rest may not wait for anything
            async with slots.taken(1):
                used = request.token()
                # not move_on_after: see `fuse`
                with trio.CancelScope(deadline=trio.current_time() + allowed):
                    return await self._attempt(request, used)
            self._count(request, 0)
            reason = f"no answer in {round(allowed, 1):g} s"
            raise Transient(request.unavailable(reason), applied=True)

        async def attempt_the_rest() -> Answer:
            lacked = _lacking(request.sink)
            try:
                return await attempt()
            except Transient as failure:
                lacking = _lacking(request.sink)
                if request.sink is not None and not lacking:
                    raise failure.error from failure.__cause__  # there is nothing to ask for
                failure.progressed = lacking < lacked
                raise

        doubtful = False
        renewals = 0
        while True:
            answer, unsure = await persist(attempt_the_rest, self._retry, self._rng)
            answer.doubtful = doubtful = doubtful or unsure
            renew = request.renew if renewals < _MOST_RENEWALS else None
            if not (renew and answer.refuses_token and await renew(used)):
                return answer
            renewals += 1

    async def _attempt(self, request: Request, token: str) -> Answer:
        name = request.operation.name
        self.under_way[name] += 1
        began = time.perf_counter()
        try:
            answer = await self._exchange(request, token)
        except httpx.LocalProtocolError:
            # Its text quotes the header, which may be a copy's source with its SAS.
            reason = "a header or the address holds what HTTP cannot carry"
            raise Rejected(request.describe(reason)) from None
        except httpx.TransportError as exc:
            self._count(request, 0)
            if reason := refusal(exc):
                raise Untrusted(request.describe(reason)) from exc
            connected = not isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout)
            reason = f"{type(exc).__name__}: {cause_of(exc)}"
            raise Transient(request.unavailable(reason), applied=connected) from exc
        finally:
            self.under_way[name] -= 1
            self.latency[name].observe(time.perf_counter() - began)
        self._count(request, answer.status)
        self.bytes_sent += request.body_size
        self.bytes_received += len(answer.body) + answer.poured
        if answer.status in RETRIED_STATUSES or answer.is_of_damage:
            raise _come_back(answer)
        if answer.status in _VERDICTS and not answer.is_of_service:
            raise Transient(answer.broken(NOT_OF_SERVICE), applied=True)
        if answer.refuses_token:
            with suppress(ValueError):
                self._observe_clock(answer.fields)
        if answer.ok:
            try:
                answer.verify_size()
                if request.sink is None:
                    self._accept(answer)
            except ValueError as exc:
                raise Transient(answer.broken(exc), applied=True) from exc
        return answer

    async def _exchange(self, request: Request, token: str) -> Answer:
        if request.sink is not None:
            request.sink.begin()
        response = await self._http.handle_async_request(self._encode(request, token))
        try:
            fields, metadata = _decode_headers(response.headers.raw)
            answer = Answer(request, response.status_code, fields, metadata, b"")
            longest = request.longest if answer.ok else None
            if longest is not None and int(fields.get("content-length", "0")) > longest:
                pass  # left unread: it is refused
            elif answer.ok and (request.sink is not None or request.feed is not None):
                await self._pour(response, answer)
            else:
                answer.body = await _read(response, longest)
        finally:
            await response.aclose()
        return answer

    async def _pour(self, response: httpx.Response, answer: Answer) -> None:
        """Let the body go where the request says; with a sink the head is verified before."""
        request = answer.request
        try:
            if not answer.is_of_service:
                raise BrokenAnswer(NOT_OF_SERVICE)
            if request.sink is not None:
                started = request.sink.start
                self._accept(answer)
                await request.sink.ready()
                await _fill(request.sink, response)
                answer.poured = request.sink.start - started
            elif request.feed is not None:
                feed = request.feed()
                async with _pieces(response) as pieces:
                    async for piece in pieces:
                        feed(piece)
                        answer.poured += len(piece)
        except ValueError as exc:
            self._count(request, answer.status)
            raise Transient(answer.broken(exc), applied=True) from exc
        except BlobfsError:  # the sink's own
            self._count(request, answer.status)
            raise

    def _encode(self, request: Request, token: str) -> httpx.Request:
        url = _SignedURL(request.origin, request.target, token)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"blobfs/{__version__}",
            "Accept-Encoding": "identity",
            "x-ms-version": API_VERSION,
            "x-ms-client-request-id": f"{self._id}-{next(self._numbers)}",
            **request.headers,
        }
        if request.sink is not None:
            headers["Range"] = f"bytes={request.sink.start}-{request.sink.stop - 1}"
        if request.copy_source:
            # A request authorised by a SAS needs the source's own SAS; Azurite does not ask.
            headers["x-ms-copy-source"] = f"{request.origin}{request.copy_source}?{token}"
        if request.operation.method == "PUT":
            headers["Content-Length"] = str(request.body_size)
        encoded = httpx.Request(
            request.operation.method,
            url,
            headers=[(name.encode("ascii"), _encode_value(v)) for name, v in headers.items()],
            stream=Body(request.body, _CHUNK),
            extensions={"timeout": self._timeouts, "sink": request.sink},
        )
        # The constructor has made a plain URL of it.
        encoded.url = url
        return encoded

    def _count(self, request: Request, status: int) -> None:
        self.requests[request.operation.name, status] += 1

    def _accept(self, answer: Answer) -> None:
        """Raises ValueError for a success that is none."""
        answer.verify()
        self._observe_clock(answer.fields)

    def _observe_clock(self, fields: Mapping[str, str]) -> None:
        date = fields.get("date")
        if date and REQUEST_ID in fields:  # not some proxy's
            self.clock_skew = parse_date(date) / 1e9 - time.time()


class _SignedURL(httpx.URL):
    """A URL whose text ends before the SAS and whose target on the wire has it, byte for byte.

    httpx would normalise the path and quote the query anew, which breaks the signature, and logs
    the text. Its "target" extension is no way out: httpcore applies that to a proxy's CONNECT
    request too, which would hand the SAS to the proxy.
    """

    def __init__(self, origin: str, target: str, token: str) -> None:
        super().__init__(_parsed(origin))
        self._target = f"{target}{'&' if '?' in target else '?'}{token}"

    @property
    def raw_path(self) -> bytes:
        return self._target.encode("ascii")


@functools.lru_cache(maxsize=64)
def _parsed(origin: str) -> httpx.URL:
    return httpx.URL(origin)


def _encode_value(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _decode_headers(
    raw: Sequence[tuple[bytes, bytes]],
) -> tuple[dict[str, str], dict[str, str]]:
    fields: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("ascii")
        value = raw_value.decode("utf-8", "surrogateescape")
        lower = name.lower()
        if lower.startswith("x-ms-meta-"):
            metadata[name[len("x-ms-meta-") :]] = value
        else:
            fields[lower] = value
    return fields, metadata


async def _read(response: httpx.Response, longest: int | None) -> bytes:
    """The body, but no more than one chunk of what there is beyond `longest`."""
    chunks: list[bytes] = []
    size = 0
    async with _pieces(response) as pieces:
        async for piece in pieces:
            if longest is None or size <= longest:
                chunks.append(piece)
                size += len(piece)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _pieces(response: httpx.Response) -> "aclosing[Any]":
    """Not decoded: a Content-Encoding is the blob's own, and its body is ciphertext."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aclosing(aiter(response.stream))


def _lacking(sink: Sink | None) -> int:
    """Bytes that the next attempt has to ask for."""
    if sink is None:
        return 0
    sink.begin()
    return sink.stop - sink.start


async def _fill(sink: Sink, response: httpx.Response) -> None:
    """`SocketTransport` puts the bytes into the sink itself; httpx's own gives them to us."""
    async with _pieces(response) as pieces:
        async for piece in pieces:
            view = memoryview(piece)
            while view:
                room = sink.room()[: len(view)]
                if not room:
                    raise BrokenAnswer("more bytes than were asked for")
                room[:] = view[: len(room)]
                view = view[len(room) :]
                sink.filled(len(room))


def _come_back(answer: Answer) -> Transient:
    error = answer.error()
    assert isinstance(error, Unavailable)
    return Transient(
        error, applied=answer.status not in (400, 429), after=_retry_after(answer.fields)
    )


def _retry_after(fields: Mapping[str, str]) -> float:
    """Seconds, given as such or as a date; 0 when there is no such header or no sense in it."""
    text = fields.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    date = email.utils.parsedate_tz(text)
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0
