"""Random work while the network goes for good, the spool goes, its disk is full, memory is short.

The same programs and checks as in `tests/torture/crash.py`:

- The network goes and does not come back: whatever a program had written, and no close had stored,
  is in a recovery file, and `blobfs recover upload` stores it once there is a network again, under
  its name, also where a close was carried out and not heard of.
- The spool directory is removed, or memory is limited to 250 MiB: no operation fails.
- The spool's disk is full: a write fails with ENOSPC, the file has what was written before, and
  nothing fails that begins when there is room again.

All but the first then end with SIGKILL.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.azurite import Azurite
from tests.cgroups import memory_limit
from tests.disks import disk, fill
from tests.journal import tree
from tests.networks import Network, network
from tests.torture.crash import Crashes, run_rounds
from tests.torture.service import service

MIB = 1024 * 1024
MEMORY = 250 * MIB
DISK = 96 * MIB
"""More than all that the programs may have unsaved at once."""
ROUNDS_A_TURN = 5


class CutOff(Crashes):
    """The network goes, the programs fail, the mount is ended; another one has a network."""

    net: Network

    def options(self) -> list[str]:
        return ["timeout=2s", "metadata_ttl=0"]

    def _befall(self, files: list[Path]) -> float:
        self._wait_for_more(files, self.random.randint(3, 60))
        time.sleep(self.random.uniform(0, 0.1))
        cut_at = time.monotonic()
        self.net.cut()
        self.figures["networks cut"] += 1
        return cut_at

    def _work(self, files: list[Path]) -> float:
        since = super()._work(files)
        problems = self.mount.unmount()
        wrong = [word for word in ("CRITICAL", "Traceback", "a bug") if word in self.mount.log()]
        assert not problems + wrong, self._said(f"{problems}, and the log has {wrong}")
        self.net.restore()
        return since

    def _recover(self) -> None:
        files = list(self.mount.spool_dir.glob("*.blobfs-recovery"))
        self.figures["recovery files"] += len(files)
        if files:
            words = ["--spool-dir", self.mount.spool_dir, "upload", "--all", "-o", self._access]
            self._blobfs("recover", *words)
        for number, journal in enumerate(self.journals):
            found = tree(self._root(number))
            for name, digest in journal.owed.items():
                there = found.get(name) or [None, None]
                assert there[1] == digest, self._said(f"{name}: {there}, not {digest}")
            self.figures["contents owed, all found"] += len(journal.owed)
        super()._recover()


class SpoolRemoved(Crashes):
    def options(self) -> list[str]:
        return ["buffer_size=512K"]

    def _befall(self, files: list[Path]) -> float:
        for _ in range(self.random.randint(1, 3)):
            self._wait_for_more(files, self.random.randint(3, 20))
            shutil.rmtree(self.mount.spool_dir, ignore_errors=True)
            self.figures["spools removed"] += 1
        self._wait_for_more(files, 20)
        return self._kill()


class FullDisk(Crashes):
    disk = "small"
    room_at = 0.0

    def options(self) -> list[str]:
        return ["buffer_size=512K"]

    def _befall(self, files: list[Path]) -> float:
        filler = self.mount.spool_dir / "filler"
        for _ in range(self.random.randint(1, 3)):
            self._wait_for_more(files, self.random.randint(3, 20))
            fill(filler)
            self.figures["disks filled"] += 1
            self._wait_for_more(files, 30)
            # chance may have chosen operations alone that need no room
            self._wait_until(files, lambda done: any(map(_has_run_out, files)))
            filler.unlink()
            self.room_at = time.monotonic()
        before = self._wait_until(files, lambda done: True)
        self._wait_until(
            files, lambda done: all(now >= then + 3 for now, then in zip(done, before, strict=True))
        )
        return self._kill()

    def _recover(self) -> None:
        super()._recover()
        for journal in self.journals:
            self.figures["operations without space"] += len(journal.ran_out)
            late = [since for since in journal.ran_out if since > self.room_at]
            assert not late, self._said("there was room again, and a write failed with ENOSPC")


def _has_run_out(journal: Path) -> bool:
    return b'"ran_out"' in journal.read_bytes()


class LittleMemory(Crashes):
    workers = 8

    def options(self) -> list[str]:
        return []

    def _befall(self, files: list[Path]) -> float:
        self._wait_for_more(files, 40 * self.workers)
        return self._kill()


def rounds(
    kind: type[Crashes], azurite: Azurite, folder: Path, seed: int, number: int
) -> Counter[str]:
    """So many of a kind in a row; what happened. Raises AssertionError."""
    with ExitStack() as stack:
        net = stack.enter_context(network(azurite.port)) if kind is CutOff else None
        prefix = stack.enter_context(memory_limit(MEMORY)) if kind is LittleMemory else ()
        crashes = kind(azurite, folder, seed, prefix if net is None else net.prefix)
        if isinstance(crashes, CutOff):
            assert net is not None
            crashes.net = net
        if kind is FullDisk:
            stack.enter_context(disk(crashes.mount.spool_dir, DISK))
        return run_rounds(crashes, number)


KINDS = [CutOff, SpoolRemoved, FullDisk, LittleMemory]


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    turn = 0
    while turn < len(KINDS) or time.monotonic() < until:
        with service() as (azurite, folder):
            figures += rounds(KINDS[turn % len(KINDS)], azurite, folder, seed + turn, ROUNDS_A_TURN)
        turn += 1
        say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
