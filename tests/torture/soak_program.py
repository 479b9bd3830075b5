"""One of the programs of `tests/torture/soak.py`: works in a directory of its own and checks it.

    python -m tests.torture.soak_program MOUNT NUMBER SEED SECONDS NOTES RESULT

It keeps in mind what it wrote and compares what it reads, stats and lists with that. NOTES holds
what it is doing and since when; RESULT, at the end, what must be found. It ends at the first error.
"""

import json
import os
import random
import stat
import sys
import time
from collections import Counter
from pathlib import Path

from tests.journal import digest
from tests.marker import PLAINTEXT_MARKER

SHARED = {"shared/small": 1000, "shared/middle": 300_000, "shared/large": 12_000_000}
LINE = 64
DIRECTORIES = ("", "a", "b", "c")
MOST_FILES = 20


def shared_content(offset: int, size: int) -> bytes:
    """Of every shared file, so that any range of it is known without having it."""
    first, last = offset // LINE, (offset + size + LINE - 1) // LINE
    lines = b"".join(PLAINTEXT_MARKER + b"%027d\n" % number for number in range(first, last))
    return lines[offset - first * LINE :][:size]


class Program:
    def __init__(self, mount: Path, number: int, seed: int, notes: Path) -> None:
        self.mount = mount
        self.root = mount / f"program-{number}"
        self.random = random.Random(f"{seed}-{number}")
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self.directories = {""}
        self.figures: Counter[str] = Counter()
        self.slowest = 0.0
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT, 0o600)
        self._names = 0

    def run(self, seconds: float) -> None:
        self.root.mkdir()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            operation = self.random.choice(OPERATIONS)
            began = time.monotonic()
            note = {
                "operation": operation.__name__,
                "since": began,
                "done": self.figures.total(),
            }
            os.pwrite(self._notes, json.dumps(note).encode().ljust(120), 0)
            operation(self)
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.figures[operation.__name__] += 1

    def result(self) -> dict[str, object]:
        return {
            "files": {
                name: [digest(content), self.modes[name]] for name, content in self.files.items()
            },
            "directories": sorted(self.directories - {""}),
            "figures": self.figures,
            "slowest": self.slowest,
        }

    def _size(self) -> int:
        usual = self.random.choice([0, 10, 4096, 100_000])
        return 9_000_000 if self.random.random() < 0.005 else usual

    def _data(self) -> bytes:
        size = self._size()
        return (PLAINTEXT_MARKER + self.random.randbytes(size))[:size]

    def _new_name(self) -> str:
        self._names += 1
        return os.path.join(self.random.choice(sorted(self.directories)), f"file {self._names}")

    def _some_file(self) -> str:
        if not self.files:
            self.create()
        return self.random.choice(sorted(self.files))

    def create(self) -> None:
        if len(self.files) >= MOST_FILES:
            self.unlink()
        name, content = self._new_name(), self._data()
        fd = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        self.files[name], self.modes[name] = content, 0o644

    def overwrite(self) -> None:
        name, content = self._some_file(), self._data()
        (self.root / name).write_bytes(content)
        self.files[name] = content

    def append(self) -> None:
        name = self._some_file()
        more = self._data()[:100_000]
        if len(self.files[name]) > 10_000_000:
            return self.overwrite()
        with (self.root / name).open("ab") as file:
            file.write(more)
        self.files[name] += more

    def read(self) -> None:
        name = self._some_file()
        found, expected = (self.root / name).read_bytes(), self.files[name]
        assert found == expected, f"{name}: {len(found)} bytes, not the {len(expected)} written"

    def read_range(self) -> None:
        name = self._some_file()
        offset = self.random.randint(0, len(self.files[name]))
        expected = self.files[name][offset:][:50_000]
        with (self.root / name).open("rb") as file:
            found = os.pread(file.fileno(), 50_000, offset)
        assert found == expected, f"{name}: wrong bytes at {offset}"

    def read_shared(self) -> None:
        name = self.random.choice(sorted(SHARED))
        offset = self.random.randrange(SHARED[name])
        size = min(self.random.choice([100, 70_000, 300_000]), SHARED[name] - offset)
        with (self.mount / name).open("rb") as file:
            found = os.pread(file.fileno(), size, offset)
        assert found == shared_content(offset, size), f"{name}: wrong bytes at {offset}"

    def rename(self) -> None:
        """To a new name, or over another file."""
        old = self._some_file()
        new = self._new_name() if self.random.random() < 0.7 else self._some_file()
        os.rename(self.root / old, self.root / new)
        content, mode = self.files.pop(old), self.modes.pop(old)
        self.files[new], self.modes[new] = content, mode

    def chmod(self) -> None:
        name, mode = self._some_file(), self.random.choice([0o600, 0o640, 0o644, 0o755])
        os.chmod(self.root / name, mode)
        self.modes[name] = mode

    def stat(self) -> None:
        name = self._some_file()
        status = os.stat(self.root / name)
        found = status.st_size, stat.S_IMODE(status.st_mode)
        expected = len(self.files[name]), self.modes[name]
        assert found == expected, f"{name}: stat says {found}, not {expected}"

    def list(self) -> None:
        directory = self.random.choice(sorted(self.directories))
        expected = [
            os.path.basename(name)
            for name in [*self.files, *(self.directories - {""})]
            if os.path.dirname(name) == directory
        ]
        found = sorted(os.listdir(self.root / directory))
        assert found == sorted(expected), f"{directory!r}: {found}, not {sorted(expected)}"

    def unlink(self) -> None:
        name = self._some_file()
        os.unlink(self.root / name)
        del self.files[name], self.modes[name]

    def mkdir_or_rmdir(self) -> None:
        directory = self.random.choice(DIRECTORIES[1:])
        if directory not in self.directories:
            os.mkdir(self.root / directory)
            self.directories.add(directory)
            return
        for name in [name for name in self.files if os.path.dirname(name) == directory]:
            os.unlink(self.root / name)
            del self.files[name], self.modes[name]
        os.rmdir(self.root / directory)
        self.directories.remove(directory)


OPERATIONS = [
    *(Program.create, Program.overwrite, Program.append, Program.read, Program.read_range),
    *(Program.read_shared, Program.rename, Program.chmod, Program.stat, Program.list),
    *(Program.unlink, Program.mkdir_or_rmdir, Program.create, Program.read_shared),
]


def main(mount: str, number: str, seed: str, seconds: str, notes: str, result: str) -> None:
    program = Program(Path(mount), int(number), int(seed), Path(notes))
    program.run(float(seconds))
    Path(result).write_text(json.dumps(program.result()))


if __name__ == "__main__":
    main(*sys.argv[1:])
