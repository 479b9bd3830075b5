"""What is measured. Each workload does what a user's program would do, on a mount just made."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks import machine
from scripts.benchmarks.bare import Place, Transfer, blob, files, listing
from scripts.benchmarks.sources import MIB, Scale, Sources

AZURITE = ("azurite", "azurite+10ms", "azurite+40ms")
EVERYWHERE = (*AZURITE, "ceiling")


@dataclass
class Run:
    """What a workload may use."""

    mount: Path
    fixture: Path
    """Its files in the mount, if it has any."""
    target: Path
    """A name in the mount that nobody has used."""
    sources: Sources
    commands: machine.Commands
    pid: int
    """The daemon's."""
    extra: dict[str, float] = field(default_factory=dict)
    """More figures than everyone's."""


Act = Callable[[Run], float | None]
"""What is measured; returns the seconds that it took when that is not all of its time."""


@dataclass(frozen=True)
class Workload:
    name: str
    title: Callable[[Scale], str]
    act: Act
    services: tuple[str, ...] = AZURITE
    fixture: str = ""
    """Files that are stored before."""
    consumes: bool = False
    """It needs its fixture anew each time."""
    writes: bool = False
    payload: Callable[[Scale], int] = lambda scale: 0
    before: Callable[[Run], None] | None = None
    """Part of the preparation, in the same mount."""
    goal: float = 1
    ceiling_goal: float | None = None
    at_most: Callable[[Scale], dict[str, float]] = lambda scale: {}
    """Goals for other figures, by the names of `Sample`'s fields."""
    ceiling: str = ""
    """The container of the ceiling."""
    curl: Callable[[str, Path], list[str | Path]] | None = None
    """The reference on the ceiling: a command, given the blob's URL and a file of its size."""
    bare: Callable[[Place], list[Transfer]] | None = None
    """The fewest requests to Azurite that do it."""
    at_once: bool = False
    """Whether those can be made in parallel."""

    def goal_on(self, service: str) -> float | None:
        return self.ceiling_goal if service == "ceiling" else self.goal


def size(count: int) -> str:
    return f"{count // 1024 // MIB} GiB" if count >= 1024 * MIB else f"{count // MIB} MiB"


# Whole files


def _dd_read(path: Path) -> list[str | Path]:
    return ["dd", f"if={path}", "of=/dev/null", "bs=1M"]


