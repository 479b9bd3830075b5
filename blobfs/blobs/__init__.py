"""Client of the Azure Blob REST API, authorised by a container SAS: httpx on trio.

    container   one container: what can be asked of it, and whose write it was in doubt
    checksum    the digest that the service compares a body with
    checks      whether an answer, and a blob, is the one that it should be
    client      sends requests: connection limits, timeouts, retries, counting
    messages    one request and its answer, and whether that is one to the other
    transport   connections of our own, for bodies of megabytes
    proxies     the way through a proxy
    trust       whom a request may be sent to: TLS, certificates
    retry       which failures are worth another attempt, and when
    failures    (status, x-ms-error-code) → exception, and what the message says
    operations  the operations used and the SAS permission each needs
    model       what the service says about a blob
    packed      what was said of a blob, as it is kept while nobody works on it
    wire        names, metadata, headers and tags as they go over the wire
    documents   the service's XML documents

The SAS is an opaque query string, asked of a callable for every attempt so that it can be renewed,
and appended byte for byte. It appears in no exception, no repr and no log line.
"""

from blobfs.blobs.client import Client
from blobfs.blobs.container import Container
from blobfs.blobs.model import BlobInfo, ContentHeaders, Page, Version
from blobfs.blobs.operations import UPLOADS, VERBS
from blobfs.blobs.packed import PackedInfo
from blobfs.blobs.proxies import proxy_of
from blobfs.blobs.retry import RetryPolicy
from blobfs.blobs.transport import Sink
from blobfs.blobs.wire import METADATA_LIMIT, Buffer, metadata_size

__all__ = [
    "METADATA_LIMIT",
    "UPLOADS",
    "VERBS",
    "BlobInfo",
    "Buffer",
    "Client",
    "Container",
    "ContentHeaders",
    "PackedInfo",
    "Page",
    "RetryPolicy",
    "Sink",
    "Version",
    "metadata_size",
    "proxy_of",
]
