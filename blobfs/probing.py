"""What a token may do, asked of the service by requests that cannot change anything.

For tokens whose rights are in a stored access policy. Everything but the listing is about a blob
of a random name, under a condition that no blob fulfils: the service checks the right first, and
then finds that there is no such blob.
"""

import secrets
from collections.abc import Awaitable, Callable

from blobfs.blobs import Container
from blobfs.errors import ConditionFailed, Denied, NotFound, TokenRefused

_NO_ETAG = "0x0"


async def granted(container: Container, prefix: str) -> frozenset[str]:
    """Those of the letters r, l, w, d and t that the token has for what is below `prefix`.

    Raises TokenRefused when it is refused altogether, and every ServiceError but Denied.
    """
    name = f"{prefix}/.blobfs-probe-{secrets.token_hex(8)}".lstrip("/")
    probes: dict[str, Callable[[], Awaitable[object]]] = {
        "l": lambda: container.list(prefix and prefix + "/", max_results=1),
        "r": lambda: container.head(name, if_match=_NO_ETAG),
        "w": lambda: container.set_metadata(name, {}, if_match=_NO_ETAG),
        "d": lambda: container.delete(name, if_match=_NO_ETAG),
        "t": lambda: container.get_tags(name),
    }
    letters = set()
    for letter, probe in probes.items():
        try:
            await probe()
        except TokenRefused:
            raise
        except Denied:
            continue
        except (NotFound, ConditionFailed):
            pass
        letters.add(letter)
    return frozenset(letters)
