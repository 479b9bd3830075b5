"""Documents of the service, or of whatever sits between."""

import re
from contextlib import suppress

from blobfs.blobs import PackedInfo
from blobfs.blobs.documents import (
    ListingParser,
    parse_error,
    parse_staged_blocks,
    parse_tags,
)
from blobfs.blobs.failures import failure
from blobfs.blobs.operations import GET_BLOB
from blobfs.errors import ServiceError, errno_of
from blobfs.fs.nodes import kind_of_blob
from blobfs.names import is_showable

_STATUSES = (400, 401, 403, 404, 409, 412, 413, 416, 429, 500, 503)
_SIGNATURE = re.compile(r"(?<![a-z])sig(?![a-z])", re.IGNORECASE)


def list_xml(data: bytes) -> None:
    """What a listing names can be kept, shown or passed over; never more than the document had."""
    with suppress(ValueError):
        parser = ListingParser()
        feed = parser.begin()
        for start in range(0, len(data), 50):
            feed(data[start : start + 50])
        page = parser.close()
        assert sum(len(info.name) for info in page.blobs) <= len(data)
        for info in page.blobs:
            assert PackedInfo.of(info).unpacked() == info
            kind_of_blob(info)
        for name in [*(info.name for info in page.blobs), *page.prefixes]:
            assert name
            for segment in name.split("/"):
                is_showable(segment)
    with suppress(ValueError):
        parse_tags(data)
    with suppress(ValueError):
        parse_staged_blocks(data)


def error_xml(data: bytes) -> None:
    """Whatever an answer's body is, there is one exception with an errno for it, whose message is
    one short line without a signature."""
    with suppress(ValueError):
        parse_error(data)
    status = _STATUSES[len(data) % len(_STATUSES)]
    exc = failure(GET_BLOB, "name", status, {}, data, sent={})
    assert isinstance(exc, ServiceError)
    assert errno_of(exc) > 0
    assert _SIGNATURE.search(str(exc)) is None
    assert str(exc).isprintable()
    assert len(str(exc)) < 1000
