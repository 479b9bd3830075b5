"""What can go wrong between blobfs and the service: a table of faults, and which calls they hit.

A fault is done to the requests of one REST call that a `Plan` chooses, at the relay.
"""

import errno
import re
import threading
from dataclasses import dataclass, field

from tests.relay import Act, Asked, Exchange, Refusal, Reply

LIST, HEAD, GET = "List Blobs", "Get Blob Properties", "Get Blob"
PUT, BLOCK, BLOCK_LIST = "Put Blob", "Put Block", "Put Block List"
METADATA, PROPERTIES = "Set Blob Metadata", "Set Blob Properties"
GET_TAGS, SET_TAGS = "Get Blob Tags", "Set Blob Tags"
COPY, DELETE = "Copy Blob", "Delete Blob"

CALLS = (
    *(LIST, HEAD, GET, PUT, BLOCK, BLOCK_LIST, METADATA, PROPERTIES, GET_TAGS, SET_TAGS, COPY),
    DELETE,
)
"""Every REST call that a mount makes of Azurite. A copy there is never pending, so that Abort Copy
Blob is not among them; the other calls of `blobfs.blobs.operations` are those of `upkeep`."""

WITH_REQUEST_BODY = frozenset({PUT, BLOCK, BLOCK_LIST, SET_TAGS})
CONTENTS = frozenset({PUT, BLOCK})
"""Whose Content-MD5 Azurite looks at; Azure does so for every request with a body."""

DOCUMENTS = frozenset({LIST, GET_TAGS})
WITH_ANSWER_BODY = DOCUMENTS | {GET}
WRITES = frozenset(CALLS) - WITH_ANSWER_BODY - {HEAD}

_PUTS = {
    "block": BLOCK,
    "blocklist": BLOCK_LIST,
    "metadata": METADATA,
    "properties": PROPERTIES,
    "tags": SET_TAGS,
}


def call_of(asked: Asked) -> str:
    """Which REST call it is; one that `CALLS` does not have is named by its method and comp."""
    comp = asked.query.get("comp", [""])[0]
    if asked.method == "GET":
        return {"list": LIST, "tags": GET_TAGS, "": GET}.get(comp, f"GET {comp}")
    if asked.method == "PUT":
        known = COPY if asked.is_copy else PUT
        return known if not comp else _PUTS.get(comp, f"PUT {comp}")
    return {"HEAD": HEAD, "DELETE": DELETE}[asked.method]


@dataclass(frozen=True)
class Fault:
    """`harmless` says that once, nobody may notice it; `errnos` are what an operation may end with
    otherwise. `calls` are those that it can be done to. What `is_stale` was true once: an operation
    may then succeed without what has come since."""

    name: str
    act: Act
    calls: frozenset[str] = frozenset(CALLS)
    harmless: bool = True
    errnos: frozenset[int] = frozenset({errno.EIO})
    is_stale: bool = False


def _refuse(exchange: Exchange) -> None:
    exchange.close(reset=True)


def _delay(exchange: Exchange) -> None:
    exchange.hold(0.3)
    exchange.answer(exchange.forward())


def _stall(exchange: Exchange) -> None:
    exchange.hold()
    exchange.close()


def _stall_applied(exchange: Exchange) -> None:
    exchange.forward()
    exchange.hold()
    exchange.close()


def _cut_request(exchange: Exchange) -> None:
    exchange.forward_half()
    exchange.close(reset=True)


