"""Trees that other tools have uploaded: shown as they meant them, read, changed without loss."""

import errno
import os
import re
import secrets
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from azure.storage.blob import BlobType, ContainerClient

from tests.azurite import Azurite
from tests.mounts import PLAINTEXT_MARKER, Mount, mounted
from tests.sdk import (
    WRITES_PROTOCOL_1,
    AesKek,
    content,
    download,
    encrypting,
    write_key_file,
)

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

MIB = 1024 * 1024
KEK = AesKek("local:foreign", secrets.token_bytes(32))
PLAIN_SIZES = [0, 1, 511, 70_000]
SIZES = [0, 1, 15, 16, 17, 5000, 4 * MIB, 4 * MIB + 1]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key_file(tmp_path / "keys.json", KEK)


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {code}]")):
        yield


def ns(*moment: int, nanoseconds: int = 0) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 10**9 + nanoseconds  # type: ignore[misc]


# --- sizes and contents --------------------------------------------------------------------------


@pytest.mark.parametrize("markers", ["none", "hdi_isfolder", "slash"])
@pytest.mark.parametrize("protocol", ["plain", "1.0", "2.0"])
def test_a_tree_has_the_right_names_sizes_and_contents(
    protocol: str, markers: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    plain = azurite.sdk(container)
    writer = plain if protocol == "plain" else encrypting(azurite, container, KEK, protocol)
    directories = ["top", "top/middle", "top/middle/low"]
    for directory in directories:
        if markers == "slash":
            plain.upload_blob(f"{directory}/", b"")
        elif markers == "hdi_isfolder":
            plain.upload_blob(directory, b"", metadata={"hdi_isfolder": "true"})
        for size in PLAIN_SIZES if protocol == "plain" else SIZES:
            # What is not encrypted is at the service in plaintext, so without the marker.
            data = b"p" * size if protocol == "plain" else content(size)
            writer.upload_blob(f"{directory}/{size}", data)
    option = "norequire_encryption" if protocol == "plain" else "require_encryption"
    with mounted(azurite, container, tmp_path, option, key_file=key_file) as mount:
        if protocol == "1.0":
            mount.expect_log("WARNING .*protocol 1.0")
        found = sorted(subprocess.check_output(["find", "."], cwd=mount.path, text=True).split())
        files = [f"{d}/{size}" for d in directories for size in SIZES]
        if protocol == "plain":
            files = [f"{d}/{size}" for d in directories for size in PLAIN_SIZES]
        assert found == sorted([".", *(f"./{path}" for path in directories + files)])
        for path in files:
            size = int(path.rpartition("/")[2])
            assert (mount.path / path).stat().st_size == size
            data = b"p" * size if protocol == "plain" else content(size)
            assert (mount.path / path).read_bytes() == data


# --- attributes ----------------------------------------------------------------------------------

AZCOPY = {
    "modtime": "1577934245123456789",
    "posix_atime": "1577934246000000001",
    "posix_ctime": "1577934247000000002",
    "permissions": "33200",  # 0o100660
    "posix_owner": "1234",
    "posix_group": "2345",
}
AMLFS = {
    "modtime": "2020-01-02 03:04:05 +0000",
    "permissions": "0660",
    "owner": "1234",
    "group": "2345",
}
RCLONE = {"mtime": "2020-01-02T03:04:05.123456789Z"}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (AZCOPY, (0o660, 1234, 2345, ns(2020, 1, 2, 3, 4, 5, nanoseconds=123456789))),
        (AMLFS, (0o660, 1234, 2345, ns(2020, 1, 2, 3, 4, 5))),
        (RCLONE, (0o640, 7, 8, ns(2020, 1, 2, 3, 4, 5, nanoseconds=123456789))),
        ({"Mtime": RCLONE["mtime"]}, (0o640, 7, 8, ns(2020, 1, 2, 3, 4, 5, nanoseconds=123456789))),
        ({"modtime": "yesterday", "permissions": "rwx", "posix_owner": "-1"}, (0o640, 7, 8, None)),
        ({}, (0o640, 7, 8, None)),
    ],
    ids=["AzCopy", "AzCopy for AMLFS", "rclone", "another case", "malformed", "nothing"],
)
def test_each_tools_times_modes_and_owners_are_shown(
    style: dict[str, str],
    expected: tuple[int, int, int, int | None],
    azurite: Azurite,
    container: str,
    tmp_path: Path,
    key_file: Path,
) -> None:
    sdk = encrypting(azurite, container, KEK)
    sdk.upload_blob("d/file", content(100), metadata=style)
    stored = azurite.sdk(container).get_blob_client("d/file").get_blob_properties().last_modified
    mode, uid, gid, mtime = expected
    mtime = int(stored.timestamp()) * 10**9 if mtime is None else mtime
    options = ("uid=7", "gid=8", "file_mode=640", "dir_mode=750")
    with mounted(azurite, container, tmp_path, *options, key_file=key_file) as mount:
        status = (mount.path / "d/file").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, uid, gid)
        assert status.st_mtime_ns == mtime
        directory = (mount.path / "d").stat()
        assert (stat.S_IMODE(directory.st_mode), directory.st_uid, directory.st_gid) == (
            0o750,
            7,
            8,
        )


