"""Where metrics are served: an address of this machine's own, or a Unix socket. Pure."""

import ipaddress
import re
from pathlib import Path

Address = tuple[str, int] | Path
"""A loopback address and a port (0: any that is free), or the path of a socket."""


def parse_address(text: str) -> Address:
    """Raises ValueError with what it should have been: what is served is for this machine alone."""
    if text.startswith("unix:/"):
        return Path(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not (loopback and re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
        raise ValueError(
            "a loopback address and port, as in 127.0.0.1:9100 or [::1]:9100 (port 0: any that is "
            "free), or a socket, as in unix:/run/blobfs/metrics.sock"
        )
    return host.strip("[]"), int(port)
