"""What becomes of an automount whose daemon was killed.

The kernel leaves a mount without a daemon where it is, and every access fails with ENOTCONN. With
autofs below it is enough to take it away: the next access mounts again. Elsewhere it stays, since
programs would go on in the empty directory that it covers.
"""

import logging
import os
import signal

from blobfs import logs
from blobfs.mountinfo import blobfs_at, is_dead, unmount
from blobfs.options import MountOptions

log = logging.getLogger(__name__)


def keep(options: MountOptions, sender: int) -> None:
    """Return in a child, which is to mount; this process waits for it and ends with its status.

    The child stays in the process group that autofs lets pass. `sender` is the descriptor that
    the child tells its caller by.
    """
    daemon = os.fork()
    if daemon == 0:
        return
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, sender):
        os.dup2(null, descriptor)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon's end is ours
    status = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    mountpoint = options.mountpoint
    if blobfs_at(mountpoint) is not None and is_dead(mountpoint):
        unmount(mountpoint, "-l")
        logs.configure(options.log_level, options.log_file, foreground=False)
        log.error("the daemon of %s was killed; the next access mounts it again", mountpoint)
    os._exit(status if status >= 0 else 128 - status)
