"""A mount does what a local directory does.

Random operations go to both; whatever a program can see must be the same on both: every errno,
and names, sizes, contents, modes, owners, targets, extended attributes and times (where they were
set; a time that the clock gave must be the clock's on both). What SEMANTICS excepts is not tried:
names that no blob can have, hard links, and the times of a directory whose entries changed.

The example that hypothesis prints when it fails is a program that can be run again.
"""

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from blobfs.names import HIDDEN_PREFIX
from tests.azurite import Azurite
from tests.model import RENAME_NOREPLACE, Failure, Look, Side, content, forget_names, outcome
from tests.mounts import Mount, fstypes_at, mounted

# Neighbours in Azure's order of names, and one that is not ASCII.
NAMES = ["a", "a-b", "a.b", "b", "é"]
TARGETS = ["a", "b", "a/b", "nowhere", ".", "x" * 255 + "/" + "y" * 255]
ATTRIBUTES = ["user.one", "user.Two.é", "user.azure.metadata.key"]

LARGE = 9 * 1024 * 1024  # over what one Put Blob takes

_SECOND = 1_000_000_000


def _existing(machine: "Comparison") -> st.SearchStrategy[str]:
    paths = machine.local.paths()
    return st.sampled_from(paths) if paths else st.just("a")


def _anywhere(machine: "Comparison") -> st.SearchStrategy[str]:
    """A name in a directory that is there, taken or free."""
    directories = ["", *machine.local.directories()]
    return st.builds(os.path.join, st.sampled_from(directories), st.sampled_from(NAMES))


existing = st.runner().flatmap(_existing)
anywhere = st.runner().flatmap(_anywhere)
paths = existing | anywhere | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
opened = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.local.files)))

boundaries = st.sampled_from([4096, 64 * 1024, 256 * 1024]).flatmap(
    lambda size: st.integers(size - 2, size + 2)
)
sizes = st.integers(0, 100) | st.integers(0, 200_000) | boundaries
contents = st.builds(content, st.integers(0, 9), sizes)
modes = st.sampled_from([0o600, 0o644, 0o755, 0o400, 0o000, 0o1777, 0o2775, 0o2644, 0o6711])
ids = st.sampled_from([0, 1000, 65534, -1])
moments = st.sampled_from([0, 1, -1, 999_999_999, -_SECOND - 1, 1_234_567_890_123_456_789])
access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
extras = st.sets(
    st.sampled_from([os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW])
).map(sum)