@pytest.mark.parametrize("marker", ["d", "d/"])
def test_a_directorys_marker_gives_its_times_mode_and_owner(
    marker: str, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk = azurite.sdk(container)
    metadata = AZCOPY | {"permissions": "16872"}  # 0o40750
    sdk.upload_blob(marker, b"", metadata=metadata | {"hdi_isfolder": "true"})
    sdk.upload_blob("d/x", b"")
    with mounted(azurite, container, tmp_path, "metadata_ttl=0") as mount:
        # A listing of the parent does not have the kind with a slash: that of its own does.
        os.listdir(mount.path / "d")
        status = (mount.path / "d").stat()
        assert oct(status.st_mode) == "0o40750"
        assert (status.st_uid, status.st_gid) == (1234, 2345)
        assert status.st_mtime_ns == 1577934245123456789
        assert os.listdir(mount.path / "d") == ["x"]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"is_fifo": "true"}, stat.S_IFIFO),
        ({"is_socket": "true", "hdi_isfolder": "true"}, stat.S_IFSOCK),
        ({"is_char_dev": "true", "posix_rdev": "259"}, stat.S_IFCHR),
        ({"is_block_dev": "true", "is_char_dev": "true", "posix_rdev": "2049"}, stat.S_IFBLK),
        ({"hdi_isfolder": "true"}, stat.S_IFDIR),
        ({"hdi_isfolder": "True"}, stat.S_IFREG),
    ],
)
def test_azcopys_types_of_files_are_shown(
    keys: dict[str, str], kind: int, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("node", b"", metadata=keys)
    with mounted(azurite, container, tmp_path) as mount:
        status = os.lstat(mount.path / "node")
        assert stat.S_IFMT(status.st_mode) == kind
        if "posix_rdev" in keys:
            assert status.st_rdev == int(keys["posix_rdev"])


def test_a_symlink_is_one_encrypted_or_not(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    link = {"is_symlink": "true"}
    encrypting(azurite, container, KEK).upload_blob("sealed", b"../the target", metadata=link)
    azurite.sdk(container).upload_blob("plain", b"other target", metadata=link)
    with mounted(azurite, container, tmp_path, "norequire_encryption", key_file=key_file) as mount:
        assert os.readlink(mount.path / "sealed") == "../the target"
        assert os.readlink(mount.path / "plain") == "other target"
        assert os.lstat(mount.path / "plain").st_size == len("other target")


def test_a_plain_blob_is_read_and_encrypted_once_it_is_rewritten(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = azurite.sdk(container)
    metadata = RCLONE | {"Author": "Ann"}
    sdk.upload_blob("file", b"p" * 1000, metadata=metadata)
    with mounted(azurite, container, tmp_path, "norequire_encryption", key_file=key_file) as mount:
        file = mount.path / "file"
        assert file.read_bytes() == b"p" * 1000
        os.chmod(file, 0o600)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        assert sdk.download_blob("file").readall() == b"p" * 1000  # its content was left alone
        with file.open("ab") as opened:
            opened.write(PLAINTEXT_MARKER)
        assert file.read_bytes() == b"p" * 1000 + PLAINTEXT_MARKER
    info = sdk.get_blob_client("file").get_blob_properties()
    assert info.metadata["Author"] == "Ann"
    assert info.metadata["permissions"] == str(stat.S_IFREG | 0o600)
    assert download(encrypting(azurite, container, KEK), "file") == b"p" * 1000 + PLAINTEXT_MARKER


# --- page and append blobs -----------------------------------------------------------------------


def make_page(azurite: Azurite, container: str) -> bytes:
    data = (b"p" * 511 + b"\n") * 300
    azurite.sdk(container).upload_blob(
        "odd", data, blob_type=BlobType.PAGEBLOB, metadata={"Author": "Ann"}
    )
    return data


def make_append(azurite: Azurite, container: str) -> bytes:
    data = b"a line\n" * 9000
    azurite.sdk(container).upload_blob(
        "odd", data, blob_type=BlobType.APPENDBLOB, metadata={"Author": "Ann"}
    )
    return data


def make_encrypted_page(azurite: Azurite, container: str) -> bytes:
    data = content(1024 * 300)
    encrypting(azurite, container, KEK, "1.0").upload_blob(
        "odd", data, blob_type=BlobType.PAGEBLOB, metadata={"Author": "Ann"}
    )
    return data


ODD = pytest.mark.parametrize("make", [make_page, make_append, make_encrypted_page])


@pytest.fixture
def odd(
    make: object, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> Iterator[tuple[Mount, ContainerClient, bytes]]:
    data = make(azurite, container)  # type: ignore[operator]
    with mounted(
        azurite, container, tmp_path, "norequire_encryption", "metadata_ttl=0", key_file=key_file
    ) as mount:
        if make is make_encrypted_page:
            mount.expect_log("WARNING .*protocol 1.0")
        yield mount, azurite.sdk(container), data


@ODD
def test_page_and_append_blobs_are_read(odd: tuple[Mount, ContainerClient, bytes]) -> None:
    mount, _, data = odd
    assert (mount.path / "odd").stat().st_size == len(data)
    assert (mount.path / "odd").read_bytes() == data
    if data.startswith(PLAINTEXT_MARKER):
        file = os.open(mount.path / "odd", os.O_RDONLY)
    else:
        file = os.open(mount.path / "odd", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.pread(file, 5000, 70_001) == data[70_001:75_001]
    finally:
        os.close(file)


@ODD
def test_page_and_append_blobs_are_not_written_and_lose_nothing(
    odd: tuple[Mount, ContainerClient, bytes],
) -> None:
    """Azure takes no large block blob in their place, so that to write them they had to go."""
    mount, sdk, data = odd
    mount.expect_log("WARNING .*blob, which is never rewritten: .*copy")
    before = sdk.download_blob("odd").readall()
    (mount.path / "new").write_bytes(PLAINTEXT_MARKER)
    for change in (
        lambda path: os.open(path, os.O_WRONLY),
        lambda path: os.open(path, os.O_RDWR | os.O_APPEND),
        lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
        lambda path: os.truncate(path, 10),
        lambda path: os.replace(mount.path / "new", path),
    ):
        with refused(errno.EPERM):
            change(mount.path / "odd")
    assert sdk.download_blob("odd").readall() == before
    assert (mount.path / "odd").read_bytes() == data
    assert (mount.path / "new").read_bytes() == PLAINTEXT_MARKER


@ODD
def test_page_and_append_blobs_change_attributes_and_names_and_are_deleted(
    odd: tuple[Mount, ContainerClient, bytes], make: object
) -> None:
    mount, sdk, data = odd
    kind = sdk.get_blob_client("odd").get_blob_properties().blob_type
    os.chmod(mount.path / "odd", 0o604)
    os.rename(mount.path / "odd", mount.path / "moved")
    info = sdk.get_blob_client("moved").get_blob_properties()
    assert info.blob_type == kind
    assert info.metadata["Author"] == "Ann"
    assert info.metadata["permissions"] == str(stat.S_IFREG | 0o604)
    assert (mount.path / "moved").read_bytes() == data
    subprocess.run(["cp", mount.path / "moved", mount.path / "copy"], check=True)
    os.unlink(mount.path / "moved")
    os.rename(mount.path / "copy", mount.path / "moved")  # the way out that the log names
    with (mount.path / "moved").open("ab") as file:
        file.write(PLAINTEXT_MARKER)
    assert (mount.path / "moved").read_bytes() == data + PLAINTEXT_MARKER
    assert sdk.get_blob_client("moved").get_blob_properties().blob_type == BlobType.BLOCKBLOB


# --- snapshots -----------------------------------------------------------------------------------


def test_snapshots_are_not_shown_and_keep_their_file_from_going(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = azurite.sdk(container)
    with mounted(azurite, container, tmp_path, "metadata_ttl=0", key_file=key_file) as mount:
        mount.expect_log("ERROR .*unlink 'd/file': .*SnapshotsPresent")
        mount.expect_log("ERROR .*rename 'd/file': .*SnapshotsPresent")
        mount.expect_log("ERROR .*rename '/d': .*SnapshotsPresent")
        (mount.path / "d").mkdir()
        (mount.path / "d/file").write_bytes(PLAINTEXT_MARKER + b"old")
        for _ in range(3):
            sdk.get_blob_client("d/file").create_snapshot()
        (mount.path / "d/file").write_bytes(PLAINTEXT_MARKER + b"new")
        assert os.listdir(mount.path / "d") == ["file"]
        with refused(errno.EBUSY):
            os.unlink(mount.path / "d/file")
        with refused(errno.EBUSY):
            os.rename(mount.path / "d/file", mount.path / "d/other")
        with refused(errno.EBUSY):
            os.rename(mount.path / "d", mount.path / "e")
        assert os.listdir(mount.path) == ["d"]
        assert os.listdir(mount.path / "d") == ["file"]
        assert (mount.path / "d/file").read_bytes() == PLAINTEXT_MARKER + b"new"
        with (mount.path / "d/file").open("rb"), refused(errno.EBUSY):
            os.unlink(mount.path / "d/file")
        assert list(sdk.list_blob_names()) == ["d", "d/file"]
        snapshots = [blob for blob in sdk.list_blobs(include=["snapshots"]) if blob.snapshot]
        assert len(snapshots) == 3
        sdk.delete_blob("d/file", delete_snapshots="only")
        os.unlink(mount.path / "d/file")
        assert os.listdir(mount.path / "d") == []
