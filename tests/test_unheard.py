"""What the service did although its answer never came: the mount fails the call and does not go on
showing what was before.

As in `test_adversarial`, without a kernel, but for the last.
"""

import math
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from blobfs.attributes import Kind
from blobfs.errors import BlobfsError
from blobfs.fs import Changes
from tests.azurite import Azurite
from tests.bare_host import CALLER, Host, Service, Wanted, operation
from tests.faults import lose_answer
from tests.mounts import PLAINTEXT_MARKER, mounted
from tests.relay import Relay

Call = Callable[[Host], Awaitable[None]]


async def prepare(host: Host) -> None:
    for name in ("dir", "dir/below", "empty"):
        await host.mkdir(name)
    for name in ("file", "other", "dir/inside"):
        await host.write(name, name.encode())


async def symlink(host: Host) -> None:
    await host.fs.names.symlink(host.fs.inodes.root, "new", b"target", CALLER)


async def mkfifo(host: Host) -> None:
    await host.fs.names.make_empty(host.fs.inodes.root, "new", Kind.FIFO, 0o644, CALLER)


async def chmod(host: Host) -> None:
    node = await host.node("file")
    await host.fs.metadata.set(node, Changes(mode=0o600), by_handle=False)
    await host.fs.metadata.save(node)


async def truncate(host: Host) -> None:
    await host.fs.metadata.set(await host.node("file"), Changes(size=2), by_handle=False)


async def set_header(host: Host) -> None:
    node = await host.node("file")
    await host.fs.metadata.set_xattr(node, b"user.azure.content_type", b"text/x-new")


CALLS: dict[str, Call] = {
    "mkdir": lambda host: host.mkdir("new"),
    "mkfifo": mkfifo,
    "symlink": symlink,
    "write": lambda host: host.write("new", b"new"),
    "overwrite": lambda host: host.overwrite("file", b"new"),
    "chmod": chmod,
    "truncate": truncate,
    "set a header": set_header,
    "unlink": lambda host: host.unlink("file"),
    "rmdir": lambda host: host.rmdir("empty"),
    "rename": lambda host: host.rename("file", "new"),
    "rename over": lambda host: host.rename("other", "file"),
    "rename into": lambda host: host.rename("file", "dir/file"),
    "rename a directory": lambda host: host.rename("dir", "new"),
    "rename a directory over": lambda host: host.rename("dir", "empty"),
}

LOST: dict[str, Wanted] = {
    "puts": operation("PUT", comp=""),
    "attributes": operation("PUT", comp="metadata"),
    "headers": operation("PUT", comp="properties"),
    "deletions": operation("DELETE"),
    "a copy": operation("PUT", "/inside"),
    "a deletion": operation("DELETE", "/inside"),
    "everything": lambda request: True,
}

DIRECTORY_MOVE = ("puts", "a copy", "deletions", "a deletion", "attributes")
MET = {
    **dict.fromkeys(("mkdir", "mkfifo", "symlink", "write", "overwrite", "truncate"), ("puts",)),
    "chmod": ("attributes",),
    "set a header": ("headers",),
    **dict.fromkeys(("unlink", "rmdir"), ("deletions",)),
    **dict.fromkeys(("rename", "rename over", "rename into"), ("puts", "deletions")),
    **dict.fromkeys(("rename a directory", "rename a directory over"), DIRECTORY_MOVE),
}
"""The kinds of requests that a call makes."""


async def everything(host: Host, directory: str = "") -> dict[str, object]:
    """Of each name below the directory: what a user sees of it."""
    seen: dict[str, object] = {}
    for name in await host.entries(directory):
        path = f"{directory}/{name}" if directory else name
        node = await host.node(path)
        content = await host.read(path) if node.kind is Kind.FILE else b""
        content_type = "" if node.info is None else node.info.headers.content_type
        content_type = content_type or "application/octet-stream"  # the service's own
        seen[path] = node.kind, oct(node.attrs.mode), content_type, content
        if node.is_directory:
            seen |= await everything(host, path)
    return seen


@pytest.mark.parametrize(
    ("call", "lost"), [(call, lost) for call in CALLS for lost in (*MET[call], "everything")]
)
async def test_what_was_done_unheard_is_shown(service: Service, call: str, lost: str) -> None:
    async with service.host(ttl=3600, timeout=2) as ours:
        await prepare(ours)
        await everything(ours)  # it is all known now
        failure = "none"
        with ours.faults.unheard(LOST[lost]):
            try:
                await CALLS[call](ours)
            except BlobfsError as exc:
                failure = repr(exc)
        await ours.store.save_overdue(-math.inf)  # what may be kept back for a while, too
        shown = await everything(ours)
        async with service.host() as others:
            stored = await everything(others)
        assert shown == stored, f"the call's failure: {failure}"


@pytest.mark.mount
@pytest.mark.parametrize("call", ["unlink", "rmdir", "rename", "rename a directory", "chmod"])
def test_the_kernel_does_not_go_on_with_what_was_before_either(
    azurite: Azurite, container: str, tmp_path: Path, call: str
) -> None:
    """Each name is looked at before, and known for `metadata_ttl`."""
    relay = Relay(azurite)
    with mounted(relay.service, container, tmp_path, "metadata_ttl=1h", "timeout=2s") as mount:
        file, directory, new = mount.path / "file", mount.path / "dir", mount.path / "new"
        file.write_bytes(PLAINTEXT_MARKER)
        directory.mkdir()
        mount.remount("metadata_ttl=1h", "timeout=2s")  # what has just been written may wait
        assert file.stat().st_mode & 0o777 == 0o644
        assert directory.is_dir()
        mount.expect_log(f"ERROR .*{'dir' if 'dir' in call else 'file'}")
        relay.choose = lambda asked: lose_answer if asked.method in ("PUT", "DELETE") else None
        with pytest.raises(OSError, match="Input/output error"):
            {
                "unlink": file.unlink,
                "rmdir": directory.rmdir,
                "rename": lambda: file.rename(new),
                "rename a directory": lambda: directory.rename(new),
                "chmod": lambda: file.chmod(0o600),
            }[call]()
        relay.choose = lambda asked: None
        seen = sorted(path.name for path in mount.path.iterdir())
        assert seen == sorted(path.name for path in (file, directory, new) if path.exists())
        assert seen == sorted(azurite.sdk(container).list_blob_names())
        if call == "chmod":
            assert file.stat().st_mode & 0o777 == 0o600
    relay.close()
