"""SIGKILL of the daemon at random moments of a random workload; what was closed is whole.

A round: programs work (`tests/workload.py`) and journal what they were told, the daemon is killed,
the container is mounted again with the same options, and every path is compared with the journal.
Then `blobfs recover list` and `blobfs verify --deep` must have nothing to say but of blocks that
were never committed, and of hidden blobs, which `blobfs verify --remove-hidden` takes away.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.azurite import Azurite
from tests.journal import Journal, tree
from tests.leaks import find_leaks
from tests.mounts import ROOT, Mount
from tests.torture.service import service

WORKERS = 3
LIMIT_S = 120
ROUNDS_A_SEED = 25
"""After which another container, and other options, have their turn."""

OPTIONS = ["", "buffer_size=1M,cache_size=1M", "metadata_ttl=0,region_size=4K", "protocol=2.0"]


class Crashes:
    """Rounds on one container, one after the other; the files of one are there in the next.

    What befalls the mount, in `_befall`, is SIGKILL; `tests/torture/scarce.py` has other things.
    """

    workers = WORKERS
    disk = ""  # see tests/workload.py

    def __init__(
        self, azurite: Azurite, folder: Path, seed: int, prefix: Sequence[str] = ()
    ) -> None:
        self.azurite = azurite
        self.seed = seed
        self.random = random.Random(seed)
        self.container = azurite.new_container()
        state_dir = folder / f"{type(self).__name__}-{seed}"
        state_dir.mkdir()
        self.mount = Mount(
            azurite.url(self.container),
            state_dir,
            *self.options(),
            sas=azurite.sas(self.container),
            prefix=prefix,
        )
        self.journals = [Journal() for _ in range(self.workers)]
        self.figures: Counter[str] = Counter()
        self.number = 0

    def options(self) -> list[str]:
        return [*filter(None, [OPTIONS[self.seed % len(OPTIONS)]])]

    def start(self) -> None:
        self.mount.start()
        for number in range(self.workers):
            self._root(number).mkdir()

    def end(self) -> None:
        """Unmount cleanly: nothing is left of the daemons that were killed."""
        problems = self.mount.unmount()
        self.mount.remove()
        assert not problems, problems

    def _root(self, number: int) -> Path:
        return self.mount.path / f"w{number}"

    def round(self) -> None:
        """Raises AssertionError with the seed, the round and what is wrong."""
        self.number += 1
        files = [
            self.mount.state_dir / f"journal-{self.number}-{number}"
            for number in range(self.workers)
        ]
        since = self._work(files)
        self.mount.remove()
        for journal, file in zip(self.journals, files, strict=True):
            before = journal.operations
            journal.replay(file)
            self.figures["operations"] += journal.operations - before
            self.figures["cut short"] += bool(journal.pending)
            assert journal.failure is not None, self._said("a program goes on without a mount")
            what, at = journal.failure
            assert at > since, self._said(f"failed before it had to: {what}")
        self._check_disk()
        self.mount.start()
        for number, journal in enumerate(self.journals):
            found = tree(self._root(number))
            wrong = journal.violations(found)
            self.figures["files checked"] += len(found)
            assert not wrong, self._said("\n".join(wrong))
        self._recover()
        for number, journal in enumerate(self.journals):
            self._finish_rename(number, journal)
            found = tree(self._root(number))
            self.journals[number] = Journal({name: [entry] for name, entry in found.items()})
        self._check_commands()

    def _said(self, text: str) -> str:
        return f"seed {self.seed}, round {self.number}: {text}\n{self.mount.log()[-3000:]}"

    def _work(self, files: list[Path]) -> float:
        """Have the programs work until they cannot any more; the moment from which that is so."""
        seeds = [self.random.randrange(10**9) for _ in files]
        programs = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.workload"),
                    *(self._root(number), file, str(seed), self.disk),
                ],
                cwd=ROOT,
            )
            for number, (file, seed) in enumerate(zip(files, seeds, strict=True))
        ]
        try:
            since = self._befall(files)
            for program in programs:
                assert program.wait(LIMIT_S) == 0, self._said("a program died")
        finally:
            for program in programs:
                program.kill()
                program.wait()
        return since

    def _befall(self, files: list[Path]) -> float:
        self._wait_for_more(files, self.random.randint(3, 60))
        time.sleep(self.random.uniform(0, 0.1))  # into the middle of something
        return self._kill()

    def _kill(self) -> float:
        killed_at = time.monotonic()
        os.kill(self.mount.pid, signal.SIGKILL)
        self.figures["kills"] += 1
        return killed_at

    def _wait_until(self, files: list[Path], condition: Callable[[list[int]], bool]) -> list[int]:
        """Until all programs have begun, and how many operations each has done is enough."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            notes = [file.read_bytes() if file.exists() else b"" for file in files]
            done = [note.count(b'{"now"') for note in notes]
            if all(notes) and condition(done):
                return done
            assert time.monotonic() < deadline, self._said("the programs do not get on")
            time.sleep(0.01)

    def _wait_for_more(self, files: list[Path], operations: int) -> None:
        before = sum(self._wait_until(files, lambda done: True))
        self._wait_until(files, lambda done: sum(done) >= before + operations)

    def _recover(self) -> None:
        """Nothing had failed before, and so nothing is to be recovered."""
        kept = self._blobfs("recover", "--spool-dir", self.mount.spool_dir, "list")
        assert "blobfs-recovery" not in kept, self._said(f"nothing had failed before: {kept}")

    def _finish_rename(self, number: int, journal: Journal) -> None:
        """The rename of a directory that was cut short is finished by the same, run again."""
        root = self._root(number)
        if len(journal.moves) < 2 or not (root / journal.moves[0][0]).exists():
            return
        os.rename(root / journal.moves[0][0], root / journal.moves[0][1])
        found = tree(root)
        for old, new, entry in journal.moves:
            assert found.get(old) is None, self._said(f"{old} is left of {journal.pending}")
            there = found.get(new)
            assert there is not None, self._said(f"{new}: {entry} is lost")
            assert entry is not None
            assert there[:2] == entry[:2], self._said(f"{new}: {there}, not {entry}")
        self.figures["renames finished"] += 1

    def _check_disk(self) -> None:
        """No plaintext and no token in the spool, the log, or at the service."""
        paths = [path for path in self.mount.spool_dir.rglob("*") if path.is_file()]
        paths += [self.mount.log_path, self.mount.stderr_path]
        signatures = self.azurite.signatures
        leaks = find_leaks(paths, signatures) + self.azurite.find_leaks(signatures)
        assert not leaks, self._said(f"plaintext or a token in {leaks}")

    def _blobfs(self, *words: str | Path, status: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "blobfs", *words],
            cwd=ROOT,
            env=self.mount.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        said = f"{words[0]}: status {done.returncode}: {done.stdout}{done.stderr}"
        assert done.returncode in status, self._said(said)
        return done.stdout

    @property
    def _access(self) -> str:
        return f"sas_file={self.mount.sas_file},key_file={self.mount.key_file}"

    def _verify(self, *words: str, status: tuple[int, ...]) -> Counter[str]:
        options = f"{self._access},spool_dir={self.mount.spool_dir}"
        source = [self.mount.source, "-o", options]
        report = json.loads(self._blobfs("verify", *source, "--json", *words, status=status))
        return Counter(finding["finding"] for finding in report["findings"])

    def _check_commands(self) -> None:
        # no file is open and none is being written: whatever is hidden, the crash has left
        found = self._verify("--deep", "--remove-hidden", status=(0, 3))
        self.figures["hidden blobs removed"] += found["hidden"]
        self.figures["uncommitted blocks noticed"] += found["uncommitted"]
        unexpected = found.keys() - {"hidden", "uncommitted"}
        assert not unexpected, self._said(f"verify finds {found}")
        for blob in self.azurite.sdk(self.container).list_blobs():
            assert ".blobfs-" not in blob.name, self._said(f"{blob.name} is left behind")
            assert blob.lease.state == "available", self._said(f"{blob.name} is leased")


def rounds(azurite: Azurite, folder: Path, seed: int, number: int) -> Counter[str]:
    """So many kills in a row; what happened. Raises AssertionError."""
    return run_rounds(Crashes(azurite, folder, seed), number)


def run_rounds(crashes: Crashes, number: int) -> Counter[str]:
    try:
        crashes.start()
        for _ in range(number):
            crashes.round()
        crashes.end()
    finally:
        crashes.mount.remove()
    return crashes.figures


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    turn = 0
    while turn == 0 or time.monotonic() < until:
        with service() as (azurite, folder):
            figures += rounds(azurite, folder, seed + turn, ROUNDS_A_SEED)
        turn += 1
        say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