def _dd_write(path: Path, count: int) -> list[str | Path]:
    return ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={count // MIB}"]


def read(run: Run) -> None:
    run.commands.run(*_dd_read(run.fixture / "file"))


def read_four(run: Run) -> None:
    run.commands.run_all([_dd_read(run.fixture / f"file{n}") for n in range(4)])


def write(run: Run) -> None:
    run.commands.run(*_dd_write(run.target, run.sources.scale.big))


def write_huge(run: Run) -> None:
    run.commands.run(*_dd_write(run.target, run.sources.scale.huge))


def write_four(run: Run) -> None:
    run.target.mkdir()
    run.commands.run_all(
        [_dd_write(run.target / f"file{n}", run.sources.scale.one_of_four) for n in range(4)]
    )


def append(run: Run) -> None:
    run.commands.run(
        *("dd", "if=/dev/zero", f"of={run.fixture / 'file'}", "bs=1K", "count=1"),
        *("oflag=append", "conv=notrunc"),
    )


def overwrite(run: Run) -> None:
    middle = run.sources.scale.grown // MIB // 2
    run.commands.run(
        *("dd", "if=/dev/zero", f"of={run.fixture / 'file'}", "bs=1M", "count=1"),
        *(f"seek={middle}", "conv=notrunc"),
    )


# Parts of files


def look(run: Run) -> None:
    """What is measured afterwards is the file alone, not finding it."""
    (run.fixture / "file").stat()


def first_byte(run: Run) -> float:
    path = run.fixture / "file"
    start = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if len(os.read(descriptor, 1)) != 1:
            raise machine.CommandFailed("there is no first byte")
        return time.monotonic() - start
    finally:
        os.close(descriptor)


def random_reads(block: int, jobs: int) -> Act:
    def act(run: Run) -> float:
        reads = run.sources.scale.random_reads // jobs
        printed = run.commands.run(
            *("fio", "--name=random", f"--filename={run.fixture / 'file'}", "--readonly"),
            *("--rw=randread", f"--bs={block}", f"--numjobs={jobs}", "--thread"),
            *("--ioengine=psync", f"--io_size={reads * block}", "--group_reporting"),
            *("--allrandrepeat=1", "--randseed=1", "--norandommap", "--output-format=json"),
        )
        (job,) = json.loads(printed[printed.index("{") :])["jobs"]
        if job["read"]["total_ios"] != reads * jobs:
            raise machine.CommandFailed(f"fio: {job['read']['total_ios']} reads")
        # fio's own start takes longer than some of these reads
        return float(job["read"]["runtime"]) / 1000

    return act


# Many files


def create(run: Run) -> None:
    run.commands.run("cp", "-r", run.sources.small, run.target)


def cold_read(run: Run) -> None:
    run.commands.run("sh", "-c", 'cat "$1"/* >/dev/null', "sh", run.fixture)


def stat(run: Run) -> None:
    run.commands.run("sh", "-c", 'stat -c "%s %Y %A" "$1"/* >/dev/null', "sh", run.fixture)


def remove(run: Run) -> None:
    run.commands.run("rm", "-r", run.fixture)


def list_all(run: Run) -> None:
    run.commands.run("sh", "-c", 'ls -lR "$1" >/dev/null', "sh", run.fixture)


def find(run: Run) -> None:
    run.commands.run("find", run.fixture, "-type", "f", "-size", "+1G")


def list_huge(run: Run) -> None:
    before = machine.resident_bytes(run.pid)
    run.commands.run("sh", "-c", 'ls -l "$1" >/dev/null', "sh", run.mount)
    grown = machine.resident_bytes(run.pid) - before
    run.extra["bytes per inode"] = grown / run.sources.scale.listed


def rsync(run: Run) -> None:
    run.commands.run("rsync", "-a", f"{run.sources.small}/", f"{run.target}/")


def rsync_again(run: Run) -> None:
    run.commands.run("rsync", "-a", f"{run.sources.small}/", f"{run.fixture}/")


def clone(run: Run) -> None:
    run.commands.run("git", "clone", "--quiet", f"file://{run.sources.repository}", run.target)


def untar(run: Run) -> None:
    run.target.mkdir()
    run.commands.run("tar", "-xf", run.sources.archive, "-C", run.target)


# One small file in a directory that has been listed: what counts is the requests


def _list(run: Run) -> None:
    list(os.scandir(run.fixture))
    (run.fixture / "file0000").stat()


def _one(*command: str) -> Act:
    def act(run: Run) -> None:
        run.commands.run(*command, run.sources.small / "file0000", run.fixture / run.target.name)

    return act


def cat_one(run: Run) -> None:
    run.commands.run("sh", "-c", 'cat "$1" >/dev/null', "sh", run.fixture / "file0001")


# The ceiling's references


def _download(url: str, file: Path) -> list[str | Path]:
    return ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", url]


def _upload(url: str, file: Path) -> list[str | Path]:
    # fmt: off
    return [
        "curl", "--silent", "--show-error", "--fail", "--output", "/dev/null",
        "--header", "Expect:", "--upload-file", file, f"{url}-uploaded",
    ]
    # fmt: on


# The fewest requests


def _get(fixture: str) -> Callable[[Place], list[Transfer]]:
    return lambda place: [blob(place, name) for name in files(getattr(place.sources, fixture))]


def _put(fixture: str) -> Callable[[Place], list[Transfer]]:
    return lambda place: [
        blob(place, f"{place.target}/{path.name}", upload=path)
        for path in sorted(getattr(place.sources, fixture).iterdir())
    ]


def _list_small(place: Place) -> list[Transfer]:
    return [listing(place, ""), listing(place, "small")]


def _list_many(place: Place) -> list[Transfer]:
    folders = sorted(path.name for path in place.sources.many.iterdir())
    return [
        *(listing(place, name) for name in ("", "many")),
        *(listing(place, f"many/{name}") for name in folders),
    ]


def _random(name: str, block: int, jobs: int) -> Workload:
    return Workload(
        name,
        lambda scale: (
            f"random {block // 1024} KiB reads of {size(scale.big)}, "
            f"{jobs} job{'s' if jobs > 1 else ''}"
        ),
        random_reads(block, jobs),
        fixture="big",
        before=look,
        payload=lambda scale: scale.random_reads // jobs * jobs * block,
        at_most=lambda scale: {
            "requests": scale.random_reads // jobs * jobs,
            **({"wire/data": 20} if block == 4096 else {}),
        },
    )


def _small(scale: Scale) -> int:
    return scale.small_files * 8192


def _count(scale: Scale) -> str:
    return f"{scale.small_files:,} files of 8 KiB"


def _many(scale: Scale) -> str:
    return f"{scale.directories * scale.per_directory:,} blobs in {scale.directories} directories"


# In this order those that share a fixture follow each other.
WORKLOADS = (
    Workload(
        "read",
        lambda scale: f"sequential read, {size(scale.big)}",
        read,
        services=EVERYWHERE,
        fixture="big",
        payload=lambda scale: scale.big,
        goal=2,
        ceiling_goal=0.4,
        ceiling="big",
        curl=_download,
        bare=_get("big"),
    ),
    Workload(
        "first-byte",
        lambda scale: f"open and first byte, {size(scale.big)}",
        first_byte,
        fixture="big",
        before=look,
        at_most=lambda scale: {"requests": 1},
    ),
    _random("random-4k", 4096, 1),
    _random("random-4k-16", 4096, 16),
    _random("random-64k", 65536, 1),
    _random("random-64k-16", 65536, 16),
    Workload(
        "read-4",
        lambda scale: f"sequential read, four files of {size(scale.one_of_four)} at once",
        read_four,
        fixture="four",
        payload=lambda scale: 4 * scale.one_of_four,
        goal=2,
        bare=_get("four"),
        at_once=True,
    ),
    Workload(
        "cat",
        lambda s: f"cold read, {_count(s)}",
        cold_read,
        fixture="small",
        payload=_small,
        goal=2,
        bare=_get("small"),
    ),
    Workload("stat", lambda s: f"stat, {_count(s)}", stat, fixture="small", bare=_list_small),
    Workload(
        "rsync-again",
        lambda s: f"rsync -a, {_count(s)}, again",
        rsync_again,
        fixture="small",
        goal=2,
        bare=_list_small,
    ),
    Workload(
        "cat-one",
        lambda s: "cat of a listed file",
        cat_one,
        fixture="small",
        before=_list,
        at_most=lambda scale: {"requests": 1},
    ),
    Workload(
        "cp-one",
        lambda s: "cp of one file into a listed directory",
        _one("cp"),
        fixture="small",
        at_most=lambda scale: {"requests": 1},
        before=_list,
        writes=True,
    ),
    Workload(
        "cp-a-one",
        lambda s: "cp -a of one file into a listed directory",
        _one("cp", "-a"),
        fixture="small",
        at_most=lambda scale: {"requests": 2},
        before=_list,
        writes=True,
    ),
    Workload(
        "rsync-one",
        lambda s: "rsync -a of one file into a listed directory",
        _one("rsync", "-a"),
        fixture="small",
        at_most=lambda scale: {"requests": 3},
        before=_list,
        writes=True,
    ),
    Workload(
        "rm", lambda s: f"rm -r, {_count(s)}", remove, fixture="small", consumes=True, writes=True
    ),
    Workload(
        "ls",
        lambda s: f"ls -lR, {_many(s)}",
        list_all,
        fixture="many",
        goal=2,
        at_most=lambda scale: {"requests": scale.directories + 2},  # those and the two above
        bare=_list_many,
    ),
    Workload("find", lambda s: f"find, {_many(s)}", find, fixture="many", goal=2, bare=_list_many),
    Workload(
        "append",
        lambda scale: f"append 1 KiB to {size(scale.grown)}",
        append,
        fixture="grown",
        writes=True,
    ),
    Workload(
        "overwrite",
        lambda scale: f"overwrite 1 MiB inside {size(scale.grown)}",
        overwrite,
        fixture="grown",
        writes=True,
    ),
    Workload(
        "create",
        lambda s: f"cp -r, {_count(s)}",
        create,
        writes=True,
        payload=_small,
        goal=2,
        bare=_put("small"),
    ),
    Workload(
        "rsync",
        lambda s: f"rsync -a, {_count(s)}",
        rsync,
        writes=True,
        payload=_small,
        goal=2,
        bare=_put("small"),
    ),
    Workload("clone", lambda s: f"git clone, {s.repository_files:,} files", clone, writes=True),
    Workload("untar", lambda s: f"untar, {s.repository_files:,} files", untar, writes=True),
    Workload(
        "write",
        lambda scale: f"sequential write, {size(scale.big)}",
        write,
        services=EVERYWHERE,
        writes=True,
        payload=lambda scale: scale.big,
        goal=2,
        ceiling_goal=0.3,
        ceiling="big",
        curl=_upload,
        bare=_put("big"),
    ),
    Workload(
        "write-4",
        lambda scale: f"sequential write, four files of {size(scale.one_of_four)} at once",
        write_four,
        writes=True,
        payload=lambda scale: 4 * scale.one_of_four,
        goal=2,
        bare=_put("four"),
        at_once=True,
    ),
    Workload(
        "read-huge",
        lambda scale: f"sequential read, {size(scale.huge)}",
        read,
        services=("ceiling",),
        at_most=lambda scale: {"peak_bytes": 300 * MIB},
        payload=lambda scale: scale.huge,
        ceiling="huge",
    ),
    Workload(
        "write-huge",
        lambda scale: f"sequential write, {size(scale.huge)}",
        write_huge,
        services=("ceiling",),
        at_most=lambda scale: {"peak_bytes": 300 * MIB},
        payload=lambda scale: scale.huge,
        ceiling="huge",
    ),
    Workload(
        "list-huge",
        lambda scale: f"ls -l, {scale.listed:,} blobs in one directory",
        list_huge,
        services=("ceiling",),
        at_most=lambda scale: {
            "requests": math.ceil(scale.listed / 5000),
            "peak_bytes": 150 * MIB,
        },
        ceiling="listed",
    ),
)
