"""Waiting for the daemon of a mount to end: the kernel does not, when it unmounts.

A daemon holds a socket whose address, in Linux's abstract namespace, is the device number of its
mount. A connection to it breaks when the process ends, however it ends. There is nothing to be said
over it, nothing on disk to clean up, and nothing to reach but the fact that the daemon runs.
"""

import os
import select
import socket
import struct
from contextlib import suppress

import trio

from blobfs.mountinfo import Mounted

_CONNECT_TIME = 2.0
_HANDOVER_TIME = 2.0


class Ending:
    """The daemon's side."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    async def hold(self, device: int) -> None:
        """Have this process waited for as the daemon of `device`. Raises OSError.

        The kernel gives a device number away again at the unmount: the daemon that had it before
        may not have noticed yet.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with trio.move_on_after(_HANDOVER_TIME):
            while True:
                with suppress(OSError):
                    listener.bind(_address(device))
                    listener.listen(socket.SOMAXCONN)
                    self._listener = listener
                    return
                await trio.sleep(_HANDOVER_TIME / 20)
        listener.close()
        raise OSError("its name is taken")

    def let_go(self) -> None:
        """After the unmount: free the name. Those who wait already go on to wait for the end of
        this process, when the kernel closes what they are connected to."""
        if self._listener is not None:
            with suppress(BlockingIOError), self._listener as listener:
                while True:
                    listener.accept()[0].detach()


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
