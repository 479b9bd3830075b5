"""A program that does at random what programs do to files, and journals what it was told.

    python -m tests.workload DIRECTORY JOURNAL SEED

It works, in a directory of its own, until the mount goes. See `tests/journal.py`.
"""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.journal import Entries, Entry, Writer, digest, entry_of, tree
from tests.marker import PLAINTEXT_MARKER

FILES = 14
SIZES = [0, 1, 200, 5000, 70_000, 300_000, 1_000_000]
LARGE = 9_000_000  # more than one block

Move = tuple[str, str, Entry]


class Workload:
    """`entries` is what may be found of each path if the mount went now, the newest last: changed
    attributes need not be stored while the mount may put them off."""

    def __init__(self, root: Path, journal: Writer, seed: int) -> None:
        self.root = root
        self.journal = journal
        self.random = random.Random(seed)
        self.contents = {str(p.relative_to(root)): p.read_bytes() for p in _files(root)}
        self.entries: Entries = {name: [entry] for name, entry in tree(root).items()}
        self.recent: set[str] = set()  # whose attributes may be put off
        self.held: dict[str, tuple[int, bytearray]] = {}  # open, and with unsaved content
        self.gone: list[int] = []  # descriptors of files without a name
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
                self.journal.failed(f"{operation.__name__}: {exc!r}")
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
            if entries == [None]:
                self.entries.pop(name, None)
            else:
                self.entries[name] = entries

    def _now(self, *names: str) -> Callable[[], Entries]:
        """Stored in these entries alone; what was written to a file is known here."""

        def look() -> Entries:
            found: Entries = {}
            for name in names:
                found[name] = [entry_of(self.root / name, self.contents.get(name))]
                self.recent.add(name)
            return found

        return look

    def _store(self, name: str, content: bytes, action: Callable[[], None]) -> None:
        """An operation that stores new content under a name."""
        may: Entries = {name: [["f", digest(content), None, None]]}

        def act() -> None:
            action()
            self.contents[name] = content

        caller = sys._getframe(1).f_code.co_name
        self._do(f"{caller} {name}", may, act, self._now(name))

    # Operations

    def create(self) -> None:
        if len(self.contents) >= FILES:
            self.unlink()
            return
        name, content = self._new_name(), self._data(self._size())
        self._store(name, content, lambda: _write(self.root / name, content))

    def overwrite(self) -> None:
        if (name := self._some_file()) is not None:
            content = self._data(self._size())
            self._store(name, content, lambda: _write(self.root / name, content))

    def append(self) -> None:
        if (name := self._some_file()) is not None:
            more = self._data(self.random.choice(SIZES))

            def act() -> None:
                with (self.root / name).open("ab") as file:
                    file.write(more)

            self._store(name, self.contents[name] + more, act)

    def patch(self) -> None:
        if (name := self._some_file()) is None:
            return
        content = bytearray(self.contents[name])
        pieces = []
        for _ in range(self.random.randint(1, 3)):
            offset = self.random.randint(0, len(content))
            data = self._data(self.random.choice(SIZES[1:-1]))
            content[offset : offset + len(data)] = data
            pieces.append((offset, data))

        def act() -> None:
            with (self.root / name).open("r+b", buffering=0) as file:
                for offset, data in pieces:
                    os.pwrite(file.fileno(), data, offset)

        self._store(name, bytes(content), act)

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

        def act() -> None:
            os.rename(self.root / pairs[0][0], self.root / pairs[0][1])
            for old, new in pairs:
                if old in self.contents:
                    self.contents[new] = self.contents.pop(old)
                    self.recent.add(new)

        self._do(f"{what} {pairs[0][0]} {pairs[0][1]}", may, act, lambda: now, moves)

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

    def _remove(self, name: str) -> None:
        self._do(
            f"unlink {name}",
            {name: [None]},
            lambda: os.unlink(self.root / name),
            lambda: {name: [None]},
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
            os.pwrite(fd, data, offset)
            content[offset : offset + len(data)] = data

    def sync_held(self) -> None:
        if (name := self._some_held()) is not None:
            fd, content = self.held[name]
            self._store(name, bytes(content), lambda: os.fsync(fd))

    def close_held(self) -> None:
        if (name := self._some_held()) is not None:
            fd, content = self.held.pop(name)
            self._store(name, bytes(content), lambda: os.close(fd))

    def unlink_held(self) -> None:
        if len(self.gone) > 2:
            os.close(self.gone.pop(0))
        elif (name := self._some_held()) is not None:
            self.gone.append(self.held.pop(name)[0])
            self._remove(name)


def _files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view[: 128 * 1024]) :]


def main(directory: str, journal: str, seed: str) -> None:
    Workload(Path(directory), Writer(Path(journal)), int(seed)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
