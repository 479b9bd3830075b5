"""One request to the service and its answer, and whether that is one to the other; no I/O."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypedDict

from blobfs.blobs.failures import failure
from blobfs.blobs.model import BlobInfo, Version, info_from_headers, parse_date, parse_etag
from blobfs.blobs.operations import Operation
from blobfs.blobs.transport import Sink
from blobfs.errors import ServiceError, TokenRefused, Unavailable
from blobfs.sas import letters_of

Renew = Callable[[str], Awaitable[bool]]
"""Given the token that was refused: whether the request may be sent again; waits for that."""

Feed = Callable[[], Callable[[bytes], object]]

REQUEST_ID = "x-ms-request-id"
NOT_OF_SERVICE = "not an answer of the Blob service"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")


class BrokenAnswer(ValueError):
    """A successful answer is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """`target` is the percent-encoded path and query without the SAS, which `token` gives.

    `renew` is asked when the service refuses that token: see `Container`. `copy_source` is the
    path of the blob to be copied. `longest` is the most bytes that a successful answer's body may
    have; `verify` raises ValueError for one that is not what was asked for, which is then asked
    for again. With a `sink` the range that it lacks is asked for, `verify` is for the answer's
    head, and the body goes into it as it comes; what an attempt leaves out, the next one asks for.
    `feed` is called for each attempt; what it returns is given the body's pieces as they come, and
    raises ValueError as `verify` does.
    """

    operation: Operation
    name: str
    origin: str
    target: str
    token: Callable[[], str]
    renew: Renew | None = None
    copy_source: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Sequence[memoryview] = ()
    longest: int | None = None
    verify: Callable[["Answer"], object] | None = None
    sink: Sink | None = None
    feed: Feed | None = field(default=None, repr=False)

    @property
    def body_size(self) -> int:
        return sum(view.nbytes for view in self.body)

    def describe(self, reason: object) -> str:
        return f"{self.operation.name} of {self.name!r}: {reason}"

    def unavailable(self, reason: object) -> Unavailable:
        return Unavailable(self.describe(reason))


class Particulars(TypedDict, total=False):
    """What only some requests have: see `Request`."""

    copy_source: str
    longest: int
    verify: Callable[["Answer"], object]
    sink: Sink
    feed: Feed


@dataclass(slots=True)
class Answer:
    """What the service answered, be it a success or not.

    `fields` are its headers by lower-case name, one of which may hold a copy's source with its
    token; `metadata` is the blob's with case kept. `poured` is how many bytes of the body went to
    the request's sink or feed. `doubtful` says that an earlier attempt of the same request may
    have been applied.
    """

    request: Request
    status: int
    fields: dict[str, str] = field(repr=False)
    metadata: dict[str, str]
    body: bytes = field(repr=False)
    poured: int = 0
    doubtful: bool = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_of_service(self) -> bool:
        """False for what a proxy, or a hotel's page, answers in its place."""
        return REQUEST_ID in self.fields

    @property
    def is_of_damage(self) -> bool:
        """Whether another body arrived than was sent."""
        return self.status == 400 and self.fields.get("x-ms-error-code") == "Md5Mismatch"

    @property
    def refuses_token(self) -> bool:
        return self.status in (401, 403) and isinstance(self.error(), TokenRefused)

    def check(self) -> Self:
        """Itself when successful; else raises the ServiceError that `failures` has for it."""
        if not self.ok:
            raise self.error()
        return self

    def error(self) -> ServiceError:
        request = self.request
        return failure(
            request.operation,
            request.name,
            self.status,
            self.fields,
            self.body,
            sent=request.headers,
            granted=letters_of(request.token()),
        )

    def broken(self, reason: object) -> Unavailable:
        """The exception for a successful answer that makes no sense."""
        return self.request.unavailable(f"{self.status}, but {reason}")

    def info(self) -> BlobInfo:
        """Raises ValueError when the answer is not about a blob."""
        return info_from_headers(self.request.name, self.fields, self.metadata)

    @property
    def length(self) -> int:
        """Bytes of the body; of one for a sink, which is still to come, as the head says."""
        if self.request.sink is None:
            return len(self.body)
        return int(self.fields.get("content-length") or self._range()[1])

    def _range(self) -> tuple[int, int, int]:
        """The first byte of the answered range, how many, and of how many in all."""
        match = _CONTENT_RANGE.fullmatch(self.fields.get("content-range", ""))
        if match is None:
            raise BrokenAnswer("a range that does not say which")
        first, last, total = map(int, match.groups())
        return first, last + 1 - first, total

    def total_size(self, start: int, stop: int) -> int:
        """The size of the blob of which this range was asked. Raises BrokenAnswer for another."""
        if self.status == 200:
            if start:
                raise BrokenAnswer("the whole blob instead of a range")
            return self.length
        first, count, total = self._range()
        if first != start or not count == self.length == min(stop, total) - start:
            raise BrokenAnswer(f"{count} bytes from {first} on of {total}, {self.length} in all")
        return total

    def version(self) -> Version:
        """Raises ValueError when the answer names no version."""
        etag = parse_etag(self.fields.get("etag", ""))
        if not etag:
            raise BrokenAnswer("no ETag")
        return Version(etag, parse_date(self.fields.get("last-modified", "")))

    def verify(self) -> None:
        """Raises ValueError for what is not the service's, or not as the request says."""
        # So that a success told by something in between is not taken for the service's.
        if not self.is_of_service:
            raise BrokenAnswer(NOT_OF_SERVICE)
        if self.request.verify is not None:
            self.request.verify(self)

    def verify_size(self) -> None:
        """Raises ValueError for a body that was cut short or left unread."""
        request = self.request
        size = len(self.body) + self.poured
        length = self.fields.get("content-length")
        if request.sink is not None:
            length = str(self.length)
        if request.operation.method != "HEAD" and length not in (None, str(size)):
            raise BrokenAnswer(f"{size} bytes of an answer of {length} bytes")
        if request.longest is not None and size > request.longest:
            raise BrokenAnswer(f"{size} bytes where at most {request.longest} were asked for")
