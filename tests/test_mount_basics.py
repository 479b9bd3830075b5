"""Single operations on a mount, one system call or two each, as root and as an ordinary user."""

import errno
import mmap
import os
import random
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from azure.storage.blob import BlobClient, ContainerClient

from tests.azurite import Azurite
from tests.descriptors import opened
from tests.mounts import PLAINTEXT_MARKER
from tests.owner import Place, by_owner, snapshot

pytestmark = pytest.mark.mount

KIB = 1024
MIB = 1024 * KIB

# 2001-02-03 04:05:06 with nanoseconds that neither a float nor a count of 100 ns can hold.
MOMENT_NS = 981173106_123456789


def content_of(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, with the marker that the leak scan looks for at both ends."""
    middle = random.Random(seed).randbytes(max(0, size - 2 * len(PLAINTEXT_MARKER)))
    return (PLAINTEXT_MARKER + middle + PLAINTEXT_MARKER)[:size]


@contextmanager
def refused(*codes: int) -> Iterator[None]:
    """The block must raise OSError with one of these error numbers."""
    raised: int | None = 0
    try:
        yield
    except OSError as exc:
        raised = exc.errno
    wanted = " or ".join(errno.errorcode[code] for code in codes)
    assert raised in codes, f"{errno.errorcode.get(raised or 0)} instead of {wanted}"


def sdk(azurite: Azurite, place: Place) -> ContainerClient:
    """The container that is mounted, without blobfs."""
    return azurite.sdk(place.mount.source.rpartition("/")[2])


def blob_client(azurite: Azurite, place: Place, name: str) -> BlobClient:
    return sdk(azurite, place).get_blob_client(f"{place.path.name}/{name}")


# --- content ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 64 * KIB, 64 * KIB + 1, 256 * KIB, MIB + 17])
@by_owner
def test_what_was_written_is_read(place: Place, size: int) -> None:
    data = content_of(size)
    (place.path / "file").write_bytes(data)
    assert (place.path / "file").stat().st_size == size
    assert (place.path / "file").read_bytes() == data


def test_content_is_there_after_a_remount(place: Place) -> None:
    # more than one block, so it is staged while it is written, and a last block in part
    data = content_of(41 * MIB + 12345)
    file = place.path / "large"
    place.act(lambda: file.write_bytes(data))
    place.mount.remount()
    assert place.act(lambda: file.stat().st_size) == len(data)
    assert place.act(lambda: file.read_bytes() == data)


@by_owner
def test_any_range_can_be_read(place: Place) -> None:
    data = content_of(MIB + 17)
    (place.path / "file").write_bytes(data)
    ranges = random.Random(1)
    with opened(place.path / "file", os.O_RDONLY) as fd:
        for _ in range(100):
            start, size = ranges.randrange(len(data) + 10), ranges.randrange(200 * KIB)
            assert os.pread(fd, size, start) == data[start : start + size]


@by_owner
def test_any_range_can_be_overwritten(place: Place) -> None:
    data = bytearray(content_of(MIB + 17))
    (place.path / "file").write_bytes(data)
    ranges = random.Random(2)
    with opened(place.path / "file", os.O_RDWR) as fd:
        for seed in range(60):
            start, size = ranges.randrange(len(data)), ranges.randrange(1, 100 * KIB)
            piece = content_of(size, seed)
            assert os.pwrite(fd, piece, start) == size
            data[start : start + size] = piece
            assert os.pread(fd, size + 20, max(0, start - 10)) == bytes(
                data[max(0, start - 10) : max(0, start - 10) + size + 20]
            )
    assert (place.path / "file").read_bytes() == data


@by_owner
def test_a_write_beyond_the_end_leaves_a_hole_of_zeros(place: Place) -> None:
    with opened(place.path / "file", os.O_CREAT | os.O_WRONLY) as fd:
        os.pwrite(fd, b"end", 700_000)
        os.pwrite(fd, b"start", 0)
    assert (place.path / "file").read_bytes() == b"start" + bytes(699_995) + b"end"


@pytest.mark.parametrize("size", [0, 1, 1000, 64 * KIB, 100_000, 100_001, 300_000])
@by_owner
def test_truncate_cuts_and_grows(place: Place, size: int) -> None:
    data = content_of(100_000)
    (place.path / "file").write_bytes(data)
    os.truncate(place.path / "file", size)
    assert (place.path / "file").stat().st_size == size
    assert (place.path / "file").read_bytes() == data[:size] + bytes(max(0, size - len(data)))


@by_owner
def test_what_was_cut_off_reads_as_zeros_when_the_file_grows_again(place: Place) -> None:
    (place.path / "file").write_bytes(content_of(100_000))
    with opened(place.path / "file", os.O_RDWR) as fd:
        os.ftruncate(fd, 10)
        os.ftruncate(fd, 50)
        assert os.pread(fd, 100, 0) == content_of(100_000)[:10] + bytes(40)
    assert (place.path / "file").read_bytes() == content_of(100_000)[:10] + bytes(40)


@by_owner
def test_opening_with_o_trunc_empties_the_file(place: Place) -> None:
    (place.path / "file").write_bytes(content_of(100_000))
    with opened(place.path / "file", os.O_WRONLY | os.O_TRUNC):
        assert (place.path / "file").stat().st_size == 0
    assert (place.path / "file").read_bytes() == b""


@by_owner
def test_appends_go_to_the_end_whoever_moved_it(place: Place) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with opened(place.path / "log", flags) as one, opened(place.path / "log", flags) as other:
        for number in range(10):
            os.write(one, b"one %d\n" % number)
            os.write(other, b"other %d\n" % number)
    expected = b"".join(b"one %d\nother %d\n" % (n, n) for n in range(10))
    assert (place.path / "log").read_bytes() == expected


@by_owner
def test_other_handles_see_what_is_not_stored_yet(place: Place) -> None:
    (place.path / "file").write_bytes(b"before")
    with (
        opened(place.path / "file", os.O_RDWR) as writer,
        opened(place.path / "file", os.O_RDONLY) as reader,
    ):
        os.pwrite(writer, b"after, and longer", 0)
        assert os.pread(reader, 100, 0) == b"after, and longer"
        assert (place.path / "file").stat().st_size == 17


@by_owner
def test_what_is_synced_is_stored_while_the_file_is_open(place: Place, azurite: Azurite) -> None:
    blob = blob_client(azurite, place, "file")
    with opened(place.path / "file", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"some bytes")
        os.fsync(fd)
        synced = blob.get_blob_properties()
    assert synced.size > 10
    assert blob.get_blob_properties().etag == synced.etag, "close stored it again"


@by_owner
def test_a_closed_copy_of_a_descriptor_leaves_the_other_usable(place: Place) -> None:
    with opened(place.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        copy = os.dup(fd)
        os.write(copy, b"through one, ")
        os.close(copy)
        os.write(fd, b"through the other")
    assert (place.path / "file").read_bytes() == b"through one, through the other"


@by_owner
def test_a_reader_that_closes_stores_nothing_of_a_writers(place: Place, azurite: Azurite) -> None:
    file, blob = place.path / "file", blob_client(azurite, place, "file")
    file.write_bytes(b"old")
    old = blob.get_blob_properties()
    with opened(file, os.O_WRONLY) as writer:
        os.write(writer, b"new")
        assert file.read_bytes() == b"new"
        assert blob.get_blob_properties().etag == old.etag
        os.close(os.open(file, os.O_RDONLY | os.O_TRUNC))
        assert blob.get_blob_properties().etag != old.etag, "who truncates is no reader"
    assert blob.get_blob_properties().etag != old.etag


@by_owner
def test_a_mapping_shows_the_content(place: Place) -> None:
    data = content_of(300_000)
    (place.path / "file").write_bytes(data)
    with (
        opened(place.path / "file", os.O_RDONLY) as fd,
        mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping,
    ):
        assert mapping[:] == data


def test_changes_through_a_shared_mapping_are_stored(place: Place) -> None:
    data = bytearray(content_of(300_000))
    data[70_000:70_005] = b"hello"
    data[299_999:] = b"!"

    def change() -> None:
        (place.path / "file").write_bytes(content_of(300_000))
        with opened(place.path / "file", os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapping:
            mapping[70_000:70_005] = b"hello"
            mapping.flush()
            mapping[299_999:] = b"!"
            mapping.flush()

    place.act(change)
    assert place.act((place.path / "file").read_bytes) == data
    place.mount.remount()
    assert place.act((place.path / "file").read_bytes) == data


def test_changes_through_a_mapping_that_outlives_its_descriptor_are_stored(place: Place) -> None:
    def change() -> None:
        (place.path / "file").write_bytes(b"." * 10_000)
        with opened(place.path / "file", os.O_RDWR) as fd:
            mapping = mmap.mmap(fd, 0)
        mapping[5_000:5_005] = b"hello"
        mapping.close()

    place.act(change)
    place.mount.remount()
    expected = b"." * 5_000 + b"hello" + b"." * 4_995
    assert place.act((place.path / "file").read_bytes) == expected


# --- names -----------------------------------------------------------------------------------

NAMES = [
    "with space",
    " leading and trailing ",
    "ünïcödé",
    "e\u0301 is not \u00e9",  # a normalising client would merge it with another file's
    "日本語",
    "🔑🗝",
    "100%",
    "%20",
    "%2F",
    "a#b",
    "a?b=c&d",
    "a+b",
    "a;b:c@d",
    'quote\'d "twice"',
    "<tag>&amp;",
    "-rf",
    "~",
    ".hidden",
    "...three",
    "line|pipe*star",
    "[bracket]{brace}",
    "x" * 255,
]


def test_every_name_works_for_files_and_directories(place: Place, azurite: Azurite) -> None:
    def make() -> None:
        for name in NAMES:
            (place.path / "files").mkdir(exist_ok=True)
            (place.path / "files" / name).write_text(name)
            (place.path / "dirs" / name).mkdir(parents=True)
            (place.path / "dirs" / name / name).write_text(name)
            os.rename(place.path / "files" / name, place.path / "moved")
            os.rename(place.path / "moved", place.path / "files" / name)

    def contents() -> dict[str, str]:
        return {
            str(path.relative_to(place.path)): path.read_text()
            for path in place.path.rglob("*")
            if path.is_file()
        }

    expected = {f"files/{name}": name for name in NAMES}
    expected |= {f"dirs/{name}/{name}": name for name in NAMES}
    place.act(make)
    assert place.act(contents) == expected
    place.mount.remount()
    assert place.act(contents) == expected
    blobs = sdk(azurite, place).list_blob_names(name_starts_with=f"{place.path.name}/files/")
    assert {blob.removeprefix(f"{place.path.name}/files/") for blob in blobs} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"back\\slash", errno.EINVAL),
        (b"ends in a dot.", errno.EINVAL),
        (b"line\nbreak", errno.EINVAL),
        (b"\xff\xfe", errno.EILSEQ),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b".blobfs-hidden-1", errno.EINVAL),
    ],
)
@by_owner
def test_a_name_that_no_blob_can_have_is_refused(place: Place, name: bytes, code: int) -> None:
    path = os.fsencode(place.path) + b"/" + name
    with refused(code):
        os.open(path, os.O_CREAT | os.O_WRONLY)
    with refused(code):
        os.mkdir(path)
    (place.path / "file").write_text("x")
    with refused(code):
        os.rename(place.path / "file", path)
    assert os.listdir(place.path) == ["file"]


@by_owner
def test_a_path_over_azures_limit_is_refused(place: Place) -> None:
    deep = place.path
    with refused(errno.ENAMETOOLONG):
        for _ in range(6):
            deep /= "d" * 200
            deep.mkdir()


# --- directories -----------------------------------------------------------------------------


def test_an_empty_directory_stays(place: Place) -> None:
    place.act(lambda: (place.path / "a/b").mkdir(parents=True))
    place.mount.remount()
    assert place.act(lambda: os.listdir(place.path / "a")) == ["b"]
    assert place.act(lambda: os.listdir(place.path / "a/b")) == []


def test_a_directory_stays_when_its_last_file_goes(place: Place) -> None:
    def make() -> None:
        (place.path / "dir").mkdir()
        (place.path / "dir/file").write_text("x")
        (place.path / "dir/file").unlink()

    place.act(make)
    place.mount.remount()
    assert place.act(lambda: os.listdir(place.path)) == ["dir"]


@by_owner
def test_a_directory_is_removed_only_when_it_is_empty(place: Place) -> None:
    (place.path / "dir").mkdir()
    (place.path / "dir/file").write_text("x")
    with refused(errno.ENOTEMPTY):
        os.rmdir(place.path / "dir")
    (place.path / "dir/file").unlink()
    os.rmdir(place.path / "dir")
    assert os.listdir(place.path) == []
    with refused(errno.ENOENT):
        os.rmdir(place.path / "dir")


@by_owner
def test_making_and_removing_the_wrong_kind_is_refused(place: Place) -> None:
    (place.path / "dir").mkdir()
    (place.path / "file").write_text("x")
    with refused(errno.EEXIST):
        os.mkdir(place.path / "dir")
    with refused(errno.EEXIST):
        os.mkdir(place.path / "file")
    with refused(errno.EISDIR):
        os.unlink(place.path / "dir")
    with refused(errno.ENOTDIR):
        os.rmdir(place.path / "file")
    with refused(errno.EISDIR):
        os.open(place.path / "dir", os.O_WRONLY)
    with refused(errno.ENOTDIR):
        os.listdir(place.path / "file")
    with refused(errno.ENOTDIR):
        (place.path / "file/below").write_text("x")


@by_owner
def test_a_directory_of_many_files_is_listed_whole_and_removed_while_it_is_read(
    place: Place,
) -> None:
    names = {f"file-{number:03d}" for number in range(150)}
    for name in names:
        (place.path / name).touch()
    assert set(os.listdir(place.path)) == names
    seen = set()
    with os.scandir(place.path) as entries:
        for entry in entries:
            seen.add(entry.name)
            os.unlink(entry.path)
    assert seen == names
    assert os.listdir(place.path) == []


# --- creating, removing, renaming ------------------------------------------------------------


@by_owner
def test_o_excl_creates_a_file_once(place: Place) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with opened(place.path / "lock", flags), refused(errno.EEXIST):
        os.open(place.path / "lock", flags)
    with refused(errno.EEXIST):
        os.open(place.path / "lock", flags)
    os.unlink(place.path / "lock")
    os.close(os.open(place.path / "lock", flags))


@by_owner
def test_what_is_not_there_cannot_be_used(place: Place) -> None:
    missing = place.path / "missing"
    for use in (os.stat, os.unlink, os.readlink, os.listdir, os.listxattr):
        with refused(errno.ENOENT):
            use(missing)
    with refused(errno.ENOENT):
        os.rename(missing, place.path / "other")


@by_owner
def test_an_unlinked_file_works_until_it_is_closed(place: Place) -> None:
    (place.path / "file").write_bytes(b"stored")
    with opened(place.path / "file", os.O_RDWR) as fd:
        os.unlink(place.path / "file")
        assert os.listdir(place.path) == []
        assert os.pread(fd, 10, 0) == b"stored"
        os.pwrite(fd, b", and more", 6)
        assert os.pread(fd, 20, 0) == b"stored, and more"
        assert os.fstat(fd).st_nlink == 0
    assert os.listdir(place.path) == []


@by_owner
def test_a_file_can_be_unlinked_before_anything_of_it_is_stored(place: Place) -> None:
    with opened(place.path / "temporary", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"scratch")
        os.unlink(place.path / "temporary")
        os.write(fd, b"pad")
        assert os.pread(fd, 20, 0) == b"scratchpad"
        os.fsync(fd)
    assert os.listdir(place.path) == []


@by_owner
def test_a_name_can_be_used_again_while_its_old_file_is_open(place: Place) -> None:
    (place.path / "file").write_bytes(b"old")
    with opened(place.path / "file", os.O_RDONLY) as fd:
        os.unlink(place.path / "file")
        (place.path / "file").write_bytes(b"new")
        assert os.pread(fd, 10, 0) == b"old"
    assert (place.path / "file").read_bytes() == b"new"


def test_nothing_is_left_of_files_that_were_removed_while_open(
    place: Place, azurite: Azurite
) -> None:
    def use() -> None:
        for name in ("unlinked", "replaced", "new"):
            (place.path / name).write_bytes(b"x")
        with (
            opened(place.path / "unlinked", os.O_RDWR) as one,
            opened(place.path / "replaced", os.O_RDWR) as two,
        ):
            os.unlink(place.path / "unlinked")
            os.rename(place.path / "new", place.path / "replaced")
            os.write(one, b"y")
            os.write(two, b"y")
        os.unlink(place.path / "replaced")

    place.act(use)
    place.mount.remount()
    names = list(sdk(azurite, place).list_blob_names())
    assert [name for name in names if name.startswith((place.path.name, ".blobfs"))] == [
        place.path.name
    ]


@by_owner
def test_a_renamed_file_takes_the_place_of_another(place: Place) -> None:
    (place.path / "new").write_bytes(b"new")
    (place.path / "target").write_bytes(b"old")
    with opened(place.path / "target", os.O_RDONLY) as fd:
        os.rename(place.path / "new", place.path / "target")
        assert os.pread(fd, 10, 0) == b"old"
    assert (place.path / "target").read_bytes() == b"new"
    assert os.listdir(place.path) == ["target"]


@by_owner
def test_an_open_file_can_be_renamed_and_written_on(place: Place) -> None:
    with opened(place.path / "before", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"one ")
        os.rename(place.path / "before", place.path / "between")
        os.write(fd, b"two ")
        os.fsync(fd)
        os.rename(place.path / "between", place.path / "after")
        os.write(fd, b"three")
        assert os.pread(fd, 20, 0) == b"one two three"
    assert os.listdir(place.path) == ["after"]
    assert (place.path / "after").read_bytes() == b"one two three"


def test_a_directory_is_renamed_with_all_below_it(place: Place) -> None:
    def make() -> dict[str, tuple[object, ...]]:
        for name in ("from/a/b/c", "from/empty", "to"):
            (place.path / name).mkdir(parents=True)
        for name in ("from/1", "from/a/2", "from/a/b/c/3"):
            (place.path / name).write_text(name)
        os.symlink("a/2", place.path / "from/link")
        os.chmod(place.path / "from/a", 0o700)
        before = snapshot(place.path / "from")
        os.rename(place.path / "from", place.path / "to")
        return before

    before = place.act(make)
    del before["."]  # its times may be those of the rename
    for _ in range(2):
        after = place.act(lambda: snapshot(place.path / "to"))
        del after["."]
        assert {k: v[:2] + v[3:] for k, v in after.items()} == {
            k: v[:2] + v[3:] for k, v in before.items()
        }
        assert place.act(lambda: os.listdir(place.path)) == ["to"]
        place.mount.remount()


@by_owner
def test_a_file_open_in_a_renamed_directory_works_on(place: Place) -> None:
    (place.path / "from").mkdir()
    (place.path / "from/file").write_bytes(b"old ")
    with opened(place.path / "from/file", os.O_RDWR | os.O_APPEND) as fd:
        os.rename(place.path / "from", place.path / "to")
        os.write(fd, b"new")
        assert os.pread(fd, 10, 0) == b"old new"
    assert (place.path / "to/file").read_bytes() == b"old new"


@by_owner
def test_renames_that_posix_forbids_are_refused(place: Place) -> None:
    for name in ("full", "dir"):
        (place.path / name).mkdir()
    for name in ("full/file", "file"):
        (place.path / name).write_text(name)
    before = snapshot(place.path)
    for old, new, codes in (
        ("dir", "full", (errno.ENOTEMPTY, errno.EEXIST)),
        ("dir", "file", (errno.ENOTDIR,)),
        ("file", "dir", (errno.EISDIR,)),
        ("dir", "dir/below", (errno.EINVAL,)),
    ):
        with refused(*codes):
            os.rename(place.path / old, place.path / new)
    assert snapshot(place.path) == before
    os.rename(place.path / "full", place.path / "dir")  # over an empty one is allowed
    assert os.listdir(place.path / "dir") == ["file"]


# --- other types -----------------------------------------------------------------------------


def test_symbolic_links_keep_their_target(place: Place) -> None:
    targets = ["file", "../up", "/abs/olute", "dangling", "ünï code", "x" * 1500]

    def read() -> list[str]:
        return [os.readlink(place.path / f"link-{n}") for n in range(len(targets))]

    def make() -> None:
        (place.path / "file").write_text("through the link")
        for number, target in enumerate(targets):
            os.symlink(target, place.path / f"link-{number}")
        with refused(errno.EEXIST):
            os.symlink("file", place.path / "link-0")

    place.act(make)
    assert place.act(read) == targets
    place.mount.remount()
    assert place.act(read) == targets
    assert place.act((place.path / "link-0").read_text) == "through the link"
    assert place.act(lambda: (place.path / "link-5").lstat().st_size) == 1500


def test_pipes_and_sockets_keep_their_type(place: Place) -> None:
    def make() -> None:
        os.mkfifo(place.path / "pipe", 0o640)
        with socket.socket(socket.AF_UNIX) as unix:
            os.chdir(place.path)  # a socket's path is at most 107 bytes
            unix.bind("socket")
            os.chdir("/")

    def modes() -> list[str]:
        return [stat.filemode((place.path / name).stat().st_mode) for name in ("pipe", "socket")]

    place.act(make)
    before = place.act(modes)
    assert before == ["prw-r-----", "srwxr-xr-x"]
    place.mount.remount()
    assert place.act(modes) == before


def test_devices_are_made_by_root_alone(place: Place) -> None:
    def make() -> None:
        os.mknod(place.path / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))

    if place.user is not None:
        with refused(errno.EPERM):
            place.act(make)
        return
    make()
    place.mount.remount()
    status = (place.path / "device").stat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == os.makedev(1, 3)


@by_owner
def test_hard_links_are_refused_as_not_supported(place: Place) -> None:
    (place.path / "file").write_text("x")
    with refused(errno.EOPNOTSUPP):
        os.link(place.path / "file", place.path / "other")


# --- attributes ------------------------------------------------------------------------------


def test_modes_times_and_owners_persist(place: Place) -> None:
    paths = [place.path / "file", place.path / "dir", place.path / "link"]
    uid = 1234 if place.user is None else place.user

    def make() -> None:
        paths[0].write_text("x")
        paths[1].mkdir()
        paths[2].symlink_to("file")
        os.chmod(paths[0], 0o4750)
        os.chmod(paths[1], 0o1777)
        for path in paths:
            os.chown(path, uid, uid, follow_symlinks=False)
        os.chmod(paths[0], 0o2751)
        for path in paths:
            os.utime(path, ns=(MOMENT_NS - 5, MOMENT_NS), follow_symlinks=False)

    def seen() -> list[tuple[str, int, int, int]]:
        return [
            (stat.filemode(s.st_mode), s.st_mtime_ns, s.st_uid, s.st_gid)
            for s in (path.lstat() for path in paths)
        ]

    place.act(make)
    expected = [(mode, MOMENT_NS, uid, uid) for mode in ("-rwxr-s--x", "drwxrwxrwt", "lrwxrwxrwx")]
    assert place.act(seen) == expected
    assert place.act(lambda: paths[0].stat().st_atime_ns) == MOMENT_NS - 5
    place.mount.remount()
    assert place.act(seen) == expected


def test_times_before_1970_and_far_ahead_persist(place: Place) -> None:
    moments = {"past": -1_000_000_001, "ahead": 7_258_118_400_000_000_007}

    def make() -> None:
        for name, moment in moments.items():
            (place.path / name).touch()
            os.utime(place.path / name, ns=(moment, moment))

    place.act(make)
    place.mount.remount()
    for name, moment in moments.items():
        assert place.act((place.path / name).stat).st_mtime_ns == moment


@by_owner
def test_a_write_moves_mtime_and_a_read_does_not(place: Place) -> None:
    file = place.path / "file"
    file.write_text("x")
    os.utime(file, ns=(MOMENT_NS, MOMENT_NS))
    file.read_text()
    assert file.stat().st_mtime_ns == MOMENT_NS
    file.write_text("y")
    assert file.stat().st_mtime_ns > MOMENT_NS


@by_owner
def test_the_umask_and_the_mode_given_decide_on_a_new_files_mode(place: Place) -> None:
    before = os.umask(0o027)
    try:
        with opened(place.path / "file", os.O_CREAT | os.O_WRONLY, 0o666):
            pass
        os.mkdir(place.path / "dir", 0o777)
    finally:
        os.umask(before)
    assert stat.filemode((place.path / "file").stat().st_mode) == "-rw-r-----"
    assert stat.filemode((place.path / "dir").stat().st_mode) == "drwxr-x---"


@by_owner
def test_a_file_can_be_written_by_the_handle_that_made_it_read_only(place: Place) -> None:
    with opened(place.path / "object", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444) as fd:
        os.write(fd, b"as git does")
    assert (place.path / "object").read_bytes() == b"as git does"
    assert stat.filemode((place.path / "object").stat().st_mode) == "-r--r--r--"


def test_permission_bits_apply_to_an_ordinary_user(place: Place) -> None:
    def use() -> None:
        (place.path / "file").write_text("x")
        os.chmod(place.path / "file", 0)
        (place.path / "file").read_text()

    if place.user is None:
        use()
        return
    with refused(errno.EACCES):
        place.act(use)


def test_extended_attributes_persist(place: Place) -> None:
    values = {"user.note": b"some \x00 bytes", "user.empty": b"", "user.azure.metadata.team": b"x"}

    def set_all() -> None:
        (place.path / "file").write_text("content")
        (place.path / "dir").mkdir()
        for name, value in values.items():
            for path in ("file", "dir"):
                os.setxattr(place.path / path, name, value)

    def seen(path: str) -> dict[str, bytes]:
        return {
            name: os.getxattr(place.path / path, name) for name in os.listxattr(place.path / path)
        }

    place.act(set_all)
    for _ in range(2):
        assert place.act(lambda: seen("file")) == values
        assert place.act(lambda: seen("dir")) == values
        assert place.act((place.path / "file").read_text) == "content"
        place.mount.remount()


@by_owner
def test_extended_attributes_follow_the_flags_and_the_errors_of_posix(place: Place) -> None:
    file = place.path / "file"
    file.write_text("x")
    with refused(errno.ENODATA):
        os.getxattr(file, "user.a")
    with refused(errno.ENODATA):
        os.removexattr(file, "user.a")
    os.setxattr(file, "user.a", b"1")
    os.setxattr(file, "user.a", b"2")
    assert os.getxattr(file, "user.a") == b"2"
    os.removexattr(file, "user.a")
    assert os.listxattr(file) == []
    with refused(errno.ENOSPC):
        os.setxattr(file, "user.big", bytes(9000))
    assert os.listxattr(file) == []


def test_views_of_the_blob_show_and_change_what_the_service_has(
    place: Place, azurite: Azurite
) -> None:
    file = place.path / "file"

    def change() -> bytes:
        file.write_text("x")
        os.setxattr(file, "user.azure.content_type", b"text/plain")
        os.setxattr(file, "user.azure.tag.project", b"blobfs")
        with refused(errno.EPERM):
            os.setxattr(file, "user.azure.etag", b"mine")
        with refused(errno.EPERM):
            os.setxattr(file, "user.azure.metadata.encryptiondata", b"mine")
        return os.getxattr(file, "user.azure.etag")

    etag = place.act(change)
    blob = blob_client(azurite, place, "file")
    properties = blob.get_blob_properties()
    assert properties.content_settings.content_type == "text/plain"
    assert properties.etag.strip('"') == etag.decode().strip('"')
    assert blob.get_blob_tags() == {"project": "blobfs"}
    names = place.act(lambda: os.listxattr(file))
    assert {"user.azure.content_type", "user.azure.tag.project"} <= set(names)


@by_owner
def test_statfs_says_that_there_is_room(place: Place) -> None:
    status = os.statvfs(place.path)
    assert status.f_bavail * status.f_frsize > 2**40
    assert status.f_favail > 10**6
    assert status.f_namemax == 255
