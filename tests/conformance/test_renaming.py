"""rename(2): every type over every type, its errnos, times and link counts."""

import errno
import os
from pathlib import Path

import pytest

from tests.conformance.world import (
    KINDS,
    NOT_DIRECTORIES,
    USER,
    acting_as,
    kind_of,
    make,
    moves,
    outcome,
    refused,
    unchanged,
)


@pytest.mark.parametrize("new_parent", ["", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_anything_can_be_renamed(here: Path, kind: str, new_parent: str) -> None:
    parent = here / "here"
    parent.mkdir()
    (here / "other").mkdir()
    old, new = parent / "old", (here / new_parent if new_parent else parent) / "new"
    make(kind, old, 0o7751 if kind != "symlink" else 0o777, owner=USER, group=USER)
    before = old.lstat()
    with moves("mtime ctime", parent, new.parent):
        os.rename(old, new)
    after = new.lstat()
    assert (kind_of(new), after.st_ino) == (kind, before.st_ino)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, USER, USER)
    assert (after.st_mtime_ns, after.st_rdev) == (before.st_mtime_ns, before.st_rdev)
    assert after.st_ctime_ns > before.st_ctime_ns
    with refused(errno.ENOENT):
        os.lstat(old)
    assert os.listdir(new.parent) == ["new"]


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_every_kind_over_every_kind(here: Path, old: str, new: str) -> None:
    source, target = make(old, here / "old"), make(new, here / "new")
    wanted = "ok"
    if old == "directory" != new:
        wanted = "ENOTDIR"
    if new == "directory" != old:
        wanted = "EISDIR"
    inode = source.lstat().st_ino
    if wanted == "ok":
        with moves("mtime ctime", here):
            os.rename(source, target)
        assert os.listdir(here) == ["new"]
        assert (kind_of(target), target.lstat().st_ino) == (old, inode)
    else:
        with unchanged(here, source, target):
            assert outcome(lambda: os.rename(source, target)) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_with_anything_in_it_is_not_replaced(here: Path, kind: str) -> None:
    source, target = make("directory", here / "old"), make("directory", here / "new")
    inner = make(kind, target / "x")
    with unchanged(here, source, target, inner), refused(errno.ENOTEMPTY):
        os.rename(source, target)


def test_content_goes_with_the_name(here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new, and longer")
    os.rename(here / "old", here / "new")
    assert (here / "new").read_bytes() == b"old"


@pytest.mark.parametrize("below", ["", "/x", "/inner", "/inner/x"])
def test_a_directory_does_not_go_into_itself(here: Path, below: str) -> None:
    directory = make("directory", here / "directory")
    inner = make("directory", directory / "inner")
    if not below:
        with unchanged(here, directory, inner):
            os.rename(directory, directory)
        return
    with unchanged(here, directory, inner), refused(errno.EINVAL):
        os.rename(directory, f"{directory}{below}")


def test_a_directory_does_not_replace_one_above_it(here: Path) -> None:
    directory = make("directory", here / "directory")
    inner = make("directory", directory / "inner")
    with unchanged(here, directory, inner), refused(errno.ENOTEMPTY):
        os.rename(inner, directory)


@pytest.mark.parametrize("dots", [".", ".."])
def test_dots_have_no_name_to_change(here: Path, dots: str) -> None:
    directory = make("directory", here / "directory")
    inner = make("directory", directory / "inner")
    other = make("directory", here / "other")
    with unchanged(here, directory, inner, other):
        with refused(errno.EBUSY):
            os.rename(f"{inner}/{dots}", here / "new")
        with refused(errno.EBUSY):
            os.rename(other, f"{inner}/{dots}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rename_to_its_own_name_changes_nothing(here: Path, kind: str) -> None:
    path = make(kind, here / "x")
    with unchanged(here, path):
        os.rename(path, path)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_renamed_to_another_file_system(here: Path, crossing: Path, kind: str) -> None:
    path = make(kind, here / "x")
    away = Path("/dev/shm") if crossing.stat().st_dev == here.stat().st_dev else crossing
    with unchanged(here, path), refused(errno.EXDEV):
        os.rename(path, away / "blobfs-conformance-x")
    with unchanged(here), refused(errno.EXDEV):
        os.rename(away, here / "away")


def test_subdirectories_count_where_they_are(here: Path) -> None:
    one, other = make("directory", here / "one"), make("directory", here / "other")
    moving = make("directory", one / "moving")
    make("directory", moving / "inner")
    assert (one.stat().st_nlink, other.stat().st_nlink, moving.stat().st_nlink) == (3, 2, 3)
    moving = moving.rename(other / "moved")
    assert (one.stat().st_nlink, other.stat().st_nlink, moving.stat().st_nlink) == (2, 3, 3)
    assert (moving / "..").stat().st_ino == other.stat().st_ino
    make("directory", other / "replaced")
    os.rename(moving, other / "replaced")
    assert other.stat().st_nlink == 3
    assert here.stat().st_nlink == 4


def test_a_directory_that_gets_another_parent_must_be_writable(here: Path) -> None:
    one = make("directory", here / "one", 0o777)
    other = make("directory", here / "other", 0o777)
    path = make("directory", one / "x", 0o555, owner=USER)
    with acting_as(USER):
        os.rename(path, one / "y")  # the parent is the same
        with unchanged(one, other, one / "y"), refused(errno.EACCES):
            os.rename(one / "y", other / "x")
    os.rename(one / "y", other / "x")


@pytest.mark.parametrize("closed", ["one", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_directories_must_be_writable(here: Path, kind: str, closed: str) -> None:
    one = make("directory", here / "one", 0o777, owner=USER)
    other = make("directory", here / "other", 0o777, owner=USER)
    path = make(kind, one / "x", owner=USER)
    (here / closed).chmod(0o555)
    with unchanged(one, other, path), acting_as(USER), refused(errno.EACCES):
        os.rename(path, other / "x")


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_a_symlink_itself_is_renamed_and_replaced(here: Path, kind: str) -> None:
    file, link, path = make("file", here / "file"), here / "link", make(kind, here / "x")
    link.symlink_to("file")
    with unchanged(file):
        os.rename(path, link)
    assert kind_of(link) == kind
    with unchanged(file):
        os.rename(link, here / "away")
    assert sorted(os.listdir(here)) == ["away", "file"]
