"""64 programs work on one mount: no error, no deadlock, all is right, memory and descriptors flat.

Each program (`tests/torture/soak_program.py`) changes files of its own, reads shared ones, and
compares all it is told with what it wrote. None may spend more than LIMIT_S in one operation. At
the end the daemon, once the kernel was made to forget all names, knows the root alone, and a fresh
mount shows, at the service, what the programs have in mind. The daemon's memory and descriptors and
the operations done are sampled each second and drawn into .cache/torture/soak.svg and soak.png.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from blobfs.control import ask, find
from tests.azurite import Azurite
from tests.journal import Entry, tree
from tests.model import forget_names
from tests.mounts import ROOT, Mount, mounted
from tests.torture.service import service
from tests.torture.soak_program import SHARED, shared_content

PROGRAMS = 64
LIMIT_S = 60
"""In one operation; `timeout=`, after which a request is given up, is the same."""
MARGIN = 16 * 1024 * 1024
"""Bytes that the last third's memory, its median, may be above the middle third's."""
IDLE_S = 10
"""Within which all descriptors but those of idle connections are closed."""
CONNECTIONS = 16
"""Of the client: so many for contents, and again for all else. They stay open when idle."""
PICTURES = [ROOT / ".cache" / "torture" / name for name in ("soak.svg", "soak.png")]
RATE_S = 10
"""Over which the operations per second are taken in the picture."""


class Sample(NamedTuple):
    at: float
    memory: int
    descriptors: int
    operations: int  # so far


def sample(pid: int, at: float, operations: int) -> Sample:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(at, pages * os.sysconf("SC_PAGE_SIZE"), descriptors, operations)


def thirds(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The middle and the last third: in the first, caches fill."""
    third = len(samples) // 3
    return samples[third : 2 * third], samples[-third:]


def median_memory(samples: list[Sample]) -> float:
    return statistics.median(s.memory for s in samples)


def growth(samples: list[Sample]) -> int:
    """Bytes by which the last third's median memory is above the middle third's."""
    middle, last = thirds(samples)
    return int(median_memory(last) - median_memory(middle))


class Soak:
    def __init__(self, azurite: Azurite, folder: Path, seed: int, programs: int) -> None:
        self.azurite = azurite
        self.folder = folder
        self.seed = seed
        self.programs = programs
        self.container = azurite.new_container()
        self.samples: list[Sample] = []
        self.figures: Counter[str] = Counter()
        self.slowest = 0.0
        self.baseline: Counter[str] = Counter()
        self.connections = 0

    def run(self, seconds: float) -> None:
        """Raises AssertionError."""
        with mounted(self.azurite, self.container, self.folder) as mount:
            (mount.path / "shared").mkdir()
            self.baseline = descriptors(mount.pid)  # libfuse opens its pipe for the first request
            for name, size in SHARED.items():
                (mount.path / name).write_bytes(shared_content(0, size))
            self._work(mount, seconds)
            self._check_descriptors(mount)
            self._check_forgotten(mount)
        key_file = mount.key_file
        with mounted(self.azurite, self.container, self.folder, key_file=key_file) as fresh:
            for number in range(self.programs):
                self._verify(fresh.path, number)
            for name, size in SHARED.items():
                assert (fresh.path / name).read_bytes() == shared_content(0, size), name

    def _said(self, text: str) -> str:
        return f"seed {self.seed}, {self.programs} programs: {text}"

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number}"

    def _start(self, mount: Mount, number: int, seconds: float) -> subprocess.Popen[bytes]:
        files = [str(self._file("notes", number)), str(self._file("result", number))]
        words = [str(mount.path), str(number), str(self.seed), str(seconds), *files]
        with self._file("stderr", number).open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.torture.soak_program", *words],
                cwd=ROOT,
                stderr=stderr,
            )

    def _work(self, mount: Mount, seconds: float) -> None:
        start = time.monotonic()
        programs = [self._start(mount, number, seconds) for number in range(self.programs)]
        try:
            while any(program.poll() is None for program in programs):
                done = sum(self._check(number, program) for number, program in enumerate(programs))
                self.samples.append(sample(mount.pid, time.monotonic() - start, done))
                time.sleep(1)
            for number, program in enumerate(programs):
                self._check(number, program)
        except BaseException:
            mount.remove()  # a program that waits for the daemon cannot be killed before
            raise
        finally:
            for program in programs:
                program.kill()
                program.wait()

    def _check(self, number: int, program: subprocess.Popen[bytes]) -> int:
        """How many operations it has done."""
        status = program.poll()
        if status is not None:
            trouble = self._file("stderr", number).read_text()
            assert status == 0, self._said(f"program {number} ended with {status}: {trouble}")
        try:
            note = json.loads(self._file("notes", number).read_text())
        except (OSError, ValueError):  # it has not begun
            return 0
        if status is None:
            waited = time.monotonic() - note["since"]
            assert waited < LIMIT_S, self._said(f"program {number}: {waited:.0f} s in {note}")
        return int(note["done"])

    def _check_descriptors(self, mount: Mount) -> None:
        """Nothing that was opened is left but connections: those that the pool keeps."""
        deadline = time.monotonic() + IDLE_S
        while set(left := descriptors(mount.pid) - self.baseline) - {"socket"}:
            assert time.monotonic() < deadline, self._said(f"left open: {left}")
            time.sleep(0.2)
        self.connections = left["socket"]
        most = 2 * CONNECTIONS
        assert self.connections <= most, self._said(
            f"{self.connections} connections, {most} allowed"
        )

    def _check_forgotten(self, mount: Mount) -> None:
        """Of a file that nobody uses and the kernel has forgotten, the daemon keeps nothing."""
        assert known(mount)["known"] > self.programs, self._said("the kernel has asked for little")
        forget_names(mount.path)
        deadline = time.monotonic() + IDLE_S
        while (left := known(mount)) != {"known": 1}:
            assert time.monotonic() < deadline, self._said(f"not forgotten: {left}")
            time.sleep(0.2)

    def _verify(self, mount: Path, number: int) -> None:
        result: dict[str, Any] = json.loads(self._file("result", number).read_text())
        found = tree(mount / f"program-{number}")
        files: dict[str, Entry] = {
            name: ["f", *entry, found.get(name, [None] * 4)[3]]  # type: ignore[index]
            for name, entry in result["files"].items()
        }
        directories: dict[str, Entry] = {
            name: ["d", "", 0o755, None] for name in result["directories"]
        }
        expected = files | directories
        wrong = [
            f"{name}: {found.get(name)}, not {expected.get(name)}"
            for name in found.keys() | expected.keys()
            if found.get(name) != expected.get(name)
        ]
        assert not wrong, self._said(f"program {number}, in a fresh mount: {wrong}")
        self.slowest = max(self.slowest, result["slowest"])
        self.figures += Counter(result["figures"])
        self.figures["files verified in a fresh mount"] += len(files)