class Comparison(RuleBasedStateMachine):
    """One example: two empty directories, treated the same."""

    mount: Mount
    scratch: Path
    count = 0

    def __init__(self) -> None:
        super().__init__()
        if not fstypes_at(self.mount.path):
            self.mount.start()  # an example before this one could not mount again
        type(self).count += 1
        name = f"example-{self.count}"
        self.started_ns = time.time_ns() - _SECOND  # the kernel's clock for files may be behind
        self.local = Side(self.scratch / name, self.started_ns)
        self.mounted = Side(self.mount.path / name, self.started_ns)
        for side in (self.local, self.mounted):
            side.root.mkdir()
        self.opens = 0
        self.large_left = 1

    # Comparing

    def both(self, operation: str, *args: object) -> object:
        """Do it on both sides; the outcome, which must be the same."""
        expected = outcome(lambda: getattr(self.local, operation)(*args))
        found = outcome(lambda: getattr(self.mounted, operation)(*args))
        if expected != found:  # not by assert: pytest would compare megabytes
            raise AssertionError(
                f"{operation}: a local file system gives {_brief(expected)}, "
                f"the mount {_brief(found)}"
            )
        return expected

    def compare_path(self, path: str) -> None:
        expected = outcome(lambda: self.local.look(path))
        found = outcome(lambda: self.mounted.look(path))
        if isinstance(expected, Look) and isinstance(found, Look) and _entries_changed(expected):
            found = replace(found, mtime_ns=None)
        assert found == expected, path

    def compare_all(self) -> None:
        self.both("paths")
        for path in self.local.paths():
            self.compare_path(path)
            if stat.S_ISREG((self.local.root / path).lstat().st_mode):
                self.both("read", path)
        for number in self.local.files:
            self.compare_open(number)

    def compare_open(self, number: int) -> None:
        status = os.fstat(self.local.files[number])
        if stat.S_ISDIR(status.st_mode):
            return
        self.both("look_open", number)
        self.both("pread", number, 0, status.st_size + 1)

    # Names

    @rule(path=anywhere, mode=modes)
    def mkdir(self, path: str, mode: int) -> None:
        self.both("mkdir", path, mode)
        self.compare_path(path)

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both("rmdir", path)
        self.compare_path(path)

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.both("unlink", path)
        self.compare_path(path)

    @rule(old=existing, new=paths, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.both("rename", old, new, flags)
        self.compare_path(old)
        self.compare_path(new)

    @rule(text=st.sampled_from(TARGETS), path=anywhere)
    def symlink(self, text: str, path: str) -> None:
        self.both("symlink", text, path)
        self.compare_path(path)

    @rule(path=paths)
    def list_directory(self, path: str) -> None:
        self.both("names", path)

    # Attributes

    @rule(path=paths, mode=modes)
    def chmod(self, path: str, mode: int) -> None:
        self.both("chmod", path, mode)
        self.compare_path(path)

    @rule(path=paths, uid=ids, gid=ids)
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both("chown", path, uid, gid)
        self.compare_path(path)

    @rule(path=paths, atime_ns=moments, mtime_ns=moments)
    def set_times(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        if not isinstance(self.both("utime", path, atime_ns, mtime_ns), Failure):
            self.both("times", path)

    @rule(
        path=paths,
        name=st.sampled_from(ATTRIBUTES),
        value=st.sampled_from([b"1", b"two", b"3" * 300]),
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )
    def set_attribute(self, path: str, name: str, value: bytes, flags: int) -> None:
        self.both("set_xattr", path, name, value, flags)
        self.compare_path(path)

    @rule(path=paths, name=st.sampled_from(ATTRIBUTES))
    def remove_attribute(self, path: str, name: str) -> None:
        self.both("remove_xattr", path, name)
        self.compare_path(path)

    # Whole files

    @rule(path=anywhere, data=contents)
    def write_file(self, path: str, data: bytes) -> None:
        self.both("write", path, data)
        self.compare_path(path)

    @rule(path=paths, data=contents)
    def append_to_file(self, path: str, data: bytes) -> None:
        self.both("append", path, data)
        self.compare_path(path)

    @rule(path=paths, size=sizes)
    def truncate_file(self, path: str, size: int) -> None:
        if self._size_of(path) != size:  # Linux leaves the times to the file system then
            self.both("truncate", path, size)
            self.compare_path(path)

    def _size_of(self, path: str) -> object:
        return outcome(lambda: (self.local.root / path).stat().st_size)

    @rule(path=paths)
    def read_file(self, path: str) -> None:
        self.both("read", path)

    @precondition(lambda self: self.large_left)
    @rule(path=anywhere, size=st.integers(LARGE - 1, LARGE + 1), hole=st.booleans())
    def write_large_file(self, path: str, size: int, hole: bool) -> None:
        self.large_left -= 1
        if hole:
            self.both("append", path, b"")
            self.both("truncate", path, size)
        else:
            self.both("write", path, content(size, size))
        self.compare_path(path)

    # Open files

    @precondition(lambda self: len(self.local.files) < 5)
    @rule(path=paths, mode=access, extra=extras, permissions=modes)
    def open_file(self, path: str, mode: int, extra: int, permissions: int) -> None:
        self.both("open", self.opens, path, mode | extra, permissions)
        self.opens += 1

    @precondition(lambda self: self.local.files)
    @rule(number=opened)
    def close(self, number: int) -> None:
        self.both("close", number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened)
    def close_duplicate(self, number: int) -> None:
        self.both("close_duplicate", number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, offset=sizes, data=contents)
    def write_at(self, number: int, offset: int, data: bytes) -> None:
        self.both("pwrite", number, offset, data)
        self.compare_open(number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, data=contents)
    def write_on(self, number: int, data: bytes) -> None:
        self.both("write_on", number, data)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, offset=sizes, whence=st.sampled_from([os.SEEK_SET, os.SEEK_END]))
    def seek(self, number: int, offset: int, whence: int) -> None:
        if not stat.S_ISDIR(os.fstat(self.local.files[number]).st_mode):
            self.both("seek", number, offset, whence)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, offset=sizes, size=sizes)
    def read_at(self, number: int, offset: int, size: int) -> None:
        self.both("pread", number, offset, size)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, size=sizes)
    def truncate_open(self, number: int, size: int) -> None:
        self.both("truncate_open", number, size)
        self.compare_open(number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened)
    def fsync(self, number: int) -> None:
        self.both("fsync", number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, mode=modes)
    def chmod_open(self, number: int, mode: int) -> None:
        self.both("chmod_open", number, mode)
        self.compare_open(number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, atime_ns=moments, mtime_ns=moments)
    def set_times_open(self, number: int, atime_ns: int, mtime_ns: int) -> None:
        self.both("utime_open", number, atime_ns, mtime_ns)
        self.compare_open(number)

    @precondition(lambda self: self.local.files)
    @rule(number=opened, offset=sizes, data=contents)
    def write_by_mapping(self, number: int, offset: int, data: bytes) -> None:
        if os.fstat(self.local.files[number]).st_size > offset:
            self.both("map_and_write", number, offset, data)
            self.compare_open(number)

    # Caches

    @rule(path=existing)
    def forget_pages(self, path: str) -> None:
        self.both("forget_pages", path)

    @rule()
    def forget_names(self) -> None:
        forget_names(self.mount.path)

    @rule()
    def compare(self) -> None:
        self.compare_all()

    @rule()
    def mount_again(self) -> None:
        self.both("close_all")
        self.mount.remount()
        self.compare_all()

    def teardown(self) -> None:
        self.compare_all()
        self.both("close_all")
        self.compare_all()
        forget_names(self.mount.path)
        self.compare_all()


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}… ({len(text)} characters)"


