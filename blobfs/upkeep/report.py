"""What a pass says: findings on standard output as they come, progress on standard error."""

import sys
import time
from typing import TextIO

import tqdm

from blobfs.session import Place

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class Report:
    """Progress is a bar that is redrawn on a terminal, and a line now and then elsewhere."""

    def __init__(self, verb: str, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._verb = verb
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.looked_at = 0
        tqdm.tqdm.monitor_interval = 0  # no thread for a bar that is drawn when a blob is done
        # disable=None: no bar unless it is a terminal.
        self._bar = tqdm.tqdm(
            desc=verb, unit=" blobs", file=self._err, disable=None, dynamic_ncols=True, leave=False
        )
        self._next_line = time.monotonic() + PLAIN_INTERVAL

    def step(self) -> None:
        """One more blob was looked at."""
        self.looked_at += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_INTERVAL
            self.note(f"{self._verb}: {self.looked_at:,} blobs so far")

    def say(self, line: str) -> None:
        """A line of the result."""
        self._bar.write(line, file=self._out)

    def note(self, line: str) -> None:
        """A line about the pass itself."""
        self._bar.write(line, file=self._err)

    def close(self) -> None:
        self._bar.close()
        self._out.flush()


def printable(text: str) -> str:
    """The text, quoted when it has in it what a terminal would act on."""
    if not text.isprintable():
        return repr(text)
    # Standard output may be in an encoding that has not all characters.
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def shown(place: Place, name: str) -> str:
    """A blob for people, with its container."""
    return printable(f"{place.access.source.container}/{name}")
