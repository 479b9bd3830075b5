"""Two and three hosts change the same files at random; every final state is explained.

Each host is a mount in a network namespace of its own. For each file and host one thread writes
anew, appends, reads, unlinks, renames another file over it and renames it to another name, and
records when what began and ended and what it was told. A content is pieces that say which operation
wrote them. Then, for each file:

- what is there is of a close after which no other close began;
- a piece that is gone was replaced by someone who came after it, or is under the name that the file
  was renamed to;
- who was told ESTALE by close finds its version in a conflict copy, and nobody else has one; or, if
  it appended to a file too large to be had whole, and that is gone, its piece in a recovery file;
- a read gave one version, whole, and none that was replaced before it began;
- who was told EIO, other than by close, heard of a deletion on the same host that failed after its
  call had returned, each of them once (see `blobfs.fs.deleting`).
"""

import errno
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.azurite import Azurite
from tests.descriptors import sync
from tests.kept import opened
from tests.mounts import PLAINTEXT_MARKER, Mount
from tests.networks import network
from tests.torture.service import service

FILES = ("one", "two", "three")
CONFLICT = ".blobfs-conflict-"
TAKING = ("unlink", "rename away")
REPLACING = ("write", "unlink", "rename over")
OPERATIONS = 30
"""Of each thread in a round."""


@dataclass
class Done:
    """One operation. It `saw` the file's version at the latest then; `closing` is its commit."""

    number: int
    what: str
    host: int
    saw: float = 0.0
    closing: float = 0.0
    ended: float = 0.0
    error: int = 0
    in_close: bool = False
    content: list[int] = field(default_factory=list)  # of a read

    @property
    def stored(self) -> bool:
        return self.what != "read" and not self.error


