"""The Unix socket of a mount, over which its owner asks for its status and changes its log level.

It lies in `/run/blobfs` (root), else in `$XDG_RUNTIME_DIR/blobfs`, `/run/user/UID/blobfs` or
`/tmp/blobfs-UID`, and is named by the mount's device number, which /proc/self/mountinfo tells
without touching the mount: so it is found from a bind mount too, and a later mount of the same path
has another. The directory and the socket are the owner's alone, and who connects is asked for again
by the kernel's word (SO_PEERCRED).

A request is one line of JSON, `{"do": …}`; so is the answer, which has `error` when it failed.
"""

import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from blobfs.errors import NoStatus, NotMounted
from blobfs.mountinfo import FSTYPE, Mounted, blobfs_at

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds for one request and its answer."""

_MAX_REQUEST = 4096
_MAX_ANSWER = 4 * 1024 * 1024
_MAX_CLIENTS = 8
_OWNERS = "its status is for the user who mounted it alone: ask as that user, or as root"

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def _directories(uid: int) -> list[Path]:
    """Where sockets of this user's mounts may be, the best place first."""
    if uid == 0:
        return [Path("/run/blobfs")]
    parents = [Path(f"/run/user/{uid}")]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == os.geteuid() and runtime.startswith("/"):
        parents.insert(0, Path(runtime))
    return [*(parent / "blobfs" for parent in parents), Path(f"/tmp/blobfs-{uid}")]


@contextmanager
def _opened(directory: Path, uid: int) -> Iterator[str]:
    """A short path of the directory, since a socket's has 108 bytes at most.

    Raises OSError, also for a directory that others could have made or put something in.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != uid or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{directory} is not this user's alone")
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _name(device: int) -> str:
    return f"{os.major(device)}-{os.minor(device)}.sock"


# --- server ----------------------------------------------------------------------------------


async def serve(
    device: int,
    answer: Answer,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled; then the socket goes. It has started when the socket is
    there. Without a place for one there is no status, which the log says: the mount goes on."""
    for directory in _directories(os.geteuid()):
        path = directory / _name(device)
        try:
            listener = _listen(directory, path.name)
            inode = path.stat().st_ino
        except OSError as exc:
            problem = f"{directory}: {exc.strerror or exc}"
            continue
        log.debug("status at %s", path)
        task_status.started()
        try:
            await _accept(listener, answer)
        finally:
            with suppress(OSError):
                if path.stat().st_ino == inode:  # a later mount may have the same device number
                    path.unlink()
                directory.rmdir()  # when it was the last mount's
        return
    log.info("blobfs status will not find this mount: %s", problem)
    task_status.started()


def _listen(directory: Path, name: str) -> socket.socket:
    """A listening socket under this name, in place of what a daemon that was killed left there."""
    for _ in range(3):  # another mount that ends takes an empty directory away
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        with suppress(FileNotFoundError), _opened(directory, os.geteuid()) as path:
            _sweep(path)
            return listen_at(f"{path}/{name}")
    raise FileNotFoundError(f"{directory} cannot be kept")


def listen_at(path: str) -> socket.socket:
    """A socket for this user alone. It takes its name once it listens, so nobody who finds it is
    refused, and in one step takes the place of what is there. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}.new"
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)  # the daemon's umask keeps others out until it is chmodded
        os.chmod(temporary, 0o600)
        listener.listen(_MAX_CLIENTS)
        listener.setblocking(False)
        os.rename(temporary, path)
    except BaseException:
        listener.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return listener


def _sweep(directory: str) -> None:
    """Remove the sockets of daemons that are gone."""
    for entry in os.scandir(directory):
        if not entry.name.endswith(".sock"):
            continue
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.settimeout(0)
            try:
                probe.connect(entry.path)
            except ConnectionRefusedError:
                os.unlink(entry.path)


async def _accept(listener: socket.socket, answer: Answer) -> None:
    limit = trio.CapacityLimiter(_MAX_CLIENTS)

    async def handle(stream: trio.SocketStream) -> None:
        async with stream, limit:
            with trio.move_on_after(TIMEOUT), suppress(trio.BrokenResourceError):
                line = await _line(stream)
                may_ask = _peer(stream.socket) in (0, os.geteuid())
                reply = reply_to(line, answer) if may_ask else json.dumps({"error": _OWNERS})
                await stream.send_all(reply.encode() + b"\n")

    own = trio.socket.from_stdlib_socket(listener)
    await trio.serve_listeners(handle, [trio.SocketListener(own)])


async def _line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while b"\n" not in line and len(line) < _MAX_REQUEST:
        piece = await stream.receive_some(_MAX_REQUEST)
        if not piece:
            break
        line += piece
    return bytes(line)


def reply_to(line: bytes, answer: Answer) -> str:
    """The line that is answered to whatever line was sent."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as exc:
        return json.dumps({"error": f"not a request: {exc}"})
    try:
        return json.dumps(answer(request if isinstance(request, dict) else {}))
    except Exception:  # the mount outlives a bug here
        log.exception("a bug in blobfs")
        return json.dumps({"error": "a bug in blobfs: the log of the mount has it"})


def _peer(connection: Any) -> int:
    """The uid at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


# --- client ----------------------------------------------------------------------------------


def find(mountpoint: Path) -> Mounted:
    """The mount of blobfs on this path. Raises NotMounted."""
    mount = blobfs_at(mountpoint)
    if mount is None:
        raise NotMounted(f"{mountpoint} is no mount of blobfs: see findmnt -t {FSTYPE}")
    return mount


def ask(mount: Mounted, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the daemon behind `mount`. Raises NoStatus."""
    refused = False
    for directory in _directories(mount.user):
        try:
            with _opened(directory, mount.user) as path:
                return _exchange(f"{path}/{_name(mount.device)}", request)
        except FileNotFoundError:
            continue
        except PermissionError:
            refused = True
        except (OSError, ValueError) as exc:
            raise NoStatus(
                f"the daemon of {mount.path} does not answer ({exc}): see its log, or whether it "
                "still runs"
            ) from None
    if refused:
        raise NoStatus(f"{mount.path}: {_OWNERS}")
    raise NoStatus(f"the mount {mount.path} has no status socket: its log says why")


def _exchange(path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(path)
        connection.sendall(json.dumps(request).encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        while piece := connection.recv(65536):
            received += piece
            if len(received) > _MAX_ANSWER:
                raise ValueError("an answer without an end")
    return parse_answer(received)


def parse_answer(line: bytes | bytearray) -> dict[str, Any]:
    """Raises ValueError for what no daemon answers."""
    try:
        reply = json.loads(line)
    except RecursionError:
        reply = None
    if not isinstance(reply, dict):
        raise ValueError("no answer of blobfs")
    return reply
