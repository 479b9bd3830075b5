"""Waiting for the daemon of a mount to end: the kernel does not, when it unmounts.

A daemon holds a socket whose address, in Linux's abstract namespace, is the device number of its
mount. A connection to it breaks when the process ends, however it ends. There is nothing to
accept, nothing on disk to clean up, and nothing to reach but the fact that the daemon runs.
"""

import os
import select
import socket
import struct
from contextlib import suppress

from blobfs.mountinfo import Mounted

_CONNECT_TIME = 2.0


def hold(device: int) -> None:
    """Have this process waited for as the daemon of `device`, until it ends. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_address(device))
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    listener.detach()  # the kernel closes it, after the last thing that this process does


def connect(mounted: Mounted) -> socket.socket | None:
    """A connection that breaks when the daemon ends; None when no daemon of the mount's owner can
    be reached, as it is gone or runs in another network namespace."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(_CONNECT_TIME)
    with suppress(OSError):
        channel.connect(_address(mounted.device))
        credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("iii", credentials)[1] in (0, mounted.user):
            return channel
    channel.close()
    return None


def wait(channel: socket.socket, seconds: float | None) -> bool:
    """Whether the daemon has ended, within `seconds` unless they are None."""
    poll = select.poll()
    poll.register(channel, select.POLLHUP)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def _address(device: int) -> str:
    return f"\0blobfs/{os.major(device)}:{os.minor(device)}"
