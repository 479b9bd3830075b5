"""A mount may run for years: whatever was done on it leaves no object behind."""

import gc
from collections import Counter
from pathlib import Path

import pytest

from blobfs.errors import BlobfsError
from tests.azurite import Azurite
from tests.bare_host import Host, Service
from tests.torture.cancellation import OPERATIONS, prepare

CACHED = {
    "blobfs.envelope.data.Layout",  # the last 256
    "blobfs.envelope.data.WrappedKey",  # the last 4,096
}


def objects() -> Counter[str]:
    """Of our own types: each of others', a lock or an event say, hangs on one of these."""
    gc.collect()
    types = (type(found) for found in gc.get_objects())
    counted = Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in types
        if str(kind.__module__).partition(".")[0] == "blobfs"
    )
    return Counter({name: count for name, count in counted.items() if name not in CACHED})


async def everything(host: Host) -> None:
    for operation in OPERATIONS.values():
        await prepare(host)
        await operation(host)
    with pytest.raises(BlobfsError):
        await host.read("not-there")
    handle = await host.create("kept", b"by a recovery file")
    with host.faults.unreachable(), pytest.raises(BlobfsError):
        await host.close(handle)
    await host.fs.store.save_overdue(0)
    for node in host.fs.inodes:
        host.fs.inodes.forget(node.ino, node.lookups)


async def test_whatever_was_done_leaves_no_object_behind(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    async with Service(azurite, container, tmp_path).host(cache_size=1) as host:
        await everything(host)  # what is made once is made
        before = objects()
        for _ in range(2):
            await everything(host)
        assert objects() - before == Counter()
