"""chmod(2) and chown(2): who may, what set-id bits become, and that ctime moves."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.world import (
    GROUP,
    KINDS,
    NOT_SYMLINKS,
    OTHER,
    USER,
    acting_as,
    make,
    mode_of,
    moves,
    refused,
    unchanged,
)
from tests.descriptors import opened


def owners_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o640, 0o777, 0o1777, 0o2755, 0o4755, 0o7777])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_chmod_sets_all_twelve_bits(here: Path, kind: str, mode: int) -> None:
    path = make(kind, here / kind)
    with unchanged(here), moves("ctime", path):
        os.chmod(path, mode)
    assert mode_of(path) == mode
    (here / "link").symlink_to(kind)
    with unchanged(here / "link"), moves("ctime", path):
        os.chmod(here / "link", 0o751)
    assert mode_of(path) == 0o751


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_chmod_is_the_owners(here: Path, kind: str) -> None:
    path = make(kind, here / kind, 0o666, owner=OTHER, group=USER)
    with unchanged(path), acting_as(USER), refused(errno.EPERM):
        os.chmod(path, 0o600)
    with moves("ctime", path), acting_as(OTHER, USER):
        os.chmod(path, 0o7640)
    assert mode_of(path) == 0o7640


@pytest.mark.parametrize(
    ("groups", "result"), [((), 0o0755), ((GROUP,), 0o2755)], ids=["stranger", "member"]
)
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_set_group_id_needs_membership(
    here: Path, kind: str, groups: tuple[int, ...], result: int
) -> None:
    path = make(kind, here / kind, owner=USER, group=GROUP)
    with acting_as(USER, *groups):
        os.chmod(path, 0o2755)
    assert mode_of(path) == result
    os.chmod(path, 0o2755)
    assert mode_of(path) == 0o2755


@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_anyone_may_set_the_sticky_bit_of_their_own(here: Path, kind: str) -> None:
    path = make(kind, here / kind, owner=USER, group=USER)
    with acting_as(USER):
        os.chmod(path, 0o1644)
    assert mode_of(path) == 0o1644


@pytest.mark.parametrize("kind", KINDS)
def test_root_gives_files_away(here: Path, kind: str) -> None:
    path = make(kind, here / kind)
    for owner, group, result in (
        (USER, OTHER, (USER, OTHER)),
        (-1, GROUP, (USER, GROUP)),
        (OTHER, -1, (OTHER, GROUP)),
        (-1, -1, (OTHER, GROUP)),
        (2**32 - 2, 2**31, (2**32 - 2, 2**31)),
        (0, 0, (0, 0)),
    ):
        with unchanged(here), moves("ctime", path):
            os.lchown(path, owner, group)
        assert owners_of(path) == result


@pytest.mark.parametrize("kind", KINDS)
def test_chown_follows_symlinks_and_lchown_does_not(here: Path, kind: str) -> None:
    path = make(kind, here / kind)
    link = here / "link"
    link.symlink_to(kind)
    if kind != "symlink":
        with unchanged(link):
            os.chown(link, USER, OTHER)
        assert owners_of(path) == (USER, OTHER)
    with unchanged(path):
        os.lchown(link, OTHER, USER)
    assert owners_of(link) == (OTHER, USER)


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_chooses_among_their_groups(here: Path, kind: str) -> None:
    path = make(kind, here / kind, owner=USER, group=USER)
    with acting_as(USER, GROUP, 1234):
        for owner, group in ((-1, GROUP), (USER, 1234), (-1, USER), (-1, -1), (USER, -1)):
            os.lchown(path, owner, group)
            assert owners_of(path)[0] == USER
            assert group in (owners_of(path)[1], -1)
        with unchanged(path):
            for owner, group in ((OTHER, -1), (-1, OTHER), (OTHER, OTHER), (0, GROUP), (USER, 0)):
                with refused(errno.EPERM):
                    os.lchown(path, owner, group)


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_change_no_owner(here: Path, kind: str) -> None:
    path = make(kind, here / kind, 0o777, owner=OTHER, group=USER)
    with unchanged(path), acting_as(USER):
        for owner, group in ((USER, -1), (-1, USER), (USER, USER), (OTHER, USER)):
            with refused(errno.EPERM):
                os.lchown(path, owner, group)
    with acting_as(USER):
        os.lchown(path, -1, -1)  # asks for nothing


@pytest.mark.parametrize("actor", ["root", "owner"])
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755, 0o6555, 0o4644, 0o2644, 0o6666, 0o7777])
@pytest.mark.parametrize("kind", NOT_SYMLINKS)
def test_chown_clears_set_id_bits(here: Path, kind: str, mode: int, actor: str) -> None:
    path = make(kind, here / kind, mode, owner=USER, group=USER)
    wanted = mode
    if kind != "directory":
        wanted &= ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            wanted &= ~stat.S_ISGID
    if actor == "root":
        os.chown(path, OTHER, GROUP)
    else:
        with acting_as(USER, GROUP):
            os.chown(path, -1, GROUP)
    assert mode_of(path) == wanted
    os.chmod(path, mode)
    with acting_as(USER if actor == "owner" else 0, USER, GROUP):
        os.chown(path, -1, -1)
    assert mode_of(path) == wanted


CONTENT_CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda path: write_to(path, os.O_WRONLY),
    "open-trunc": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": lambda path: ftruncate(path),
}


def write_to(path: Path, flags: int) -> None:
    with opened(path, flags) as fd:
        os.write(fd, b"x")


def ftruncate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 1)


@pytest.mark.parametrize("actor", [0, USER, OTHER])
@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o4666, 0o6757])
@pytest.mark.parametrize("change", CONTENT_CHANGES.values(), ids=CONTENT_CHANGES)
def test_a_change_of_content_clears_set_id_bits_but_for_root(
    here: Path, change: Callable[[Path], object], mode: int, actor: int
) -> None:
    path = make("file", here / "file")
    path.write_bytes(b"content")
    os.chown(path, USER, USER)
    os.chmod(path, mode)
    wanted = mode
    if actor != 0:
        wanted &= ~stat.S_ISUID
        wanted &= ~stat.S_ISGID
    with acting_as(actor):
        change(path)
    assert oct(mode_of(path)) == oct(wanted)


def test_a_descriptor_sees_the_set_id_bits_go(here: Path) -> None:
    path = make("file", here / "file", 0o6777)
    with acting_as(USER), opened(path, os.O_WRONLY) as fd:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o6777
        os.write(fd, b"x")
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o777


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_attributes_change_through_descriptors(here: Path, kind: str) -> None:
    path = make(kind, here / kind)
    with opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        with moves("ctime", path):
            os.fchmod(fd, 0o640)
        with moves("ctime", path):
            os.fchown(fd, USER, OTHER)
    assert mode_of(path) == 0o640
    assert owners_of(path) == (USER, OTHER)