def _entries_changed(directory: Look) -> bool:
    return stat.S_ISDIR(directory.mode) and directory.mtime_ns is None


def run_examples(machine: type[Comparison], examples: int) -> None:
    """So many; 100 with BLOBFS_HYPOTHESIS=long."""
    is_long = settings().max_examples > 100
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100 if is_long else examples,
            stateful_step_count=50,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.mount
@pytest.mark.parametrize(
    ("examples", "options"),
    [
        pytest.param(6, [], id="by default"),
        pytest.param(2, ["metadata_ttl=0", "buffer_size=1M", "cache_size=1M"], id="uncached"),
        pytest.param(4, ["protocol=1.0"], id="protocol 1.0"),
    ],
)
def test_a_mount_does_what_a_local_directory_does(
    azurite: Azurite, container: str, tmp_path: Path, examples: int, options: list[str]
) -> None:
    with mounted(azurite, container, tmp_path, *options) as mount:
        if "protocol=1.0" in options:
            mount.expect_log("cannot detect tampering")
        (mount.path / "first").write_bytes(b"read")
        assert (mount.path / "first").read_bytes() == b"read"
        (tmp_path / "local").mkdir()
        machine = type("Machine", (Comparison,), {"mount": mount, "scratch": tmp_path / "local"})
        run_examples(machine, examples)
    blobs = [blob.name for blob in azurite.sdk(container).list_blobs()]
    assert [name for name in blobs if HIDDEN_PREFIX in name] == []
