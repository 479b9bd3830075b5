"""truncate(2), ftruncate(2) and posix_fallocate(3)."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.world import (
    KINDS,
    USER,
    acting_as,
    make,
    moves,
    outcome,
    refused,
    unchanged,
)
from tests.descriptors import opened


def by_name(path: Path, size: int) -> None:
    os.truncate(path, size)


def by_handle(path: Path, size: int) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, size)
        assert os.fstat(fd).st_size == size


both_ways = pytest.mark.parametrize("truncate", [by_name, by_handle])
Truncate = Callable[[Path, int], None]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield  # Python ignores SIGXFSZ
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@both_ways
@pytest.mark.parametrize("size", [0, 1, 567, 1_234_567])
def test_a_file_gets_any_size(here: Path, truncate: Truncate, size: int) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"x" * 1000)
    with unchanged(here), moves("mtime ctime", path):
        truncate(path, size)
    kept = min(size, 1000)
    assert path.read_bytes() == b"x" * kept + bytes(size - kept)
    assert path.stat().st_size == size


@both_ways
def test_what_was_cut_off_does_not_come_back(here: Path, truncate: Truncate) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"x" * 100)
    truncate(path, 10)
    truncate(path, 100)
    assert path.read_bytes() == b"x" * 10 + bytes(90)


@both_ways
def test_a_negative_size_is_invalid(here: Path, truncate: Truncate) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    for size in (-1, -(2**63)):
        with unchanged(path), refused(errno.EINVAL):
            truncate(path, size)


@both_ways
def test_a_size_over_the_limit_of_the_process(here: Path, truncate: Truncate) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    with unchanged(path), file_size_limit(1000), refused(errno.EFBIG):
        truncate(path, 1001)
    truncate(path, 1000)


@both_ways
@pytest.mark.parametrize("size", [999_999_999_999_999, 2**63 - 1])
def test_a_size_that_no_file_can_have(here: Path, truncate: Truncate, size: int) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    with unchanged(path), refused(errno.EFBIG):
        truncate(path, size)
    assert path.read_bytes() == b"content"


def test_other_types_have_no_size_to_set(here: Path) -> None:
    wanted = {"file": "ok", "directory": "EISDIR", "symlink": "ENOENT"}
    for kind in KINDS:
        path = make(kind, here / kind)
        found = outcome(lambda p=path: os.truncate(p, 0))
        assert (kind, found) == (kind, wanted.get(kind, "EINVAL"))


def test_truncate_follows_a_symlink(here: Path) -> None:
    (here / "file").write_bytes(b"content")
    (here / "link").symlink_to("file")
    os.truncate(here / "link", 3)
    assert (here / "file").read_bytes() == b"con"


def test_truncate_needs_write_permission(here: Path) -> None:
    path = make("file", here / "file", 0o644)
    path.write_bytes(b"content")
    with unchanged(path), acting_as(USER), refused(errno.EACCES):
        os.truncate(path, 3)
    path.chmod(0o646)
    with acting_as(USER):
        os.truncate(path, 3)


def test_a_descriptor_truncates_whatever_the_mode_is_by_now(here: Path) -> None:
    path = make("file", here / "file", 0o600, owner=USER)
    with acting_as(USER), opened(path, os.O_RDWR) as fd:
        os.fchmod(fd, 0)
        os.ftruncate(fd, 10)
    assert path.stat().st_size == 10


def test_a_descriptor_for_reading_does_not_truncate(here: Path) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    with unchanged(path), opened(path, os.O_RDONLY) as fd:
        for size in (0, 3, 7, 100):
            with refused(errno.EINVAL):
                os.ftruncate(fd, size)
    with opened(here, os.O_RDONLY) as fd, refused(errno.EINVAL):
        os.ftruncate(fd, 0)
    with refused(errno.EBADF):
        os.ftruncate(fd, 0)


def test_a_pipe_has_no_size_to_set(here: Path) -> None:
    path = make("fifo", here / "fifo")
    with opened(path, os.O_RDWR) as fd, refused(errno.EINVAL):
        os.ftruncate(fd, 0)


def test_a_write_over_the_limit_of_the_process(here: Path) -> None:
    path = make("file", here / "file")
    with file_size_limit(1000), opened(path, os.O_WRONLY) as fd:
        assert os.write(fd, b"x" * 1001) == 1000
        with refused(errno.EFBIG):
            os.write(fd, b"x")
    assert path.stat().st_size == 1000


def test_posix_fallocate_makes_room(here: Path) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"x" * 567)
    with opened(path, os.O_RDWR) as fd:
        with moves("mtime ctime", path):
            os.posix_fallocate(fd, 20_000, 3456)
        assert os.fstat(fd).st_size == 23_456
        os.posix_fallocate(fd, 0, 100)
        assert os.fstat(fd).st_size == 23_456
        for offset, length in ((0, -1), (-1, 1), (0, 0)):
            with refused(errno.EINVAL):
                os.posix_fallocate(fd, offset, length)
    assert path.read_bytes() == b"x" * 567 + bytes(23_456 - 567)
    with opened(path, os.O_RDONLY) as fd, refused(errno.EBADF):
        os.posix_fallocate(fd, 0, 1)


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_posix_fallocate_is_for_files(here: Path, kind: str) -> None:
    path = make(kind, here / kind)
    with opened(path, os.O_RDWR if kind == "fifo" else os.O_RDONLY) as fd:
        found = outcome(lambda: os.posix_fallocate(fd, 0, 1))
    assert found == {"fifo": "ESPIPE", "directory": "EBADF"}[kind]
