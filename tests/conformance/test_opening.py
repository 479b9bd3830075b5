"""open(2): its flags, who may, and what each type of file says to it."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.world import (
    GROUP,
    OTHER,
    USER,
    acting_as,
    make,
    mode_of,
    moves,
    outcome,
    refused,
    unchanged,
)
from tests.descriptors import opened

ACCESS = {os.O_RDONLY: 4, os.O_WRONLY: 2, os.O_RDWR: 6}


@pytest.mark.parametrize(
    ("shift", "owner", "group", "groups"),
    [
        (6, USER, GROUP, ()),
        (3, OTHER, USER, ()),
        (3, OTHER, GROUP, (GROUP,)),
        (0, OTHER, GROUP, ()),
    ],
    ids=["owner", "group", "supplementary-group", "others"],
)
@pytest.mark.parametrize("kind", ["file", "fifo", "directory"])
def test_who_may_read_and_write(
    here: Path, kind: str, shift: int, owner: int, group: int, groups: tuple[int, ...]
) -> None:
    path = make(kind, here / kind, owner=owner, group=group)
    for bits in range(8):
        path.chmod((bits << shift) | (0o777 & ~(7 << shift)))  # the other classes may
        for access, needed in ACCESS.items():
            if (access, kind) in ((os.O_WRONLY, "fifo"), (os.O_RDWR, "directory")):
                continue
            if (access, kind) == (os.O_WRONLY, "directory"):
                continue
            with acting_as(USER, *groups):
                found = outcome(lambda f=access: os.open(path, f | os.O_NONBLOCK))
            assert found == ("ok" if bits & needed == needed else "EACCES"), (bits, needed)


def test_root_may_read_and_write_whatever_the_mode(here: Path) -> None:
    path = make("file", here / "file", 0, owner=USER)
    for access in ACCESS:
        os.close(os.open(path, access))


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_emptying_needs_write_permission(here: Path, flags: int) -> None:
    path = make("file", here / "file", 0o444, owner=USER)
    with unchanged(path), acting_as(USER), refused(errno.EACCES):
        os.open(path, flags | os.O_TRUNC)


# What is behind a device is not the file system's, and the symlink leads nowhere.
OPENED_KINDS = ("file", "directory", "fifo", "socket", "symlink")


@pytest.mark.parametrize(
    ("flags", "results"),
    [
        (os.O_RDONLY, "ok ok ok ENXIO ENOENT"),
        (os.O_WRONLY, "ok EISDIR ENXIO ENXIO ENOENT"),
        (os.O_RDWR, "ok EISDIR ok ENXIO ENOENT"),
        (os.O_RDONLY | os.O_TRUNC, "ok EISDIR ok ENXIO ENOENT"),
        (os.O_RDONLY | os.O_CREAT, "ok EISDIR ok ENXIO ok"),
        (os.O_RDWR | os.O_CREAT, "ok EISDIR ok ENXIO ok"),
        (os.O_RDWR | os.O_CREAT | os.O_EXCL, "EEXIST EEXIST EEXIST EEXIST EEXIST"),
        (os.O_RDONLY | os.O_DIRECTORY, "ENOTDIR ok ENOTDIR ENOTDIR ENOENT"),
        (os.O_RDWR | os.O_DIRECTORY, "ENOTDIR EISDIR ENOTDIR ENOTDIR ENOENT"),
        (os.O_RDONLY | os.O_NOFOLLOW, "ok ok ok ENXIO ELOOP"),
        (os.O_WRONLY | os.O_NOFOLLOW | os.O_CREAT, "ok EISDIR ENXIO ENXIO ELOOP"),
        (os.O_NOFOLLOW | os.O_DIRECTORY, "ENOTDIR ok ENOTDIR ENOTDIR ENOTDIR"),
        (os.O_PATH | os.O_NOFOLLOW, "ok ok ok ok ok"),
        (os.O_ACCMODE, "ok EISDIR EINVAL ENXIO ENOENT"),
    ],
    ids=str,
)
def test_flags_on_every_kind(here: Path, flags: int, results: str) -> None:
    paths = {kind: make(kind, here / kind) for kind in OPENED_KINDS}
    found = {
        kind: outcome(lambda p=path: os.open(p, flags | os.O_NONBLOCK))
        for kind, path in paths.items()
    }
    assert found == dict(zip(OPENED_KINDS, results.split(), strict=True))


def test_making_a_file_through_a_symlink_makes_the_target(here: Path) -> None:
    link = make("symlink", here / "link")
    with unchanged(link), opened(link, os.O_CREAT | os.O_WRONLY, 0o640):
        pass
    assert mode_of(here / "nowhere") == 0o640
    assert sorted(os.listdir(here)) == ["link", "nowhere"]


def test_opening_what_is_there_with_o_creat_changes_nothing(here: Path) -> None:
    path = make("file", here / "file", 0o600)
    path.write_bytes(b"content")
    with unchanged(here, path), opened(path, os.O_CREAT | os.O_RDWR, 0o777) as fd:
        assert os.read(fd, 9) == b"content"


def test_emptying_moves_the_files_times_and_not_the_directorys(here: Path) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    with unchanged(here), moves("mtime ctime", path):
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0


def test_a_file_is_written_by_whoever_made_it_whatever_its_mode(here: Path) -> None:
    path = here / "file"
    with acting_as(USER):
        with opened(path, os.O_CREAT | os.O_RDWR, 0) as fd:
            os.write(fd, b"content")
            with refused(errno.EACCES):
                os.open(path, os.O_RDONLY)
        path.chmod(0o400)
        assert path.read_bytes() == b"content"


def test_an_open_file_stays_open_when_its_mode_changes(here: Path) -> None:
    path = make("file", here / "file", 0o600, owner=USER)
    with acting_as(USER), opened(path, os.O_RDWR) as fd:
        path.chmod(0)
        os.write(fd, b"content")
        assert os.pread(fd, 9, 0) == b"content"


def test_the_access_mode_holds_for_the_descriptor(here: Path) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    for flags, read, written in (
        (os.O_RDONLY, "ok", "EBADF"),
        (os.O_WRONLY, "EBADF", "ok"),
        (os.O_RDWR, "ok", "ok"),
        (os.O_ACCMODE, "EBADF", "EBADF"),
    ):
        with opened(path, flags) as fd:
            assert outcome(lambda: os.pread(fd, 1, 0) and None) == read
            assert outcome(lambda: os.pwrite(fd, b"c", 0) and None) == written
    assert path.read_bytes() == b"content"


def test_appends_go_to_the_end(here: Path) -> None:
    path = make("file", here / "file")
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd, opened(path, os.O_WRONLY) as other:
        os.write(fd, b"one")
        os.pwrite(other, b"two", 3)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"three")
    assert path.read_bytes() == b"onetwothree"


def test_a_fifo_carries_bytes(here: Path) -> None:
    path = make("fifo", here / "fifo")
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as reader, opened(path, os.O_WRONLY) as writer:
        os.write(writer, b"content")
        assert os.read(reader, 9) == b"content"
    assert path.stat().st_size == 0


def test_a_program_that_runs_is_not_written(here: Path) -> None:
    program = here / "program"
    shutil.copyfile(shutil.which("cat") or "", program)
    program.chmod(0o755)
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"  # by now it runs
        calls: dict[str, Callable[[], object]] = {
            "write": lambda: os.open(program, os.O_WRONLY),
            "both": lambda: os.open(program, os.O_RDWR),
            "empty": lambda: os.open(program, os.O_WRONLY | os.O_TRUNC),
            "truncate": lambda: os.truncate(program, 0),
        }
        with unchanged(program):
            assert {name: outcome(call) for name, call in calls.items()} == dict.fromkeys(
                calls, "ETXTBSY"
            )
        os.unlink(program)
    finally:
        process.communicate()
    assert process.returncode == 0


def test_a_file_open_for_writing_does_not_run(here: Path) -> None:
    program = here / "program"
    shutil.copyfile(shutil.which("true") or "", program)
    program.chmod(0o755)
    with opened(program, os.O_WRONLY), refused(errno.ETXTBSY):
        subprocess.run([program], check=True)
    subprocess.run([program], check=True)
    program.chmod(0o644)
    with refused(errno.EACCES):
        subprocess.run([program], check=True)


def test_directories_are_not_read_as_files(here: Path) -> None:
    with opened(here, os.O_RDONLY) as fd, refused(errno.EISDIR):
        os.read(fd, 1)


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_an_unlinked_open_file_works_on(here: Path, kind: str) -> None:
    path = make(kind, here / kind)
    with opened(path, os.O_RDWR) as fd:
        os.unlink(path)
        assert os.fstat(fd).st_nlink == 0
        os.write(fd, b"content")
        if kind == "file":
            assert os.pread(fd, 9, 0) == b"content"
            os.ftruncate(fd, 3)
            assert os.pread(fd, 9, 0) == b"con"
            assert os.fstat(fd).st_size == 3
        else:
            assert os.read(fd, 9) == b"content"
        os.fchmod(fd, 0o640)
        os.fchown(fd, USER, OTHER)
        os.utime(fd, ns=(3, 5))
        status = os.fstat(fd)
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert (status.st_uid, status.st_gid) == (USER, OTHER)
        assert (status.st_atime_ns, status.st_mtime_ns) == (3, 5)
        assert os.listdir(here) == []
        make("directory", path)
        assert os.fstat(fd).st_nlink == 0


def test_a_replaced_open_file_works_on(here: Path) -> None:
    old, new = make("file", here / "old"), make("file", here / "new")
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with opened(old, os.O_RDWR) as fd:
        os.rename(new, old)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 9, 0) == b"old"
        os.pwrite(fd, b"OLD", 0)
        assert old.read_bytes() == b"new"
        assert os.pread(fd, 9, 0) == b"OLD"


def test_bytes_beyond_two_gigabytes_are_where_they_were_written(here: Path) -> None:
    offset = 2**31 + 1
    with opened(here / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"content", offset)
        assert os.fstat(fd).st_size == offset + 7
        assert os.pread(fd, 9, offset) == b"content"
        assert os.pread(fd, 9, offset - 9) == bytes(9)
        os.ftruncate(fd, 1)  # what is not stored need not be
    assert (here / "file").read_bytes() == bytes(1)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_directory_removed_while_open_is_empty(here: Path, kind: str) -> None:
    path = make("directory", here / "directory")
    with opened(path, os.O_RDONLY) as fd:
        os.rmdir(path)
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        with refused(errno.ENOENT):
            if kind == "file":
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
            else:
                os.mkdir("new", dir_fd=fd)
