"""unlink(2) and rmdir(2), and whose files a sticky directory protects."""

import errno
import itertools
import os
from pathlib import Path

import pytest

from tests.conformance.world import (
    KINDS,
    NOT_DIRECTORIES,
    OTHER,
    USER,
    acting_as,
    make,
    moves,
    outcome,
    refused,
    remove,
    unchanged,
)


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_unlink_removes_any_file(here: Path, kind: str) -> None:
    path = make(kind, here / "x")
    other = make(kind, here / "other")
    with moves("mtime ctime", here), unchanged(other):
        os.unlink(path)
    with refused(errno.ENOENT):
        os.lstat(path)
    assert os.listdir(here) == ["other"]


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_rmdir_removes_directories_alone(here: Path, kind: str) -> None:
    path = make(kind, here / "x")
    with unchanged(here, path), refused(errno.ENOTDIR):
        os.rmdir(path)


def test_unlink_removes_no_directory(here: Path) -> None:
    path = make("directory", here / "x")
    with unchanged(here, path), refused(errno.EISDIR):
        os.unlink(path)
    with unchanged(here, path), acting_as(USER), refused(errno.EISDIR):
        os.unlink(path)
    with moves("mtime ctime", here):
        os.rmdir(path)
    assert os.listdir(here) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_with_anything_in_it_stays(here: Path, kind: str) -> None:
    directory = make("directory", here / "directory")
    inner = make(kind, directory / "x")
    with unchanged(here, directory, inner), refused(errno.ENOTEMPTY):
        os.rmdir(directory)
    remove(inner)
    os.rmdir(directory)


def test_a_directory_goes_by_its_name_alone(here: Path) -> None:
    directory = make("directory", here / "directory")
    inner = make("directory", directory / "inner")
    with unchanged(here, directory, inner):
        with refused(errno.EINVAL):
            os.rmdir(f"{inner}/.")
        with refused(errno.ENOTEMPTY):
            os.rmdir(f"{inner}/..")


def test_a_symlink_to_a_directory_is_no_directory(here: Path) -> None:
    make("directory", here / "directory")
    link = here / "link"
    link.symlink_to("directory")
    with unchanged(link), refused(errno.ENOTDIR):
        os.rmdir(link)
    os.unlink(link)
    assert os.listdir(here) == ["directory"]


@pytest.mark.parametrize("root", ["mount"], indirect=True)
def test_a_mount_point_is_busy(root: Path) -> None:
    with unchanged(root), refused(errno.EBUSY):
        os.rmdir(root)


OWNERS = (USER, OTHER, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["remove", "rename-from", "rename-to"])
def test_a_sticky_directory_lets_the_owner_of_either_remove(
    here: Path, action: str, kind: str
) -> None:
    outside = make("directory", here / "outside", 0o777)
    sticky = make("directory", here / "sticky", 0o777)
    for number, (of_directory, of_victim) in enumerate(itertools.product(OWNERS, OWNERS)):
        os.chown(sticky, of_directory, 0)
        sticky.chmod(0o1777)
        victim = make(kind, sticky / f"{number}", 0o777, owner=of_victim)
        new = make(kind, outside / f"{number}", 0o777, owner=USER)
        allowed = USER in (of_directory, of_victim)
        with acting_as(USER):
            if action == "remove":
                found = outcome(lambda: remove(victim))  # noqa: B023
            elif action == "rename-to":
                found = outcome(lambda: os.rename(new, victim))  # noqa: B023
            else:
                found = outcome(lambda: os.rename(victim, new))  # noqa: B023
        wanted = "ok" if allowed else "EPERM"
        assert (of_directory, of_victim, found) == (of_directory, of_victim, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_root_removes_from_a_sticky_directory(here: Path, kind: str) -> None:
    sticky = make("directory", here / "sticky", 0o1777, owner=USER)
    remove(make(kind, sticky / "x", owner=OTHER))
    assert os.listdir(sticky) == []


@pytest.mark.parametrize("kind", KINDS)
def test_removing_needs_no_permission_on_the_file_itself(here: Path, kind: str) -> None:
    path = make(kind, here / "x", 0, owner=OTHER)
    with acting_as(USER):
        remove(path)
    assert os.listdir(here) == []
