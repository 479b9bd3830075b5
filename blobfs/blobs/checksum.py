"""The digest by which the service checks a body before it keeps it.

TLS covers each hop, but not what happens in a proxy, in a gateway or in memory between them, and
plain http nothing. Without this a byte that changed on its way would be noticed when the file is
read, after close has said that it is stored.
"""

import base64
import hashlib
from collections.abc import Sequence

import trio

_INLINE = 128 * 1024
"""Bytes that are digested at once: 0.2 ms, what handing them to a thread would cost."""


async def content_md5(body: Sequence[memoryview]) -> dict[str, str]:
    """The header Content-MD5 for a body that does not change meanwhile; none without a body.

    MD5, since that or a CRC64 of Azure's own is what the service can check, and it is in the
    standard library. Cancelled, it leaves a thread that only reads."""
    size = sum(view.nbytes for view in body)
    if not size:
        return {}
    if size <= _INLINE:
        return {"Content-MD5": _digest(body)}
    digest = await trio.to_thread.run_sync(_digest, body, abandon_on_cancel=True)
    return {"Content-MD5": digest}


def _digest(body: Sequence[memoryview]) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    for view in body:
        md5.update(view)
    return base64.b64encode(md5.digest()).decode("ascii")
