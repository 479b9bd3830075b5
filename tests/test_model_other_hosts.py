"""A mount does what a local directory does, also where another host changes what is in it.

The machine of `test_model.py`, and between its operations changes through the SDK: files put,
replaced, renamed, deleted, and given other attributes. The local directory gets the same change,
by a new file in the place of the old one. The mount asks the service each time (metadata_ttl=0),
so whatever operation comes next must see it, in listings of a few names a page.

What was open at that time is outdated. Reading it gives what it was, or ESTALE, never a mixture.
Writing is refused, by the write or by the close: the other host's version stays, and ours is kept
beside it, or, where parts of it were at the service alone, in a recovery file.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from blobfs.names import HIDDEN_PREFIX
from tests.azurite import Azurite
from tests.model import Failure, content, outcome
from tests.mounts import mounted
from tests.other_host import Given, OtherHost
from tests.sdk import AesKek, encrypting, write_key_file
from tests.test_model import (
    TARGETS,
    Comparison,
    anywhere,
    contents,
    existing,
    ids,
    modes,
    moments,
    paths,
    run_examples,
    sizes,
)

CONFLICT = ".blobfs-conflict-"
PATIENCE_S = 20  # for what happens after a close has returned

ESTALE = Failure("ESTALE")

numbers = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.outdated)))
owners = st.tuples(ids, ids).filter(lambda owner: -1 not in owner)
given = st.builds(Given, st.none() | modes, st.none() | owners, st.none() | moments)


@dataclass(frozen=True)
class Use:
    """What this side does with a file when another host comes: has it open, and writes to it."""

    access: int
    write: tuple[int, bytes] | None = None


large = st.builds(content, st.integers(0, 9), st.just(600_000))  # over what is kept in memory
writes = st.tuples(st.just(0) | sizes, contents)
uses = st.sampled_from([None, Use(os.O_RDONLY), Use(os.O_RDWR)]) | st.builds(
    Use, st.just(os.O_RDWR), writes
)


@dataclass
class Outdated:
    """A file that was open, on both sides, when another host replaced or deleted it.

    The local descriptors of one file are by then of a copy that has no name.
    """

    path: str
    version: str  # what the service had
    local: int
    mounted: int

    @property
    def inode(self) -> int:
        return os.fstat(self.local).st_ino

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(os.fstat(self.local).st_mode)

    @property
    def is_writable(self) -> bool:
        return fcntl.fcntl(self.local, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    def content(self) -> bytes:
        return Path(f"/proc/self/fd/{self.local}").read_bytes()


class WithAnotherHost(Comparison):
    """One example: two empty directories, treated the same, and another host that changes both."""

    encrypting: ContainerClient
    plain: ContainerClient
    expected: set[str]  # in the log, by what this machine has seen

    def __init__(self) -> None:
        super().__init__()
        self.large_left = 0  # they are for `test_model.py`
        self.other = OtherHost(self.encrypting, self.plain, self.mounted.root.name)
        self.outdated: dict[int, Outdated] = {}

    # What this mount does. Attributes of symbolic links are left out: right after a write they
    # wait a moment for the next, and there is no fsync to end that before another host comes.

    @rule(path=paths, uid=ids, gid=ids)
    def chown(self, path: str, uid: int, gid: int) -> None:
        if not (self.local.root / path).is_symlink():
            super().chown(path, uid, gid)

    @rule(path=paths, atime_ns=moments, mtime_ns=moments)
    def set_times(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        if not (self.local.root / path).is_symlink():
            super().set_times(path, atime_ns, mtime_ns)

    @rule()
    def mount_again(self) -> None:
        self._close(list(self.outdated))
        super().mount_again()

    def teardown(self) -> None:
        self._close(list(self.outdated))
        super().teardown()

    # What another host does

    @rule(path=existing | anywhere, data=contents | large, given=given, use=uses)
    def other_puts(self, path: str, data: bytes, given: Given, use: Use | None) -> None:
        def change() -> None:
            self.other.put(path, data, given.metadata(stat.S_IFREG))
            self._remove_locally(path)
            self._make_locally(path, data, given)

        if not self._is_directory(path):
            self._change([path], change, use)

    @rule(path=existing | anywhere, text=st.sampled_from(TARGETS), use=uses)
    def other_links(self, path: str, text: str, use: Use | None) -> None:
        def change() -> None:
            self.other.put(path, text.encode(), {"is_symlink": "true"})
            self._remove_locally(path)
            (self.local.root / path).symlink_to(text)
            os.lchown(self.local.root / path, 0, 0)

        if not self._is_directory(path):
            self._change([path], change, use)

    @rule(path=anywhere, name=st.sampled_from(["", "a", "b"]), given=given, data=contents)
    def other_makes_directory(self, path: str, name: str, given: Given, data: bytes) -> None:
        """With a marker, or by a file in it (`name`) alone; also in the place of a file."""

        def change() -> None:
            self.other.delete(path)
            self._remove_locally(path)
            directory = self.local.root / path
            directory.mkdir()
            os.chown(directory, 0, 0)
            directory.chmod(0o755)
            if name:
                self.other.put(f"{path}/{name}", data, {})
                self._make_locally(f"{path}/{name}", data, Given())
            else:
                self.other.mark(path, given.metadata(stat.S_IFDIR))
                given.apply(directory)

        if not self._is_directory(path):
            self._change([path], change, None)

    @rule(path=existing, use=uses)
    def other_deletes(self, path: str, use: Use | None) -> None:
        def change() -> None:
            self.other.delete(path)
            self._remove_locally(path)

        if self._exists(path):
            self._change([path], change, use)

    @rule(old=existing, new=anywhere, use=uses)
    def other_renames(self, old: str, new: str, use: Use | None) -> None:
        def change() -> None:
            self.other.rename(old, new)
            os.rename(self.local.root / old, self.local.root / new)

        is_below = f"{new}/".startswith(f"{old}/")
        directories = (self._is_directory(old) and self._exists(new)) or self._is_directory(new)
        if self._exists(old) and not is_below and not directories:
            self._change([old, new], change, use)

    @rule(path=existing, given=given, use=uses)
    def other_sets_attributes(self, path: str, given: Given, use: Use | None) -> None:
        """No conflict: open files stay what they are, and a write under way goes on top."""
        full = self.local.root / path
        if not self._exists(path) or full.is_symlink():
            return
        self._sync(path)
        if self._is_directory(path):  # whose time is that of its entries, where that is later
            given = Given(given.mode, given.owner)
        number = self._take_up(path, use)
        if use is not None and use.write is not None and number is not None:
            self.both("pwrite", number, *use.write)
            given = Given(given.mode, given.owner)  # the write is the later one
        self.other.set_metadata(path, given.metadata(stat.S_IFMT(full.stat().st_mode)))
        given.apply(full)
        if number is not None:
            self.both("fsync", number)
            self.compare_open(number)
        self.compare_path(path)

    def _change(self, changed: list[str], change: Callable[[], None], use: Use | None) -> None:
        """Run `change`, when nothing is unsaved on this side but what `use` writes."""
        for path in changed:
            self._sync(path)
            if "/" in path:  # what is in a directory that may be gone without this file
                self._sync(os.path.dirname(path))
        number = self._take_up(changed[0], use)
        self._outdate(self._open_at(changed))
        if use is None or use.write is None or number is None:
            change()
        else:
            file = self.outdated[number]
            self._write(file, *use.write)
            change()
            self._close(self._group(file), unsaved=use.write[1])
        for path in changed:
            self._drop_bare_directories(os.path.dirname(path))
        if use is not None:
            self.both("paths")

    def _take_up(self, path: str, use: Use | None) -> int | None:
        """Open the file, if it is one; the number."""
        full = self.local.root / path
        if use is None or full.is_symlink() or not full.is_file():
            return None
        number = self.opens
        self.opens += 1
        self.both("open", number, path, use.access, 0)
        return number

    # Outdated files

    @precondition(lambda self: self.outdated)
    @rule(number=numbers, offset=sizes, size=sizes, forget=st.booleans())
    def read_outdated(self, number: int, offset: int, size: int, forget: bool) -> None:
        file = self.outdated[number]
        if forget:
            os.posix_fadvise(file.mounted, 0, 0, os.POSIX_FADV_DONTNEED)
        expected = outcome(lambda: os.pread(file.local, size, offset))
        found = self._or_stale(lambda: os.pread(file.mounted, size, offset))
        if isinstance(found, bytes) and found and isinstance(expected, bytes):
            expected = expected[: len(found)]  # a read that fails on its way gives what it has
        if found not in (expected, ESTALE):
            raise AssertionError(f"{file.path}: reading gives neither what it was nor ESTALE")

    @precondition(lambda self: self.outdated)
    @rule(number=numbers)
    def look_at_outdated(self, number: int) -> None:
        file = self.outdated[number]
        found = self._or_stale(lambda: os.fstat(file.mounted).st_size)
        if file.is_file:
            assert found in (os.fstat(file.local).st_size, ESTALE), file.path

    @precondition(lambda self: self.outdated)
    @rule(number=numbers, offset=st.just(0) | sizes, data=contents)
    def write_to_outdated(self, number: int, offset: int, data: bytes) -> None:
        file = self.outdated[number]
        if not file.is_writable or self.other.version(file.path) == file.version:
            return  # or another host has put it back
        if self._write(file, offset, data):
            self._close(self._group(file), unsaved=data)

    @precondition(lambda self: self.outdated)
    @rule(number=numbers)
    def close_outdated(self, number: int) -> None:
        self._close([number])

    def _outdate(self, numbers: Iterable[int]) -> None:
        """Let what is open be of the past: on the local side by a copy without a name."""
        copies: dict[int, str] = {}
        descriptors = self.local.files
        for number in numbers:
            inode = os.fstat(descriptors[number]).st_ino
            path = next(p for p in self.local.paths() if self._inode(p) == inode)
            local = descriptors.pop(number)
            if not self._is_directory(path):
                if inode not in copies:
                    copies[inode] = f"{self.local.root}-copy-{number}"
                    shutil.copyfile(self.local.root / path, copies[inode])
                flags = fcntl.fcntl(local, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
                os.close(local)
                local = os.open(copies[inode], flags)
            mounted = self.mounted.files.pop(number)
            self.outdated[number] = Outdated(path, self.other.version(path), local, mounted)
        for copy in copies.values():
            os.unlink(copy)

    def _write(self, file: Outdated, offset: int, data: bytes) -> bool:
        """Whether it was accepted."""
        found = self._or_stale(lambda: os.pwrite(file.mounted, data, offset))
        if found == ESTALE:
            return False
        assert found == os.pwrite(file.local, data, offset)
        return bool(data)

    def _group(self, file: Outdated) -> list[int]:
        """All descriptors of the same file."""
        return [number for number, other in self.outdated.items() if other.inode == file.inode]

    def _close(self, numbers: list[int], *, unsaved: bytes = b"") -> None:
        """Close outdated files: when `unsaved` was written to them that must be kept."""
        files = [self.outdated.pop(number) for number in numbers]
        files.sort(key=lambda file: not file.is_writable)
        written = files[0].content() if unsaved else b""
        closes = [self._or_stale(partial(os.close, file.mounted)) for file in files]
        for file in files:
            os.close(file.local)
        if not unsaved:
            assert set(closes) <= {None}, f"{files[0].path}: nothing was written, nothing fails"
            return
        assert closes[0] == ESTALE, f"{files[0].path}: the close of an outdated file gives no error"
        kept = [path for path in self.mounted.paths() if CONFLICT in path]
        if not kept and written != unsaved:  # some of it was at the service alone
            self._take_recovery_file()
            return
        assert len(kept) == 1, f"{files[0].path} is to be kept once, and there are {kept}"
        if self.mounted.read(kept[0]) != written:
            raise AssertionError(f"{kept[0]} is not what was written")
        self._expect(r"ERROR .*was changed by someone else; this version of it is kept as")
        self.mounted.unlink(kept[0])

    def _take_recovery_file(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := list(self.mount.spool_dir.glob("*.blobfs-recovery"))) or (
            str(found[0]) not in self.mount.log()
        ):
            assert time.monotonic() < deadline, "neither a conflict copy nor a recovery file"
            time.sleep(0.01)
        assert len(found) == 1, found
        self._expect(r"ERROR .*not stored; its content is kept, encrypted")
        found[0].unlink()

    def _or_stale(self, operation: Callable[[], object]) -> object:
        found = outcome(operation)
        if found == ESTALE:
            self._expect(r"(INFO|ERROR) .*(Stale file handle|by someone else)")
        return found

    def _expect(self, pattern: str) -> None:
        if pattern not in self.expected:
            self.expected.add(pattern)
            self.mount.expect_log(pattern)

    # The local side

    def _exists(self, path: str) -> bool:
        return os.path.lexists(self.local.root / path)

    def _is_directory(self, path: str) -> bool:
        full = self.local.root / path
        return full.is_dir() and not full.is_symlink()

    def _inode(self, path: str) -> int:
        return (self.local.root / path).lstat().st_ino

    def _at_and_below(self, path: str) -> list[str]:
        return [p for p in self.local.paths() if f"{p}/".startswith(f"{path}/")]

    def _open_at(self, changed: list[str]) -> list[int]:
        inodes = {self._inode(p) for path in changed for p in self._at_and_below(path)}
        opened = self.local.files.items()
        return sorted(number for number, fd in opened if os.fstat(fd).st_ino in inodes)

    def _sync(self, path: str) -> None:
        """Leave nothing unsaved at the path and below."""
        for below in self._at_and_below(path):
            if not (self.local.root / below).is_symlink():
                self.both("sync", below)

    def _make_locally(self, path: str, data: bytes, given: Given) -> None:
        full = self.local.root / path
        full.write_bytes(data)
        os.chown(full, 0, 0)
        full.chmod(0o644)
        given.apply(full)

    def _remove_locally(self, path: str) -> None:
        full = self.local.root / path
        if self._is_directory(path):
            shutil.rmtree(full)
        else:
            full.unlink(missing_ok=True)

    def _drop_bare_directories(self, path: str) -> None:
        """A directory without a marker is gone with the last blob below it."""
        while path and not self.other.exists(path):
            (self.local.root / path).rmdir()
            path = os.path.dirname(path)


@pytest.mark.mount
@pytest.mark.parametrize(("list_page", "examples"), [(2, 2), (5, 1)])
def test_a_mount_does_what_a_local_directory_does_whatever_another_host_changes(
    azurite: Azurite, container: str, tmp_path: Path, list_page: int, examples: int
) -> None:
    kek = AesKek("shared", os.urandom(32))
    options = [f"list_page={list_page}", "metadata_ttl=0", "region_size=64K", "cache_size=64K"]
    key_file = write_key_file(tmp_path / "keys.json", kek)
    with mounted(azurite, container, tmp_path, *options, key_file=key_file) as mount:
        (tmp_path / "local").mkdir()
        machine = type(
            "Machine",
            (WithAnotherHost,),
            {
                "mount": mount,
                "scratch": tmp_path / "local",
                "encrypting": encrypting(azurite, container, kek),
                "plain": azurite.sdk(container),
                "expected": set(),
            },
        )
        run_examples(machine, examples)
    blobs = [blob.name for blob in azurite.sdk(container).list_blobs()]
    assert [name for name in blobs if HIDDEN_PREFIX in name] == []
