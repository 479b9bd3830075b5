"""What systemd is told of a service (sd_notify(3)): one datagram, so no library is needed."""

import os
import socket
from contextlib import suppress


def notify(text: str) -> None:
    """Send `text`, such as `STATUS=…`, to the service manager, if there is one. Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendto(text.encode(), address)