def _corrupt_request(exchange: Exchange) -> None:
    body = bytearray(exchange.body)
    if body:
        body[len(body) // 2] ^= 1
    exchange.answer(exchange.forward(body=bytes(body)))


def lose_answer(exchange: Exchange) -> None:
    exchange.forward()
    exchange.close(reset=True)


def _cut_head(exchange: Exchange) -> None:
    exchange.send(exchange.wire(exchange.forward())[:40])
    exchange.close()


def _cut_body(exchange: Exchange) -> None:
    reply = exchange.forward()
    wire = exchange.wire(reply)
    exchange.send(wire[: len(wire) - (len(reply.body) + 1) // 2])
    exchange.close()


def _status(status: int, code: str, *fields: tuple[str, str]) -> Act:
    return lambda exchange: exchange.refuse(Refusal(status, code, fields))


def _error_applied(exchange: Exchange) -> None:
    exchange.forward()
    exchange.refuse(Refusal(500, "OperationTimedOut"))


def _wrong_length(difference: int) -> Act:
    def act(exchange: Exchange) -> None:
        reply = exchange.forward()
        exchange.send(exchange.wire(reply, max(0, len(reply.body) + difference)))
        exchange.close()

    return act


def _corrupt(exchange: Exchange) -> None:
    reply = exchange.forward()
    body = bytearray(reply.body)
    middle = len(body) // 2
    if reply.body.startswith(b"<") or b"<?xml" in reply.body[:8]:
        middle = body.index(b"<", middle)
    if body:
        body[middle] ^= 1
    exchange.answer(reply._replace(body=bytes(body)))


def _cut_document(exchange: Exchange) -> None:
    reply = exchange.forward()
    exchange.answer(reply._replace(body=reply.body[: len(reply.body) * 2 // 3]))


def _page_of_html(status: int) -> Act:
    def act(exchange: Exchange) -> None:
        body = b"" if exchange.asked.method == "HEAD" else b"<html><body>Log in</body></html>"
        exchange.answer(Reply(status, [("Content-Type", "text/html")], body))

    return act


def _trickle(exchange: Exchange) -> None:
    for byte in exchange.wire(exchange.forward()):
        exchange.send(bytes([byte]))
        if exchange.hold(0.1):
            break
    exchange.close()


def _other_etag(exchange: Exchange) -> None:
    reply = exchange.forward()
    fields = [(k, '"0x8DEAD"' if k.lower() == "etag" else v) for k, v in reply.fields]
    body = reply.body
    if call_of(exchange.asked) == LIST:
        body = re.sub(rb"<Etag>[^<]*", b"<Etag>0x8DEAD", body)
    exchange.answer(Reply(reply.status, fields, body))


def _page_before(exchange: Exchange) -> None:
    """The first page of the listing, whichever was asked for."""
    exchange.answer(exchange.forward(re.sub(r"&marker=[^&]*", "", exchange.path)))


def _stale(exchange: Exchange) -> None:
    """The page as it was before its last blob was stored."""
    reply = exchange.forward()
    start, end = reply.body.rfind(b"<Blob>"), reply.body.rfind(b"</Blob>")
    if start >= 0:
        reply = reply._replace(body=reply.body[:start] + reply.body[end + len(b"</Blob>") :])
    exchange.answer(reply)


_TOKEN = frozenset({errno.EACCES})
# EEXIST of what must be new; ENOENT because the kernel tries a rename again after ESTALE, when it
# may be done but for the mark of its end.
_CONFLICT = frozenset({errno.ESTALE, errno.EEXIST, errno.ENOENT})
_NOT_HEAD = frozenset(CALLS) - {HEAD}

FAULTS = (
    Fault("refused", _refuse),
    Fault("delayed", _delay),
    Fault("stalled", _stall),
    Fault("stalled, applied", _stall_applied),
    Fault("request cut", _cut_request),
    Fault("byte of the request corrupted", _corrupt_request, CONTENTS),
    Fault("applied, answer lost", lose_answer),
    Fault("answer cut in its head", _cut_head),
    Fault("answer cut in its body", _cut_body, WITH_ANSWER_BODY),
    Fault("408", _status(408, "OperationTimedOut")),
    Fault("429", _status(429, "TooManyRequests")),
    Fault("429, Retry-After", _status(429, "TooManyRequests", ("Retry-After", "1"))),
    Fault("500", _status(500, "InternalError")),
    Fault("500, applied", _error_applied),
    Fault("503", _status(503, "ServerBusy")),
    Fault("503, Retry-After", _status(503, "ServerBusy", ("Retry-After", "1"))),
    Fault("412", _status(412, "ConditionNotMet"), harmless=False, errnos=_CONFLICT),
    Fault("403, expired", _status(403, "AuthenticationFailed"), harmless=False, errnos=_TOKEN),
    Fault("length too long", _wrong_length(+7), _NOT_HEAD),
    Fault("length too short", _wrong_length(-7), WITH_ANSWER_BODY),
    Fault("byte corrupted", _corrupt, frozenset({GET}), harmless=False),
    Fault("document corrupted", _corrupt, DOCUMENTS),
    Fault("document cut", _cut_document, DOCUMENTS),
    Fault("first page repeated", _page_before, frozenset({LIST})),
    Fault(
        "stale page",
        _stale,
        frozenset({LIST}),
        harmless=False,
        errnos=frozenset({errno.ENOENT}),
        is_stale=True,
    ),
    Fault("HTML, 200", _page_of_html(200)),
    Fault("HTML, 404", _page_of_html(404)),
    Fault("HTML, 502", _page_of_html(502)),
    Fault("trickle", _trickle),
    Fault(
        "another ETag",
        _other_etag,
        frozenset({LIST, HEAD, GET}),
        harmless=False,
        errnos=frozenset({errno.EIO, errno.ESTALE}),
    ),
)


@dataclass
class Plan:
    """Which requests below `directory` the fault is done to: that of the number `first` and, when
    it `lasts`, all that follow until `over`. A relay's `choose`."""

    directory: str
    call: str
    fault: Fault | None
    first: int = 0
    lasts: bool = False
    hits: int = 0
    seen: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _hidden: set[str] = field(default_factory=set)  # copies that are kept of open files
    _deleted: set[str] = field(default_factory=set)
    _over: bool = False

    def is_about(self, asked: Asked) -> bool:
        prefix = asked.query.get("prefix", [""])[0]
        names = (asked.name, asked.source, prefix)
        if any(name.startswith(self.directory) for name in names):
            if asked.source and not asked.name.startswith(self.directory):
                self._hidden.add(asked.name)
            return True
        return asked.name in self._hidden

    def choose(self, asked: Asked) -> Act | None:
        call = call_of(asked)
        with self._lock:
            number = self.seen.count(call)
            self.seen.append(call)
            if call == DELETE:
                self._deleted.add(asked.name)
            if self.fault is None or self._over or call != self.call:
                return None
            if number != self.first and not (self.lasts and number > self.first):
                return None
            self.hits += 1
        return self.fault.act

    def has_released(self) -> bool:
        """Whether all that is deleted after the last close is being deleted: close does not wait
        for it."""
        return self._hidden <= self._deleted

    def step_ended(self) -> None:
        """What lasts, lasts until the end of the operation that it began in."""
        with self._lock:
            self._over = self._over or self.hits > 0