def piece(number: int, size: int) -> bytes:
    filler = PLAINTEXT_MARKER + b"%08d" % number
    return b"%08d%08d" % (number, size) + (filler * (size // len(filler) + 1))[:size]


def pieces(data: bytes) -> list[int]:
    """The operations that wrote a content, in order; raises AssertionError for a mixture."""
    found: list[int] = []
    while data:
        assert data[:16].isdigit(), f"after {found}: {data[:40]!r}"
        number, size = int(data[:8]), int(data[8:16])
        whole = piece(number, size)
        assert data.startswith(whole), f"the piece of {number} is not whole"
        found.append(number)
        data = data[len(whole) :]
    return found


def last_piece(data: bytes) -> int:
    """The operation that wrote the end of a content of which more need not be there."""
    *_, found = re.finditer(rb"(\d{8})(\d{8})(?=%b)" % PLAINTEXT_MARKER[:10], data)
    number, size = int(found[1]), int(found[2])
    assert data[found.start() :] == piece(number, size), f"the piece of {number} is not whole"
    return number


class Round:
    def __init__(self, azurite: Azurite, folder: Path, seed: int, hosts: int) -> None:
        self.seed = seed
        self._azurite = azurite
        self._folder = folder
        self._container = azurite.new_container()
        self._count = hosts
        self.hosts: list[Mount] = []
        self.done: dict[str, list[Done]] = {name: [] for name in FILES}
        self._lock = threading.Lock()
        self._numbers = 0

    def run(self) -> Counter[str]:
        """What happened. Raises AssertionError."""
        with ExitStack() as stack:
            for number in range(self._count):
                net = stack.enter_context(network(self._azurite.port))
                state_dir = self._folder / f"host-{self._container}-{number}"
                state_dir.mkdir()
                mount = Mount(
                    self._azurite.url(self._container),
                    state_dir,
                    "metadata_ttl=0",
                    sas=self._azurite.sas(self._container),
                    key_file=self.hosts[0].key_file if self.hosts else None,
                    prefix=net.prefix,
                )
                stack.callback(mount.remove)
                mount.start()
                self.hosts.append(mount)
            threads = [
                threading.Thread(target=self._work, args=(host, name))
                for host in range(self._count)
                for name in FILES
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = self._found()
            for mount in self.hosts:
                problems = mount.unmount()
                assert not problems, self._said("", f"{problems}")
                wrong = [w for w in ("a bug", "Traceback", "CRITICAL") if w in mount.log()]
                assert not wrong, self._said("", mount.log())
            self._check_failures()
            return self._explain(found)

    def _said(self, name: str, text: str) -> str:
        history = "\n".join(map(str, sorted(self.done.get(name, []), key=lambda d: d.ended)))
        return f"seed {self.seed}, {self._count} hosts, {name}: {text}\n{history}"

    # What the hosts do

    def _work(self, host: int, name: str) -> None:
        chance = random.Random(f"{self.seed}-{host}-{name}")
        path = self.hosts[host].path / name
        for _ in range(OPERATIONS):
            what = chance.choice(
                [*["write", "append", "read"] * 2, "unlink", "rename over", "rename away"]
            )
            size = 9_000_000 if chance.random() < 0.02 else chance.choice([10, 1000, 100_000])
            pause = chance.choice([0, 0, 0.005, 0.05])
            with self._lock:
                self._numbers += 1
                done = Done(self._numbers, what, host)
            try:
                self._do(done, path, size, pause)
            except OSError as exc:
                done.error = exc.errno or -1
            except AssertionError as exc:  # a read of a mixture
                done.error, done.what = -1, f"{what}: {exc}"
            done.ended = time.monotonic()
            with self._lock:
                self.done[name].append(done)
            time.sleep(pause)

    def _do(self, done: Done, path: Path, size: int, pause: float) -> None:
        other = path.with_name(f"{path.name}-{done.number:08d}")
        if done.what == "rename over":
            other.write_bytes(piece(done.number, size))
        if done.what in (*TAKING, "rename over"):
            done.closing = time.monotonic()
            if done.what == "unlink":
                os.unlink(path)
            elif done.what == "rename over":
                os.rename(other, path)
            else:
                os.rename(path, other)
            done.saw = time.monotonic()
            return
        if done.what == "read":
            done.saw = time.monotonic()
            done.content = pieces(path.read_bytes())
            return
        flags = os.O_TRUNC if done.what == "write" else os.O_APPEND
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            data = piece(done.number, size)
            assert os.write(fd, data) == len(data)
            done.saw = time.monotonic()
            time.sleep(pause)
        except BaseException:
            done.closing = time.monotonic()
            try:
                os.close(fd)
            except OSError:
                done.in_close = False  # the write has failed: nobody counts on it
            raise
        done.closing, done.in_close = time.monotonic(), True
        os.close(fd)

    # What explains it

    def _found(self) -> dict[str, bytes]:
        """What all hosts see in the end, when the deletions are done that no call waited for."""
        for mount in self.hosts:
            with suppress(OSError):  # one that failed is in the log
                sync(mount.path)
        found = {path.name: path.read_bytes() for path in self.hosts[0].path.iterdir()}
        for mount in self.hosts[1:]:
            again = {path.name: path.read_bytes() for path in mount.path.iterdir()}
            assert again == found, self._said("", "the hosts see different files in the end")
        return found

    def _check_failures(self) -> None:
        """Several deletions that failed may be told of at once."""
        for host, mount in enumerate(self.hosts):
            failed = mount.log().count(" was not deleted: ")
            every = [done for each in self.done.values() for done in each]
            told = [done for done in every if done.host == host and done.error == errno.EIO]
            assert len(told) <= failed, self._said(
                "", f"{told}, and {failed} deletions failed\n{mount.log()}"
            )

    def _explain(self, found: dict[str, bytes]) -> Counter[str]:
        figures: Counter[str] = Counter()
        for name in FILES:
            final = pieces(found[name]) if name in found else []
            copies = [
                pieces(data) for copy, data in found.items() if copy.startswith(name + CONFLICT)
            ]
            moved = {
                int(other[-8:]): pieces(data)
                for other, data in found.items()
                if re.fullmatch(rf"{name}-\d{{8}}", other)
            }
            for problem in self._problems(name, final, copies, moved):
                raise AssertionError(
                    self._said(name, f"{problem}\nfinal {final}, kept {copies}, moved {moved}")
                )
            figures["operations"] += len(self.done[name])
            figures["conflicts, both versions found"] += len(copies)
            figures["stored closes"] += sum(done.stored for done in self.done[name])
            figures["renames"] += sum(d.stored and "rename" in d.what for d in self.done[name])
            figures["reads"] += sum(done.what == "read" for done in self.done[name])
        return figures

    def _problems(
        self, name: str, final: list[int], copies: list[list[int]], moved: dict[int, list[int]]
    ) -> list[str]:
        by_number = {done.number: done for done in self.done[name]}
        stored = [done for done in by_number.values() if done.stored]
        replacing = [done for done in stored if done.what in REPLACING]
        allowed = {
            "read": {0, errno.ENOENT, errno.ESTALE},
            **{what: {0, errno.ENOENT, errno.ESTALE} for what in TAKING},
        }
        problems = [
            f"{done} is no error to be expected"
            for done in by_number.values()
            if done.error not in allowed.get(done.what, {0, errno.ESTALE, errno.EEXIST})
            and not (done.error == errno.EIO and done.what != "read" and not done.in_close)
        ]
        last = by_number[final[-1]] if final else None
        if last is not None:
            if not last.stored:
                problems.append(f"{last} was not stored, and is there")
            problems += [f"{d} came after {last}" for d in stored if d.closing > last.ended]
        elif stored:
            # something took the last one away
            ends = [d for d in stored if d.what in TAKING]
            if not any(all(d.closing <= u.ended for d in stored) for u in ends):
                problems.append("there is no file, and no unlink can have been the last")
        there = {number for content in (final, *moved.values()) for number in content}
        for done in stored:
            if done.what in TAKING or done.number in there:
                continue
            if not any(d.saw > done.closing for d in replacing if d is not done):
                problems.append(f"{done} was stored, is gone, and nobody replaced it")
        problems += self._problems_of_renames(by_number, moved)
        problems += self._problems_of_copies(name, by_number, copies)
        problems += self._problems_of_reads(by_number)
        return problems

    def _problems_of_renames(
        self, by_number: dict[int, Done], moved: dict[int, list[int]]
    ) -> list[str]:
        problems = []
        for done in by_number.values():
            content = moved.get(done.number)
            if done.what == "rename away" and done.stored:
                if not content or not by_number[content[-1]].stored:
                    problems.append(f"{done} has taken what nobody stored: {content}")
            elif done.what == "rename over" and done.error:
                if content != [done.number]:
                    problems.append(f"{done} failed, and its source is {content}")
            elif content is not None:
                problems.append(f"{done} has left {content}")
        return problems

    def _recovered(self, name: str) -> list[int]:
        """Whose appends are in recovery files, all of which are there after the unmount."""
        found = []
        for mount in self.hosts:
            for path in mount.spool_dir.glob("*.blobfs-recovery"):
                data, description = opened(path, mount.key_file)
                if description["name"] == name:
                    assert description["unknown"], f"{path}: it could have been a conflict copy"
                    found.append(last_piece(data))
        return found

    def _problems_of_copies(
        self, name: str, by_number: dict[int, Done], copies: list[list[int]]
    ) -> list[str]:
        problems = []
        kept = Counter([*(copy[-1] for copy in copies if copy), *self._recovered(name)])
        for done in by_number.values():
            refused = done.in_close and done.error == errno.ESTALE
            if refused and kept[done.number] != 1:
                problems.append(f"{done} has {kept[done.number]} conflict copies")
            if done.stored and kept[done.number]:
                problems.append(f"{done} was stored, and kept aside as well")
        return problems

    def _problems_of_reads(self, by_number: dict[int, Done]) -> list[str]:
        problems = []
        replacing = [
            d for d in by_number.values() if d.stored and d.what in (*REPLACING, "rename away")
        ]
        for read in by_number.values():
            if read.what != "read" or read.error or not read.content:
                continue
            last = by_number.get(read.content[-1])
            if last is None:
                problems.append(f"{read} has a piece that nobody wrote")
                continue
            problems += [
                f"{read} gave what {later} had replaced"
                for later in replacing
                if last.stored and last.ended < later.closing and later.ended < read.saw
            ]
        return problems


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + minutes * 60
    figures: Counter[str] = Counter()
    with service() as (azurite, folder):
        turn = 0
        while turn == 0 or time.monotonic() < until:
            figures += Round(azurite, folder, seed + turn, 2 + turn % 2).run()
            figures["rounds"] += 1
            turn += 1
            if turn % 10 == 0:
                say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
    say(", ".join(f"{number:,} {what}" for what, number in figures.items()))
