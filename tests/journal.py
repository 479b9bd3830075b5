"""What a program was told about its files, kept where a crash of the mount does not reach.

Before an operation its writer notes what may be found if the operation is cut short, and after it
what must be found from then on. So at any moment the journal says, for each path, which entries
may be there. An entry is `[kind, content, mode, mtime_ns]` or None for nothing: kind "f", "l" or
"d", content a file's SHA-256 or a link's target, and None for a mode or time that only the mount
knew.
"""

import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

Entry = list[Any] | None
Entries = dict[str, list[Entry]]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry_of(path: Path, content: bytes | None = None) -> Entry:
    """What is there now; a file is read unless its content is given."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return ["l", os.readlink(path), None, None]
    if stat.S_ISDIR(status.st_mode):
        return ["d", "", mode, None]
    data = path.read_bytes() if content is None else content
    return ["f", digest(data), mode, status.st_mtime_ns]


def tree(root: Path) -> dict[str, Entry]:
    """Everything below `root`, by relative path."""
    return {str(path.relative_to(root)): entry_of(path) for path in sorted(root.rglob("*"))}


def fits(found: Entry, expected: Entry) -> bool:
    if found is None or expected is None:
        return found is expected
    return all(e is None or f == e for f, e in zip(found, expected, strict=True))


class Writer:
    """The side of the program; lines reach the file at once."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _line(self, **content: Any) -> None:
        os.write(self._fd, (json.dumps(content) + "\n").encode())

    def begin(self, what: str, may: Entries, moves: list[tuple[str, str, Entry]]) -> None:
        """`may` adds to what may be there. Of each move (old, new, entry) the entry is to be
        found at one of the two paths at every moment."""
        self._line(begin=what, may=may, moves=moves)

    def done(self, now: Entries) -> None:
        """`now` is all that may be at these paths."""
        self._line(now=now)

    def handed_over(self) -> None:
        """All bytes of the operation are written; the close is what is left of it."""
        self._line(handed_over=True)

    def ran_out(self, since: float) -> None:
        """There was no space for the operation, which began then."""
        self._line(ran_out=since)

    def failed(self, what: str, held: dict[str, str]) -> None:
        """The last line. `held` has the digests of contents written to files that are open."""
        self._line(failed=what, at=time.monotonic(), held=held)


class Journal:
    """The side of the test: reads what writers noted, over several crashes."""

    def __init__(self, entries: Entries | None = None) -> None:
        self.entries: Entries = dict(entries or {})
        self.pending = ""
        self.moves: list[tuple[str, str, Entry]] = []
        self.operations = 0
        self.failure: tuple[str, float] | None = None
        self.owed: dict[str, str] = {}
        """Path -> digest: written, and not stored by a close that was told to be well."""
        self.ran_out: list[float] = []

    def replay(self, path: Path) -> None:
        may: dict[str, Any] = {}
        for line in path.read_text().splitlines():
            note = json.loads(line)
            if "begin" in note:
                self.pending, self.moves = note["begin"], [tuple(move) for move in note["moves"]]
                may = note["may"]
                for name, entries in note["may"].items():
                    self.entries[name] = [*self.entries.get(name, [None]), *entries]
            elif "handed_over" in note:
                self.owed = {name: entries[0][1] for name, entries in may.items()}
            elif "ran_out" in note:
                self.ran_out.append(note["ran_out"])
            elif "now" in note:
                self.entries.update(note["now"])
                self.operations += 1
                self.pending, self.moves, self.owed = "", [], {}
            else:
                self.failure = note["failed"], note["at"]
                self.owed |= note["held"]

    def violations(self, found: dict[str, Entry]) -> list[str]:
        """What is there that must not be, or is not there that must."""
        wrong = [
            f"{name}: found {found.get(name)}, expected one of {self.entries.get(name, [None])}"
            for name in sorted(found.keys() | self.entries.keys())
            if not any(fits(found.get(name), e) for e in self.entries.get(name, [None]))
        ]
        wrong += [
            f"{old} -> {new}: neither name has {entry}"
            for old, new, entry in self.moves
            if not fits(found.get(new), entry) and not fits(found.get(old), entry)
        ]
        return [f"{line} (cut short: {self.pending or 'nothing'})" for line in wrong]
