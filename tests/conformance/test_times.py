"""utimensat(2): nanoseconds, now and omit, who may, and the times far away."""

import errno
import os
import time
from pathlib import Path

import pytest

from tests.conformance.world import (
    KINDS,
    NOT_SYMLINKS,
    NOW,
    OMIT,
    OTHER,
    USER,
    Moment,
    acting_as,
    make,
    moves,
    outcome,
    pass_time,
    refused,
    unchanged,
    utimensat,
)
from tests.descriptors import opened

PAST = 100_000_000_001, 200_000_000_002  # ns; what files of these tests have before


def times_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_atime_ns, status.st_mtime_ns


def old_file(kind: str, path: Path, mode: int = 0o644, owner: int = 0) -> Path:
    make(kind, path, mode, owner=owner)
    os.utime(path, ns=PAST, follow_symlinks=False)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_set_to_the_nanosecond(here: Path, kind: str) -> None:
    path = old_file(kind, here / kind)
    before = path.lstat().st_ctime_ns
    pass_time([path])
    with unchanged(here):
        utimensat(path, (1_000_000_000, 123_456_789), (1_900_000_000, 999_999_999), follow=False)
    assert times_of(path) == (1_000_000_000_123_456_789, 1_900_000_000_999_999_999)
    assert path.lstat().st_ctime_ns > before


@pytest.mark.parametrize(
    "seconds",
    [0, 1, -1, -2_000_000_000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 4_300_000_000, 9_000_000_000],
)
def test_times_far_away_are_kept(here: Path, seconds: int) -> None:
    path = old_file("file", here / "file")
    utimensat(path, (seconds, 1), (seconds + (seconds < 0), 999_999_999))
    assert times_of(path) == (
        seconds * 10**9 + 1,
        (seconds + (seconds < 0)) * 10**9 + 999_999_999,
    )


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_now_is_now_and_omitted_times_stay(here: Path, kind: str) -> None:
    path = old_file(kind, here / kind)
    start = time.time_ns()
    pass_time([path])
    utimensat(path, OMIT, NOW)
    access, change = times_of(path)
    assert access == PAST[0]
    assert start - 10**9 < change <= time.time_ns()
    os.utime(path, ns=PAST)
    utimensat(path, NOW, OMIT)
    access, change = times_of(path)
    assert start - 10**9 < access <= time.time_ns()
    assert change == PAST[1]
    utimensat(path, (5, 6), OMIT)
    assert times_of(path) == (5_000_000_006, PAST[1])
    utimensat(path, OMIT, (7, 8))
    assert times_of(path) == (5_000_000_006, 7_000_000_008)
    with unchanged(path):
        utimensat(path, OMIT, OMIT)
    assert times_of(path) == (5_000_000_006, 7_000_000_008)
    os.utime(path)
    access, change = times_of(path)
    assert abs(access - change) < 10**9
    assert start - 10**9 < access <= time.time_ns()


def test_a_symlinks_own_times_are_set_without_following(here: Path) -> None:
    file, link = old_file("file", here / "file"), here / "link"
    link.symlink_to("file")
    with unchanged(file):
        utimensat(link, (5, 6), (7, 8), follow=False)
    assert times_of(link)[1] == 7_000_000_008
    with unchanged(link):
        utimensat(link, (1, 2), (3, 4))
    assert times_of(file) == (1_000_000_002, 3_000_000_004)


@pytest.mark.parametrize("nanoseconds", [-1, 10**9, 2**30, 2**31])
def test_nanoseconds_are_below_a_second(here: Path, nanoseconds: int) -> None:
    path = old_file("file", here / "file")
    with unchanged(path):
        for times in (((0, nanoseconds), (0, 0)), ((0, 0), (0, nanoseconds))):
            with refused(errno.EINVAL):
                utimensat(path, *times)


# What a call asks for, and how it ends for: the owner, who may write, all others.
PERMISSIONS: list[tuple[Moment, Moment, str, str, str]] = [
    ((5, 5), (5, 5), "ok", "EPERM", "EPERM"),
    ((5, 5), OMIT, "ok", "EPERM", "EPERM"),
    (OMIT, (5, 5), "ok", "EPERM", "EPERM"),
    (NOW, (5, 5), "ok", "EPERM", "EPERM"),
    (NOW, OMIT, "ok", "EPERM", "EPERM"),
    (OMIT, NOW, "ok", "EPERM", "EPERM"),
    (NOW, NOW, "ok", "ok", "EACCES"),
    (OMIT, OMIT, "ok", "ok", "ok"),
]


@pytest.mark.parametrize(("access", "change", "owner", "writer", "other"), PERMISSIONS)
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_who_may_set_times(
    here: Path, kind: str, access: Moment, change: Moment, owner: str, writer: str, other: str
) -> None:
    cases = ((USER, 0o444, owner), (OTHER, 0o646, writer), (OTHER, 0o644, other))
    for number, (belongs_to, mode, wanted) in enumerate(cases):
        path = old_file(kind, here / f"{number}", mode, belongs_to)
        with acting_as(USER):
            assert outcome(lambda p=path: utimensat(p, access, change)) == wanted
        if wanted != "ok":
            assert times_of(path) == PAST
        utimensat(path, access, change)  # root may


def test_times_are_set_through_a_descriptor(here: Path) -> None:
    path = old_file("file", here / "file")
    with opened(path, os.O_RDONLY) as fd:
        os.utime(fd, ns=(5, 7))
        assert os.fstat(fd).st_mtime_ns == 7
    assert times_of(path) == (5, 7)


def test_a_write_and_its_close_keep_times_that_were_set_between(here: Path) -> None:
    path = make("file", here / "file")
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"content")
        os.utime(fd, ns=PAST)
    assert times_of(path) == PAST
    with moves("mtime ctime", path):
        path.write_bytes(b"other")


def test_a_write_moves_the_files_times_and_a_read_does_not(here: Path) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    with unchanged(here), opened(path, os.O_RDWR) as fd:
        with unchanged(path):
            os.read(fd, 3)
        with moves("mtime ctime", path):
            os.write(fd, b"x")
        with unchanged(path), refused(errno.EINVAL):
            os.ftruncate(fd, -1)
