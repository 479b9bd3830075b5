"""A program that does at random what programs do to files, and journals what it was told.

    python -m tests.workload DIRECTORY JOURNAL SEED [DISK]

It works, in a directory of its own, until an operation fails. Where the mount's DISK is "small" a
write may find it full: the program then looks at what has become of the file, and goes on. See
`tests/journal.py`.
"""

import errno
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blobfs.fs.deleting import MOST, PAUSE, STREAK
from tests.journal import Entries, Entry, Writer, digest, entry_of, tree
from tests.marker import PLAINTEXT_MARKER

FILES = 14
SIZES = [0, 1, 200, 5000, 70_000, 300_000, 1_000_000]
LARGE = 9_000_000  # more than one block

PIECE = 128 * 1024
SECTOR = 4096

Move = tuple[str, str, Entry]
Find = Callable[[Callable[[], bytes]], bytes]


class Workload:
    """`entries` is what may be found of each path if the mount went now, the newest last: changed
    attributes need not be stored while the mount may put them off. What was deleted is not in it,
    but in the journal until it cannot come back: see `blobfs.fs.deleting`."""

    def __init__(
        self, root: Path, journal: Writer, seed: int, *, disk_is_small: bool = False
    ) -> None:
        self.disk_is_small = disk_is_small
        self.root = root
        self.journal = journal
        self.random = random.Random(seed)
        self.contents = {str(p.relative_to(root)): p.read_bytes() for p in _files(root)}
        self.entries: Entries = {name: [entry] for name, entry in tree(root).items()}
        self.recent: set[str] = set()  # whose attributes may be put off
        self.held: dict[str, tuple[int, bytearray]] = {}  # open, and with unsaved content
        self.torn: set[str] = set()  # of these, those of which a write has failed
        self.gone: list[int] = []  # descriptors of files without a name
        self.undone: deque[tuple[str, list[Entry]]] = deque()  # deletions that a kill may undo
        self.streaks: dict[str, tuple[int, float]] = {}  # of deletions, by directory
        self._numbers = 0

    def run(self) -> None:
        operations: list[Callable[[], None]] = [
            *[self.create] * 4,
            *[self.overwrite] * 3,
            *[self.append, self.patch, self.patch, self.truncate],
            *[self.chmod, self.touch, self.chmod_and_sync],
            *[self.rename, self.rename, self.replace, self.unlink],
            *[self.make_directory, self.remove_directory, self.rename_directory],
            *[self.link, self.hold, self.hold, self.write_held, self.write_held],
            *[self.sync_held, self.close_held, self.unlink_held],
        ]
        while True:
            operation = self.random.choice(operations)
            try:
                operation()
            except OSError as exc:
                held = {name: digest(data) for name, (_, data) in self.held.items()}
                known = {name: held[name] for name in held.keys() - self.torn}
                self.journal.failed(f"{operation.__name__}: {exc!r}", known)
                return

    # What there is

    def _files(self) -> list[str]:
        return sorted(self.contents.keys() - self.held.keys())

    def _some_file(self) -> str | None:
        files = self._files()
        return self.random.choice(files) if files else None

    def _directories(self) -> list[str]:
        kinds = {name: entries[-1] for name, entries in self.entries.items()}
        return sorted(name for name, entry in kinds.items() if entry and entry[0] == "d")

    def _new_name(self) -> str:
        self._numbers += 1
        name = f"{self.random.randrange(10**9)}-{self._numbers}"
        directories = self._directories()
        if directories and self.random.random() < 0.5:
            return f"{self.random.choice(directories)}/{name}"
        return name

    def _data(self, size: int) -> bytes:
        piece = PLAINTEXT_MARKER + self.random.randbytes(16)
        return (piece * (size // len(piece) + 1))[:size]

    def _size(self) -> int:
        return LARGE if self.random.random() < 0.03 else self.random.choice(SIZES)

    # How it is told

    def _do(
        self,
        what: str,
        may: Entries,
        action: Callable[[], None],
        after: Callable[[], Entries],
        moves: list[Move] | None = None,
    ) -> None:
        self.journal.begin(what, may, moves or [])
        action()
        now = after()
        self.journal.done(now)
        for name, entries in now.items():
            if entries[0] is None:
                self.entries.pop(name, None)
            else:
                self.entries[name] = entries

    def _deleted(self, *names: str) -> Entries:
        """Gone, but for what a kill may bring back: the last of a streak in one directory."""
        now: Entries = {name: [None] for name in names}
        for name in names:
            directory, at = os.path.dirname(name), time.monotonic()
            length, last = self.streaks.get(directory, (0, 0.0))
            length = length + 1 if at - last < 2 * PAUSE else 1  # two clocks measure the pause
            self.streaks[directory] = length, at
            if length > STREAK and (entries := self.entries.get(name)):
                self.undone.append((name, entries))
                now[name] = [None, *entries]
        while len(self.undone) > 2 * MOST:
            now[self.undone.popleft()[0]] = [None]
        return now

    def _now(self, *names: str) -> Callable[[], Entries]:
        """Stored in these entries alone; what was written to a file is known here."""

        def look() -> Entries:
            found: Entries = {}
            for name in names:
                found[name] = [entry_of(self.root / name, self.contents.get(name))]
                self.recent.add(name)
            return found

        return look

    def _store(
        self,
        name: str,
        content: bytes,
        action: Callable[[], None],
        between: Sequence[bytes] = (),
        *,
        is_sync: bool = False,
    ) -> None:
        """An operation that stores new content under a name, after what it is `between`. An fsync
        stores attributes that were put off even where the content is the old one."""
        may: Entries = {name: [["f", digest(content), None, None]]}
        old = self.contents.get(name, b"")
        left: list[Entry] = []

        def act() -> None:
            with self._space_for(old, *between, content) as find:
                action()
            found = self.contents[name] = find((self.root / name).read_bytes)
            if found == old and not is_sync:  # nothing need be stored, nor attributes with it
                left.extend(self.entries.get(name, []))

        def after() -> Entries:
            now = self._now(name)()
            return {name: [*left, *now[name]]}

        caller = sys._getframe(1).f_code.co_name
        self._do(f"{caller} {name}", may, act, after)

    @contextmanager
    def _space_for(self, *versions: bytes) -> Iterator[Find]:
        """What is written within may find the disk full. The value, called afterwards with a way
        to read the file, says what is in it: the last of the versions that it goes through, or as
        much of them as there was space for."""
        since = time.monotonic()
        is_full = False

        def find(read: Callable[[], bytes]) -> bytes:
            if not is_full:
                return versions[-1]
            found = read()
            check_torn(found, *versions)
            return found

        try:
            yield find
        except OSError as exc:
            if exc.errno != errno.ENOSPC or not self.disk_is_small:
                raise
            is_full = True
            self.journal.ran_out(since)

    @contextmanager
    def _file(self, name: str, flags: int) -> Iterator[int]:
        """The file, open for writing; the journal says when the close is all that is left."""
        fd = os.open(self.root / name, flags, 0o644)
        try:
            yield fd
            self.journal.handed_over()
        finally:
            os.close(fd)

    # Operations

    def create(self) -> None:
        if len(self.contents) >= FILES:
            self.unlink()
            return
        self._write(self._new_name())

    def overwrite(self) -> None:
        if (name := self._some_file()) is not None:
            self._write(name)

    def _write(self, name: str) -> None:
        content = self._data(self._size())

        def act() -> None:
            with self._file(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
                put(fd, content, 0)

        self._store(name, content, act)

    def append(self) -> None:
        if (name := self._some_file()) is not None:
            more = self._data(self.random.choice(SIZES))

            def act() -> None:
                with self._file(name, os.O_WRONLY | os.O_APPEND) as fd:
                    put(fd, more, len(self.contents[name]))

            self._store(name, self.contents[name] + more, act)

    def patch(self) -> None:
        if (name := self._some_file()) is None:
            return
        content = bytearray(self.contents[name])
        pieces, versions = [], []
        for _ in range(self.random.randint(1, 3)):
            offset = self.random.randint(0, len(content))
            data = self._data(self.random.choice(SIZES[1:-1]))
            content[offset : offset + len(data)] = data
            pieces.append((offset, data))
            versions.append(bytes(content))

        def act() -> None:
            with self._file(name, os.O_RDWR) as fd:
                for offset, data in pieces:
                    put(fd, data, offset)

        self._store(name, bytes(content), act, versions[:-1])

    def truncate(self) -> None:
        if (name := self._some_file()) is not None:
            size = self.random.randint(0, len(self.contents[name]) + 1000)
            content = self.contents[name][:size].ljust(size, b"\0")
            self._store(name, content, lambda: os.truncate(self.root / name, size))

    def _change(self, name: str, mode: int | None, mtime_ns: int | None) -> None:
        entries = self.entries[name]
        new = list(entries[-1] or [])
        if mode is not None:
            new[2] = mode
        if mtime_ns is not None:
            new[3] = mtime_ns

        def act() -> None:
            if mode is not None:
                os.chmod(self.root / name, mode)
            if mtime_ns is not None:
                os.utime(self.root / name, ns=(mtime_ns, mtime_ns))

        late = name in self.recent
        self.recent.add(name)
        after: Entries = {name: [*entries, new] if late else [new]}
        self._do(f"attributes of {name}", {name: [new]}, act, lambda: after)

    def chmod(self) -> None:
        if (name := self._some_file()) is not None:
            self._change(name, self.random.choice([0o600, 0o644, 0o755, 0o400]), None)

    def touch(self) -> None:
        if (name := self._some_file()) is not None:
            self._change(name, None, self.random.randrange(10**18))

    def chmod_and_sync(self) -> None:
        if (name := self._some_file()) is None:
            return
        new = list(self.entries[name][-1] or [])
        new[2] = self.random.choice([0o600, 0o640, 0o700])

        def act() -> None:
            with (self.root / name).open("rb") as file:
                os.fchmod(file.fileno(), new[2])
                os.fsync(file.fileno())

        self.recent.add(name)
        self._do(f"chmod and fsync {name}", {name: [new]}, act, lambda: {name: [new]})

    def _move(self, what: str, pairs: list[tuple[str, str]]) -> None:
        """The first pair is what is renamed, the others lie below it."""
        may: Entries = {}
        moves: list[Move] = []
        now: Entries = {}
        for old, new in pairs:
            # on the way to its place a file has any of the attributes that may be stored
            may[old] = [None]
            may[new] = [*self.entries[old]]
            entry = self.entries[old][-1]
            assert entry is not None
            moves.append((old, new, [*entry[:2], None, None]))
            now[old] = [None]
            now[new] = [entry]
        is_file = len(pairs) == 1 and pairs[0][0] in self.contents

        def act() -> None:
            os.rename(self.root / pairs[0][0], self.root / pairs[0][1])
            for old, new in pairs:
                if old in self.contents:
                    self.contents[new] = self.contents.pop(old)
                    self.recent.add(new)

        def after() -> Entries:
            return now | (self._deleted(pairs[0][0]) if is_file else {})

        self._do(f"{what} {pairs[0][0]} {pairs[0][1]}", may, act, after, moves)

    def rename(self) -> None:
        if (name := self._some_file()) is not None:
            self._move("rename", [(name, self._new_name())])

    def replace(self) -> None:
        files = self._files()
        if len(files) > 1:
            self._move("replace", [tuple(self.random.sample(files, 2))])  # type: ignore[list-item]

    def rename_directory(self) -> None:
        directories = [name for name in self._directories() if "/" not in name]
        if directories:
            old, new = self.random.choice(directories), f"dir-{self.random.randrange(10**9)}"
            below = [name for name in self.entries if name.startswith(f"{old}/")]
            self._move("rename", [(old, new), *((n, new + n.removeprefix(old)) for n in below)])

    def unlink(self) -> None:
        if (name := self._some_file()) is not None:
            self._remove(name)

    def _remove(self, name: str, *, is_open: bool = False) -> None:
        self._do(
            f"unlink {name}",
            {name: [None]},
            lambda: os.unlink(self.root / name),
            lambda: {name: [None]} if is_open else self._deleted(name),
        )
        self.contents.pop(name, None)

    def make_directory(self) -> None:
        if len(self._directories()) < 4:
            name = f"dir-{self.random.randrange(10**9)}"
            act = lambda: os.mkdir(self.root / name, 0o750)  # noqa: E731
            self._do(f"mkdir {name}", {name: [["d", "", 0o750, None]]}, act, self._now(name))

    def remove_directory(self) -> None:
        used = {os.path.dirname(name) for name in self.entries}
        if empty := sorted(set(self._directories()) - used):
            name = empty[0]
            act = lambda: os.rmdir(self.root / name)  # noqa: E731
            self._do(f"rmdir {name}", {name: [None]}, act, lambda: {name: [None]})

    def link(self) -> None:
        name, target = self._new_name(), f"to-{self.random.randrange(10**9)}"
        links = [n for n, entries in self.entries.items() if (entries[-1] or " ")[0] == "l"]
        if len(links) > 4:
            self._remove(self.random.choice(sorted(links)))
            return
        entry: Entry = ["l", target, None, None]
        act = lambda: os.symlink(target, self.root / name)  # noqa: E731
        self._do(f"symlink {name}", {name: [entry]}, act, lambda: {name: [entry]})

    # Files that stay open: until a close or fsync they are what they were

    def hold(self) -> None:
        if len(self.held) >= 3:
            self.close_held()
        elif self.random.random() < 0.5:
            name = self._some_file()
            if name is None or "/" in name:  # a directory may be renamed
                return
            fd = os.open(self.root / name, os.O_RDWR)
            self.held[name] = fd, bytearray(self.contents[name])
        else:
            name = f"held-{self.random.randrange(10**9)}"
            self._do(
                f"hold {name}",
                {},
                lambda: self._open_held(name),
                lambda: {name: [None]},
            )
            self.contents[name] = b""

    def _open_held(self, name: str) -> None:
        fd = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self.held[name] = fd, bytearray()

    def _some_held(self) -> str | None:
        return self.random.choice(sorted(self.held)) if self.held else None

    def write_held(self) -> None:
        if (name := self._some_held()) is not None:
            fd, content = self.held[name]
            offset = self.random.choice([len(content), self.random.randint(0, len(content))])
            data = self._data(self._size())
            wanted = bytearray(content)
            wanted[offset : offset + len(data)] = data
            self.torn.add(name)
            with self._space_for(bytes(content), bytes(wanted)) as find:
                put(fd, data, offset)
            self.torn.remove(name)
            found = find(lambda: os.pread(fd, len(wanted), 0))
            self.held[name] = fd, bytearray(found)

    def sync_held(self) -> None:
        if (name := self._some_held()) is not None:
            fd, content = self.held[name]
            self._store(name, bytes(content), lambda: self._last(os.fsync, fd), is_sync=True)

    def close_held(self) -> None:
        if (name := self._some_held()) is not None:
            fd, content = self.held.pop(name)
            self._store(name, bytes(content), lambda: self._last(os.close, fd))

    def _last(self, action: Callable[[int], None], fd: int) -> None:
        self.journal.handed_over()
        action(fd)

    def unlink_held(self) -> None:
        if len(self.gone) > 2:
            os.close(self.gone.pop(0))
        elif (name := self._some_held()) is not None:
            self.gone.append(self.held.pop(name)[0])
            self._remove(name, is_open=True)


def _files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]


def put(fd: int, data: bytes, offset: int) -> None:
    """Write all of it; a full disk may take a part."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view[:PIECE], offset)
        view, offset = view[written:], offset + written


def check_torn(found: bytes, *versions: bytes) -> None:
    """Raises AssertionError for bytes that no version nor a hole has at their place."""
    longest = max(map(len, versions))
    assert len(found) <= longest, f"{len(found)} bytes"
    versions = tuple(version.ljust(longest, b"\0") for version in (*versions, b""))
    for start in range(0, len(found), SECTOR):
        piece = found[start : start + SECTOR]
        places = [version[start : start + len(piece)] for version in versions]
        if piece not in places:
            assert all(b in bs for b, *bs in zip(piece, *places, strict=True)), f"at {start}"


def main(directory: str, journal: str, seed: str, disk: str = "") -> None:
    writer = Writer(Path(journal))
    Workload(Path(directory), writer, int(seed), disk_is_small=disk == "small").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