def descriptors(pid: int) -> Counter[str]:
    """What the daemon has open; sockets and pipes are counted by their kind."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found[os.readlink(entry).partition(":")[0]] += 1
    return found


def known(mount: Mount) -> dict[str, int]:
    """What the daemon's status says of files, but for zeros."""
    files: dict[str, int] = ask(find(mount.path), {"do": "status"})["files"]
    return {what: number for what, number in files.items() if number}


def draw(samples: list[Sample], title: str, paths: list[Path]) -> None:
    # of the extra `torture`, which the short form goes without
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    memory, open_files, operations = figure.subplots(3, sharex=True)
    minutes = [s.at / 60 for s in samples]
    memory.plot(minutes, [s.memory / 2**20 for s in samples], linewidth=1)
    memory.set_ylabel("memory of the\ndaemon, MiB")
    for part in thirds(samples):
        level = median_memory(part) / 2**20
        line = [part[0].at / 60, part[-1].at / 60], [level, level]
        memory.plot(*line, linestyle="--", linewidth=1, color="black", label="median of a third")
    memory.legend(handles=memory.lines[-1:], loc="lower right", fontsize=8)
    open_files.plot(minutes, [s.descriptors for s in samples], linewidth=1)
    open_files.set_ylabel("descriptors of\nthe daemon")
    pairs = list(zip(samples, samples[RATE_S:], strict=False))
    operations.plot(
        [later.at / 60 for _, later in pairs],
        [(later.operations - s.operations) / (later.at - s.at) for s, later in pairs],
        linewidth=1,
    )
    operations.set_ylabel("operations\na second")
    operations.set_xlabel("minutes")
    for axes in (memory, open_files, operations):
        axes.grid(linewidth=0.3)
        axes.set_xlim(0, minutes[-1])
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    figure.suptitle(title, fontsize=10)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    with service() as (azurite, folder):
        soak = Soak(azurite, folder, seed, PROGRAMS)
        try:
            soak.run(minutes * 60)
        finally:
            title = f"{PROGRAMS} programs, {minutes:g} minutes, seed {seed}"
            if soak.samples:
                draw(soak.samples, title, PICTURES)
                say(f"drawn into {', '.join(str(p.relative_to(ROOT)) for p in PICTURES)}")
        say(", ".join(f"{number:,} {what}" for what, number in sorted(soak.figures.items())))
        mib = [s.memory / 2**20 for s in soak.samples]
        most = max(s.descriptors for s in soak.samples)
        say(f"slowest operation {soak.slowest:.1f} s")
        before = soak.baseline.total()
        say(
            f"descriptors: {before} before, at most {most}, after: + {soak.connections} connections"
        )
        say(f"memory at most {max(mib):.0f} MiB, at the end {mib[-1]:.0f} MiB")
        grown = growth(soak.samples)
        say(f"last third {grown / 2**20:+.1f} MiB against the middle third")
        assert grown <= MARGIN, f"memory grows: {grown} bytes from the middle to the last third"
