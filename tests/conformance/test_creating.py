"""New files of every type: mode, owner, group, times, and what the directory shows of it."""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.world import (
    DEVICE,
    GROUP,
    KINDS,
    OTHER,
    USER,
    acting_as,
    kind_of,
    make,
    mode_of,
    moves,
    refused,
    remove,
    socket_at,
    umask,
    unchanged,
)
from tests.descriptors import opened

MAKERS: dict[str, Callable[[Path, int], None]] = {
    "file": lambda path, mode: os.close(os.open(path, os.O_CREAT | os.O_RDWR, mode)),
    "mknod-file": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "mknod-fifo": lambda path, mode: os.mknod(path, stat.S_IFIFO | mode),
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "socket": lambda path, mode: os.mknod(path, stat.S_IFSOCK | mode),
}
DEVICES: dict[str, Callable[[Path, int], None]] = {
    "block": lambda path, mode: os.mknod(path, stat.S_IFBLK | mode, DEVICE),
    "character": lambda path, mode: os.mknod(path, stat.S_IFCHR | mode, DEVICE),
}
every_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
root_makers = pytest.mark.parametrize(
    "maker", (MAKERS | DEVICES).values(), ids=(MAKERS | DEVICES).keys()
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_is_of_its_kind(here: Path, kind: str) -> None:
    with moves("mtime ctime", here):
        path = make(kind, here / "new")
    status = path.lstat()
    assert kind_of(path) == kind
    assert status.st_rdev == (DEVICE if kind in ("block", "character") else 0)
    if kind != "directory":
        assert status.st_nlink == 1
        assert status.st_size == (len("nowhere") if kind == "symlink" else 0)
    with moves("mtime ctime", here):
        remove(path)
    assert os.listdir(here) == []


@root_makers
def test_a_new_files_times_are_now(here: Path, maker: Callable[[Path, int], None]) -> None:
    with moves("mtime ctime", here):
        maker(here / "new", 0o644)
    status = (here / "new").stat()
    assert here.stat().st_mtime_ns <= time.time_ns()
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    assert all(abs(moment - here.stat().st_mtime_ns) < 10**9 for moment in times)


@root_makers
@pytest.mark.parametrize(
    ("mode", "mask", "result"),
    [
        (0o755, 0o000, 0o755),
        (0o151, 0o000, 0o151),
        (0o777, 0o022, 0o755),
        (0o777, 0o070, 0o707),
        (0o345, 0o501, 0o244),
        (0o666, 0o777, 0o000),
    ],
)
def test_the_umask_takes_bits_off_the_mode(
    here: Path, maker: Callable[[Path, int], None], mode: int, mask: int, result: int
) -> None:
    with umask(mask):
        maker(here / "new", mode)
    assert mode_of(here / "new") == result


@pytest.mark.parametrize("kind", [*MAKERS, "symlink"])
def test_a_new_file_belongs_to_who_made_it(here: Path, kind: str) -> None:
    with acting_as(USER, GROUP, group=OTHER):
        if kind == "symlink":
            os.symlink("nowhere", here / "new")
        else:
            MAKERS[kind](here / "new", 0o644)
    status = (here / "new").lstat()
    assert (status.st_uid, status.st_gid) == (USER, OTHER)


@pytest.mark.parametrize("kind", [*MAKERS, "symlink"])
def test_in_a_set_group_id_directory_the_group_is_the_directorys(here: Path, kind: str) -> None:
    directory = make("directory", here / "directory", 0o2777, group=GROUP)
    with acting_as(USER):
        if kind == "symlink":
            os.symlink("nowhere", directory / "new")
        else:
            MAKERS[kind](directory / "new", 0o750)
    status = (directory / "new").lstat()
    assert (status.st_uid, status.st_gid) == (USER, GROUP)
    if kind != "symlink":
        inherited = 0o2000 if kind == "directory" else 0
        assert stat.S_IMODE(status.st_mode) == 0o750 | inherited


@pytest.mark.parametrize(("groups", "result"), [((), 0o0770), ((GROUP,), 0o2770)])
def test_a_new_file_runs_with_its_group_only_for_a_member(
    here: Path, groups: tuple[int, ...], result: int
) -> None:
    directory = make("directory", here / "directory", 0o2777, group=GROUP)
    with acting_as(USER, *groups):
        make_file = MAKERS["file"]
        make_file(directory / "new", 0o2770)
    assert mode_of(directory / "new") == result


@every_maker
@pytest.mark.parametrize("mode", [0o1644, 0o2755, 0o4755, 0o7777])
def test_set_id_and_sticky_bits_of_a_new_file(
    here: Path, maker: Callable[[Path, int], None], mode: int
) -> None:
    maker(here / "new", mode)
    wanted = mode & 0o1777 if maker is os.mkdir else mode
    assert mode_of(here / "new") == wanted


@pytest.mark.parametrize("maker", DEVICES.values(), ids=DEVICES)
def test_devices_are_roots_to_make(here: Path, maker: Callable[[Path, int], None]) -> None:
    with unchanged(here), acting_as(USER), refused(errno.EPERM):
        maker(here / "new", 0o644)


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (255, 255), (259, 65536), (4095, 1048575)])
def test_a_device_keeps_its_number(here: Path, device: tuple[int, int]) -> None:
    os.mknod(here / "new", stat.S_IFBLK | 0o600, os.makedev(*device))
    found = (here / "new").stat().st_rdev
    assert (os.major(found), os.minor(found)) == device


def test_a_socket_is_made_by_bind(here: Path) -> None:
    with moves("mtime ctime", here):
        socket_at(here / "new").close()
    assert kind_of(here / "new") == "socket"
    with unchanged(here), refused(errno.EADDRINUSE):
        socket_at(here / "new")


@pytest.mark.parametrize(
    "target", ["x", "/", "../" * 300 + "x", "n" * 255, "n" * 4095, "café\n\\ .", "a//b/./c"]
)
def test_a_symlink_holds_any_target(here: Path, target: str) -> None:
    link = here / "link"
    with moves("mtime ctime", here):
        os.symlink(target, link)
    assert os.readlink(link) == target
    assert link.lstat().st_size == len(os.fsencode(target))
    assert stat.S_IMODE(link.lstat().st_mode) == 0o777


@pytest.mark.parametrize(("length", "code"), [(0, errno.ENOENT), (4096, errno.ENAMETOOLONG)])
def test_a_symlinks_target_has_1_to_4095_bytes(here: Path, length: int, code: int) -> None:
    with unchanged(here), refused(code):
        os.symlink("x" * length, here / "link")


def test_operations_follow_a_symlink_to_its_file(here: Path) -> None:
    make("file", here / "file")
    (here / "directory").mkdir()
    (here / "directory/link").symlink_to("../file")
    (here / "way").symlink_to("directory")
    link = here / "way/link"
    with opened(link, os.O_WRONLY) as fd:
        os.write(fd, b"content")
    os.chmod(link, 0o640)
    assert (here / "file").read_bytes() == b"content"
    assert mode_of(here / "file") == 0o640
    with refused(errno.EINVAL):
        os.readlink(here / "file")
    os.unlink(link)
    assert (here / "file").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_counts_its_subdirectories_as_links(here: Path, kind: str) -> None:
    assert here.stat().st_nlink == 2
    path = make(kind, here / "new")
    assert here.stat().st_nlink == (3 if kind == "directory" else 2)
    if kind == "directory":
        assert path.stat().st_nlink == 2
    remove(path)
    assert here.stat().st_nlink == 2
