"""A running mount under a service manager (systemd.service(5), Type=notify): that it is ready, that
it lives, what it does, that it reloads, that it stops.

Without a manager nothing is sent, but SIGHUP reloads all the same.
"""

import logging
import os
import signal
import time
from collections.abc import Callable

import trio

from blobfs.notify import notify

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two signs of life, unless WATCHDOG_USEC asks for more."""

EXTENSION = 60.0
"""Seconds that the manager is asked to wait longer, at every beat, while a mount is stopping."""


class Service:
    """`status` says in a few words what the mount does; `reload` reads again what can be."""

    def __init__(self, status: Callable[[], str], reload: Callable[[], None]) -> None:
        self._status = status
        self._reload = reload
        self._told = ""
        self._stopping = False

    def ready(self) -> None:
        notify("READY=1")

    def stopping(self) -> None:
        """What is dirty is stored from here on, however long the manager would wait."""
        self._stopping = True
        self._beat()

    async def run(self) -> None:
        """Runs until it is cancelled. Raises nothing."""
        interval = beat_interval(os.environ.get("WATCHDOG_USEC", ""))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reload_on_signal)
            while os.environ.get("NOTIFY_SOCKET"):
                self._beat()
                await trio.sleep(interval)

    def _beat(self) -> None:
        words = ["WATCHDOG=1"]
        if self._stopping:
            words += ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={EXTENSION * 1e6:.0f}"]
        status = self._status()
        if status != self._told:
            self._told = status
            words.append(f"STATUS={status}")
        notify("\n".join(words))

    async def _reload_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
                self._reload()
                notify("READY=1")


def beat_interval(watchdog_usec: str) -> float:
    """Seconds; half of what the manager allows, as sd_watchdog_enabled(3) recommends."""
    if not watchdog_usec.isascii() or not watchdog_usec.isdigit():
        return BEAT
    return min(BEAT, int(watchdog_usec) / 2e6)
