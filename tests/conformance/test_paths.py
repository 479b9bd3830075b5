"""What is wrong with a path, for every operation that takes one."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.conformance.world import (
    GROUP,
    KINDS,
    NOT_DIRECTORIES,
    OTHER,
    USER,
    acting_as,
    kind_of,
    make,
    outcome,
    refused,
    remove,
    unchanged,
)
from tests.descriptors import opened
from tests.mounts import mounted

# Called with the path at fault, and with a file that is there for what needs two names.
Operation = Callable[[str, Path], object]

NEW_NAME: dict[str, Operation] = {
    "mkdir": lambda path, _: os.mkdir(path),
    "mkfifo": lambda path, _: os.mkfifo(path),
    "mknod": lambda path, _: os.mknod(path, stat.S_IFIFO | 0o644),
    "mknod-device": lambda path, _: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "symlink": lambda path, _: os.symlink("target", path),
    "create": lambda path, _: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "link-to": lambda path, file: os.link(file, path),
}
NEW_OR_OLD_NAME: dict[str, Operation] = {
    "open-creat": lambda path, _: os.open(path, os.O_CREAT | os.O_RDWR),
    "rename-to": lambda path, file: os.rename(file, path),
}
READ: dict[str, Operation] = {
    "stat": lambda path, _: void(os.stat(path)),
    "open": lambda path, _: os.open(path, os.O_RDONLY | os.O_NONBLOCK),
    "listdir": lambda path, _: void(os.listdir(path)),
    "chdir": lambda path, _: chdir_and_back(path),
    "statvfs": lambda path, _: void(os.statvfs(path)),
    "getxattr": lambda path, _: void(os.getxattr(path, "user.note")),
}
READ_LINK: dict[str, Operation] = {
    "lstat": lambda path, _: void(os.lstat(path)),
    "readlink": lambda path, _: void(os.readlink(path)),
}
CHANGE: dict[str, Operation] = {
    "open-to-write": lambda path, _: os.open(path, os.O_WRONLY),
    "open-to-truncate": lambda path, _: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda path, _: os.truncate(path, 0),
    "chmod": lambda path, _: os.chmod(path, 0o600),
    "chown": lambda path, _: os.chown(path, USER, USER),
    "utimensat": lambda path, _: os.utime(path, ns=(1, 1)),
    "setxattr": lambda path, _: os.setxattr(path, "user.note", b"x"),
}
CHANGE_LINK: dict[str, Operation] = {
    "lchown": lambda path, _: os.lchown(path, USER, USER),
    "utimensat-nofollow": lambda path, _: os.utime(path, ns=(1, 1), follow_symlinks=False),
}
REMOVE: dict[str, Operation] = {
    "unlink": lambda path, _: os.unlink(path),
    "rmdir": lambda path, _: os.rmdir(path),
    "rename-from": lambda path, file: os.rename(path, file),
}
LINK_FROM: dict[str, Operation] = {
    "link-from": lambda path, file: os.link(path, file.with_name("link")),
}

FOLLOW = READ | CHANGE
NO_FOLLOW = READ_LINK | CHANGE_LINK | REMOVE | LINK_FROM
EVERY = NEW_NAME | NEW_OR_OLD_NAME | FOLLOW | NO_FOLLOW

every_operation = pytest.mark.parametrize("operation", EVERY.values(), ids=EVERY)


def void(_: object) -> None:
    """Drops a result that is no descriptor."""


def chdir_and_back(path: str) -> None:
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
        os.fchdir(before)
    finally:
        os.close(before)


@pytest.fixture
def spare(here: Path) -> Path:
    return make("file", here / "spare")


@pytest.mark.parametrize("kind", NOT_DIRECTORIES)
def test_what_is_no_directory_has_nothing_in_it(here: Path, spare: Path, kind: str) -> None:
    middle = here / kind
    if kind == "symlink":
        middle.symlink_to("spare")
    else:
        make(kind, middle)
    with unchanged(here, spare, middle):
        found = {
            name: outcome(lambda op=operation: op(f"{middle}/x", spare))
            for name, operation in EVERY.items()
        }
    assert found == dict.fromkeys(EVERY, "ENOTDIR")


@every_operation
def test_a_directory_on_the_way_that_is_missing(
    here: Path, spare: Path, operation: Operation
) -> None:
    dangling = make("symlink", here / "dangling")
    with unchanged(here, spare):
        for path in (f"{here}/missing/x", f"{dangling}/x", ""):
            with refused(errno.ENOENT):
                operation(path, spare)


@pytest.mark.parametrize("operation", (FOLLOW | NO_FOLLOW).values(), ids=FOLLOW | NO_FOLLOW)
def test_a_file_that_is_missing(here: Path, spare: Path, operation: Operation) -> None:
    with unchanged(here, spare), refused(errno.ENOENT):
        operation(f"{here}/missing", spare)


@pytest.mark.parametrize("operation", FOLLOW.values(), ids=FOLLOW)
def test_a_symlink_to_what_is_missing(here: Path, spare: Path, operation: Operation) -> None:
    dangling = make("symlink", here / "dangling")
    with unchanged(here, dangling), refused(errno.ENOENT):
        operation(str(dangling), spare)


@every_operation
def test_a_name_of_256_bytes_is_too_long(here: Path, spare: Path, operation: Operation) -> None:
    with unchanged(here, spare):
        for path in (f"{here}/{'n' * 256}", f"{here}/{'n' * 256}/x", f"{here}/{'ü' * 128}"):
            with refused(errno.ENAMETOOLONG):
                operation(path, spare)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_255_bytes_is_not_too_long(here: Path, kind: str) -> None:
    path, other = here / ("n" * 255), here / ("m" * 255)
    make(kind, path)
    os.lchown(path, USER, OTHER)
    os.rename(path, other)
    assert os.listdir(here) == [other.name]
    assert (kind_of(other), other.lstat().st_uid, other.lstat().st_gid) == (kind, USER, OTHER)
    remove(other)
    assert os.listdir(here) == []


def path_of_length(length: int, path: Path) -> str:
    """Another way to write `path`."""
    directory, name = f"{path.parent}/", path.name
    missing = length - len(directory) - len(name)
    return directory + "./" * (missing // 2) + "/" * (missing % 2) + name


@every_operation
def test_a_path_of_4096_bytes_is_too_long(here: Path, spare: Path, operation: Operation) -> None:
    with unchanged(here, spare), refused(errno.ENAMETOOLONG):
        operation(path_of_length(4096, here / "x"), spare)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_of_4095_bytes_is_not_too_long(here: Path, kind: str) -> None:
    path = path_of_length(4095, here / "x")
    make(kind, Path(path))
    os.lchown(path, USER, OTHER)
    os.rename(path, path_of_length(4095, here / "y"))
    assert kind_of(here / "y") == kind
    assert (here / "y").lstat().st_uid == USER


def test_names_below_a_container_have_1024_characters_in_all(
    here: Path, root: Path, on_mount: bool
) -> None:
    deep = here
    while len(os.fsencode(deep.relative_to(root))) + 201 <= 1024:
        deep /= "d" * 200
        deep.mkdir()
    left = 1024 - len(os.fsencode(deep.relative_to(root))) - 1
    for kind in KINDS:
        remove(make(kind, deep / ("x" * left)))
        if on_mount:
            with refused(errno.ENAMETOOLONG):
                make(kind, deep / ("x" * (left + 1)))
        else:
            remove(make(kind, deep / ("x" * (left + 1))))


@every_operation
def test_symlinks_that_go_in_circles(here: Path, spare: Path, operation: Operation) -> None:
    (here / "one").symlink_to("other")
    (here / "other").symlink_to("one")
    with unchanged(here, spare), refused(errno.ELOOP):
        operation(f"{here}/one/x", spare)


@pytest.mark.parametrize("operation", FOLLOW.values(), ids=FOLLOW)
def test_a_symlink_to_itself(here: Path, spare: Path, operation: Operation) -> None:
    (here / "self").symlink_to("self")
    with unchanged(here, spare), refused(errno.ELOOP):
        operation(f"{here}/self", spare)


def test_forty_symlinks_are_followed_and_no_more(here: Path) -> None:
    make("file", here / "0")
    for number in range(41):
        (here / f"{number + 1}").symlink_to(f"{number}")
    assert (here / "40").stat().st_ino == (here / "0").stat().st_ino
    with refused(errno.ELOOP):
        os.stat(here / "41")


@every_operation
def test_passing_a_directory_needs_search_permission(
    here: Path, spare: Path, operation: Operation
) -> None:
    closed = make("directory", here / "closed", 0o700)
    make("file", closed / "x")
    closed.chmod(0o666)
    with unchanged(here, closed, spare), acting_as(USER), refused(errno.EACCES):
        operation(f"{closed}/x", spare)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "groups", "result"),
    [
        (0o100, USER, GROUP, (), "ok"),
        (0o677, USER, GROUP, (), "EACCES"),  # the owner's bits decide, not the others'
        (0o010, OTHER, USER, (), "ok"),
        (0o767, OTHER, USER, (), "EACCES"),  # so do the group's
        (0o010, OTHER, GROUP, (GROUP,), "ok"),
        (0o767, OTHER, GROUP, (1, GROUP, 2), "EACCES"),
        (0o001, OTHER, GROUP, (), "ok"),
        (0o776, OTHER, GROUP, (), "EACCES"),
    ],
)
def test_who_may_search_a_directory(
    here: Path, mode: int, owner: int, group: int, groups: tuple[int, ...], result: str
) -> None:
    directory = make("directory", here / "directory", owner=owner, group=group)
    file = make("file", directory / "file")
    directory.chmod(mode)
    with acting_as(USER, *groups):
        assert outcome(lambda: void(os.stat(file))) == result
    os.stat(file)


CHANGE_PARENT = NEW_NAME | REMOVE | {"rename-to": NEW_OR_OLD_NAME["rename-to"]}
CHANGE_PARENT |= {"open-creat": NEW_OR_OLD_NAME["open-creat"]}


@pytest.mark.parametrize("operation", CHANGE_PARENT)
def test_changing_a_directory_needs_write_permission(
    here: Path, spare: Path, operation: str
) -> None:
    directory = make("directory", here / "directory", owner=USER)
    os.chown(spare, USER, USER)
    victim = directory / "x"
    if operation in REMOVE:
        make("directory" if operation == "rmdir" else "file", victim, owner=USER)
    directory.chmod(0o555)
    with unchanged(here, directory, spare), acting_as(USER), refused(errno.EACCES):
        EVERY[operation](str(victim), spare)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", NEW_NAME.values(), ids=NEW_NAME)
def test_a_new_name_must_not_be_there(
    here: Path, spare: Path, kind: str, operation: Operation
) -> None:
    path = make(kind, here / "taken")
    with unchanged(here, path, spare), refused(errno.EEXIST):
        operation(str(path), spare)


def test_a_slash_at_the_end_asks_for_a_directory(here: Path) -> None:
    file = make("file", here / "file")
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: void(os.stat(f"{file}/")),
        "open": lambda: os.open(f"{file}/", os.O_RDONLY),
        "unlink": lambda: os.unlink(f"{file}/"),
        "rename": lambda: os.rename(f"{file}/", here / "new"),
        "rename-to": lambda: os.rename(file, f"{here}/new/"),
        "truncate": lambda: os.truncate(f"{file}/", 0),
    }
    with unchanged(here, file):
        assert {name: outcome(call) for name, call in calls.items()} == dict.fromkeys(
            calls, "ENOTDIR"
        )
    with refused(errno.EISDIR):
        os.open(f"{here}/new/", os.O_CREAT | os.O_WRONLY)
    os.mkdir(f"{here}/new/")
    os.rename(f"{here}/new/", f"{here}/newer/")
    os.rmdir(f"{here}/newer/")


@pytest.fixture(scope="module")
def read_only(azurite: Azurite, crossing: Path) -> Iterator[Path]:
    with mounted(azurite, azurite.new_container(), crossing, "allow_other") as mount:
        make("file", mount.path / "spare")
        for kind in KINDS:
            make(kind, mount.path / kind)
        mount.remount("ro", "allow_other")
        yield mount.path


@pytest.mark.parametrize(
    "operation", (NEW_NAME | NEW_OR_OLD_NAME).values(), ids=NEW_NAME | NEW_OR_OLD_NAME
)
def test_nothing_is_made_on_a_read_only_mount(read_only: Path, operation: Operation) -> None:
    with unchanged(read_only), refused(errno.EROFS):
        operation(str(read_only / "new"), read_only / "spare")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_on_a_read_only_mount(read_only: Path, kind: str) -> None:
    path = read_only / kind
    operations = CHANGE | CHANGE_LINK if kind in ("file", "directory") else CHANGE_LINK
    if kind == "directory":
        operations = {k: v for k, v in operations.items() if "open" not in k and k != "truncate"}
    operations |= {"remove": lambda path, _: remove(Path(path))}
    operations |= {"rename": lambda path, _: os.rename(path, path + "-new")}
    with unchanged(read_only, path):
        found = {
            name: outcome(lambda op=operation: op(str(path), read_only / "spare"))
            for name, operation in operations.items()
        }
    assert found == dict.fromkeys(operations, "EROFS")


def test_a_read_only_mount_reads(read_only: Path) -> None:
    assert sorted(os.listdir(read_only)) == sorted([*KINDS, "spare"])
    with opened(read_only / "file", os.O_RDONLY) as fd:
        assert os.read(fd, 1) == b""
