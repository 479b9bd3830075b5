"""Whatever a blob has beside its content is still there after any change through the mount."""

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobProperties, ContentSettings, StandardBlobTier

from tests.azurite import Azurite
from tests.mounts import Mount, mounted
from tests.sdk import AesKek, content, download, encrypting, write_key_file

pytestmark = pytest.mark.mount

KEK = AesKek("local:metadata", secrets.token_bytes(32))
CONTENT = content(5000)

USER = {"Author": "Ann", "projectID": "42", "x_Rev": "seven", "hidden": "a=b; c"}
AZCOPY = {
    "modtime": "1577934245123456789",
    "posix_atime": "1577934246000000000",
    "posix_ctime": "1577934247000000000",
    "permissions": "33200",  # a regular file, 0660
    "posix_owner": "1234",
    "posix_group": "2345",
    "posix_nlink": "1",
    "posix_ino": "99",
    "linux_btime": "1577934240000000000",
}
AMLFS = {
    "modtime": "2020-01-02 03:04:05 +0000",
    "permissions": "0660",
    "owner": "1234",
    "group": "2345",
}
RCLONE = {"Mtime": "2020-01-02T03:04:05.123456789Z"}
HEADERS = ContentSettings(
    content_type="text/x-novel",
    content_encoding="rot13",
    content_language="de-AT",
    content_disposition="attachment",
    cache_control="no-transform",
)
TAGS = {"team": "storage", "keep": "yes"}

# What a change of content or attributes is meant to change.
OURS = {"encryptiondata", "blobfs_seal", "blobfs_xattr"}
POSIX = {
    *("modtime", "posix_atime", "posix_ctime", "permissions", "posix_owner", "posix_group"),
    *("owner", "group", "Mtime"),
}


def upload(azurite: Azurite, container: str, name: str, metadata: dict[str, str]) -> None:
    encrypting(azurite, container, KEK).upload_blob(
        name,
        CONTENT,
        metadata=metadata,
        content_settings=HEADERS,
        tags=TAGS,
        standard_blob_tier=StandardBlobTier.COOL,
    )


def properties(azurite: Azurite, container: str, name: str) -> BlobProperties:
    return azurite.sdk(container).get_blob_client(name).get_blob_properties()


def beside_content(azurite: Azurite, container: str, name: str) -> dict[str, Any]:
    """All that a blob has and that no operation of these tests is meant to change."""
    info = properties(azurite, container, name)
    headers = dict(info.content_settings)
    del headers["content_md5"]  # of the ciphertext, which may be another
    return {
        "metadata": {k: v for k, v in info.metadata.items() if k not in OURS | POSIX},
        "headers": headers,
        "tags": azurite.sdk(container).get_blob_client(name).get_blob_tags(),
        "tier": info.blob_tier,
    }


def settle(file: Path) -> None:
    """Have attribute changes stored now: they may wait a second for a write to carry them."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


# Operations on a file, and the content that they leave


def rewrite(file: Path) -> bytes:
    file.write_bytes(content(7000, seed=1))
    return content(7000, seed=1)


def rewrite_in_blocks(file: Path) -> bytes:
    file.write_bytes(content(9_000_000, seed=1))
    return content(9_000_000, seed=1)


def append(file: Path) -> bytes:
    with file.open("ab") as opened:
        opened.write(b"the end")
    return CONTENT + b"the end"


def overwrite_in_place(file: Path) -> bytes:
    with file.open("r+b") as opened:
        opened.write(b"the beginning")
    return b"the beginning" + CONTENT[13:]


def truncate(file: Path) -> bytes:
    os.truncate(file, 1000)
    return CONTENT[:1000]


def chmod(file: Path) -> bytes:
    file.chmod(0o604)
    return CONTENT


def chown(file: Path) -> bytes:
    os.chown(file, 4321, 5432)
    return CONTENT


def utimens(file: Path) -> bytes:
    os.utime(file, ns=(1_600_000_000_000_000_001, 1_600_000_000_000_000_002))
    return CONTENT


def set_xattr(file: Path) -> bytes:
    os.setxattr(file, "user.note", b"\x00secret")
    return CONTENT


def set_and_remove_xattr(file: Path) -> bytes:
    os.setxattr(file, "user.note", b"\x00secret")
    os.removexattr(file, "user.note")
    return CONTENT


def rename(file: Path) -> bytes:
    file.rename(file.with_name("elsewhere"))
    (file.parent / "elsewhere").rename(file)  # and back, so that it is found again
    return CONTENT


def rename_over_another(file: Path) -> bytes:
    (file.parent / "other").write_bytes(b"to be replaced")
    file.rename(file.parent / "other")
    (file.parent / "other").rename(file)
    return CONTENT


def rename_its_directory(file: Path) -> bytes:
    elsewhere = file.parent.with_name(file.parent.name + "-moved")
    file.parent.rename(elsewhere)
    elsewhere.rename(file.parent)
    return CONTENT


def chmod_and_rename(file: Path) -> bytes:
    file.chmod(0o604)
    return rename(file)


def write_chmod_and_rename(file: Path) -> bytes:
    plain = append(file)
    file.chmod(0o604)
    rename(file)
    return plain


OPERATIONS: list[Callable[[Path], bytes]] = [
    rewrite,
    rewrite_in_blocks,
    append,
    overwrite_in_place,
    truncate,
    chmod,
    chown,
    utimens,
    set_xattr,
    set_and_remove_xattr,
    rename,
    rename_over_another,
    rename_its_directory,
    chmod_and_rename,
    write_chmod_and_rename,
]


@pytest.fixture(scope="module")
def workshop(
    azurite: Azurite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Mount]]:
    """One mount for all operations, each on its own files: (container, mount)."""
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("metadata")
    key_file = write_key_file(directory / "keys.json", KEK)
    with mounted(azurite, container, directory, "metadata_ttl=0", key_file=key_file) as mount:
        yield container, mount


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_all_of_a_blob_survives(
    operation: Callable[[Path], bytes], azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    name = f"{operation.__name__}/file"
    upload(azurite, container, name, {**USER, **AZCOPY, **RCLONE})
    before = beside_content(azurite, container, name)
    assert before["tags"] == TAGS
    assert before["tier"] == "Cool"
    assert before["metadata"].items() >= USER.items()

    plain = operation(mount.path / name)
    settle(mount.path / name)

    assert beside_content(azurite, container, name) == before
    assert download(encrypting(azurite, container, KEK), name) == plain
    assert (mount.path / name).read_bytes() == plain


def test_a_change_of_attributes_keeps_the_envelope_byte_for_byte(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    upload(azurite, container, "envelope", USER)
    before = properties(azurite, container, "envelope").metadata["encryptiondata"]
    for operation in (chmod, chown, utimens, set_xattr, rename):
        operation(mount.path / "envelope")
        settle(mount.path / "envelope")
    assert properties(azurite, container, "envelope").metadata["encryptiondata"] == before


# Attributes in the styles of other tools


def test_azcopys_attributes_are_read_and_kept_up_to_date(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    upload(azurite, container, "azcopy", AZCOPY)
    stat = (mount.path / "azcopy").stat()
    assert (stat.st_mode, stat.st_uid, stat.st_gid) == (0o100660, 1234, 2345)
    assert stat.st_mtime_ns == 1577934245123456789
    chmod(mount.path / "azcopy")
    settle(mount.path / "azcopy")
    metadata = properties(azurite, container, "azcopy").metadata
    assert metadata["permissions"] == str(0o100604)
    assert {k: metadata[k] for k in ("modtime", "posix_owner", "posix_group", "posix_nlink")} == {
        k: AZCOPY[k] for k in ("modtime", "posix_owner", "posix_group", "posix_nlink")
    }


def test_azcopys_other_style_is_read_and_stays_that_style(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    upload(azurite, container, "amlfs", AMLFS)
    stat = (mount.path / "amlfs").stat()
    assert (stat.st_mode, stat.st_uid, stat.st_gid) == (0o100660, 1234, 2345)
    assert stat.st_mtime == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    chmod(mount.path / "amlfs")
    chown(mount.path / "amlfs")
    settle(mount.path / "amlfs")
    metadata = properties(azurite, container, "amlfs").metadata
    assert (metadata["permissions"], metadata["owner"], metadata["group"]) == (
        "0604",
        "4321",
        "5432",
    )
    assert "posix_owner" not in metadata


def test_rclones_mtime_is_read_and_kept_up_to_date(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    upload(azurite, container, "rclone", RCLONE)
    assert (mount.path / "rclone").stat().st_mtime_ns == 1577934245123456789
    utimens(mount.path / "rclone")
    settle(mount.path / "rclone")
    metadata = properties(azurite, container, "rclone").metadata
    assert metadata["Mtime"] == "2020-09-13T12:26:40.000000002Z"


def test_a_directorys_own_metadata_survives(azurite: Azurite, workshop: tuple[str, Mount]) -> None:
    container, mount = workshop
    sdk = azurite.sdk(container)
    settings = ContentSettings(cache_control="no-cache")
    marker = {**USER, "hdi_isfolder": "true"}
    sdk.upload_blob("marked", b"", metadata=marker, tags=TAGS, content_settings=settings)
    (mount.path / "marked/file").write_bytes(b"inside")
    (mount.path / "marked").chmod(0o700)
    (mount.path / "marked").rename(mount.path / "renamed")
    renamed = properties(azurite, container, "renamed")
    assert renamed.metadata.items() >= marker.items()
    assert renamed.metadata["permissions"] == str(0o040700)
    assert renamed.content_settings.cache_control == "no-cache"
    assert sdk.get_blob_client("renamed").get_blob_tags() == TAGS


def test_a_symlinks_metadata_survives_a_rename(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    sdk = encrypting(azurite, container, KEK)
    sdk.upload_blob("link", b"target", metadata={**USER, "is_symlink": "true"}, tags=TAGS)
    (mount.path / "link").rename(mount.path / "moved link")
    assert properties(azurite, container, "moved link").metadata.items() >= USER.items()
    assert sdk.get_blob_client("moved link").get_blob_tags() == TAGS
    assert os.readlink(mount.path / "moved link") == "target"


# Copies keep what the tool asks them to keep


def test_cp_with_xattrs_carries_user_metadata_and_headers(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    upload(azurite, container, "original", USER)
    subprocess.run(
        ["cp", "--preserve=xattr", mount.path / "original", mount.path / "copy"], check=True
    )
    assert beside_content(azurite, container, "copy") == {
        **beside_content(azurite, container, "original"),
        "tier": properties(azurite, container, "copy").blob_tier,  # a new file has the default
    }


# Tags without the permission for them


@pytest.mark.parametrize("operation", [append, rename])
def test_tags_that_the_token_cannot_keep_are_said_once(
    operation: Callable[[Path], bytes], azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload(azurite, container, "file", USER)
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    sas = azurite.sas(container, "racwdl")
    with mounted(azurite, container, tmp_path, sas=sas, key_file=key_file) as mount:
        mount.expect_log("WARNING .*'file' loses its tags: the token has no permission t")
        plain = operation(mount.path / "file")
        append(mount.path / "file")
        warnings = [line for line in mount.log().splitlines() if "loses its tags" in line]
        assert len(warnings) == 1, warnings
    assert download(encrypting(azurite, container, KEK), "file") == plain + b"the end"
    metadata = properties(azurite, container, "file").metadata
    assert metadata.items() >= USER.items()


def test_a_chmod_keeps_tags_without_the_permission_for_them(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload(azurite, container, "file", USER)
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    sas = azurite.sas(container, "racwdl")
    with mounted(azurite, container, tmp_path, sas=sas, key_file=key_file) as mount:
        chmod(mount.path / "file")
    assert azurite.sdk(container).get_blob_client("file").get_blob_tags() == TAGS


def test_metadata_too_big_for_azure_changes_nothing(
    azurite: Azurite, workshop: tuple[str, Mount]
) -> None:
    container, mount = workshop
    big = {f"key{i}": "x" * 1000 for i in range(7)}
    upload(azurite, container, "big", big)
    before = properties(azurite, container, "big")
    with pytest.raises(OSError, match="No space left"):
        os.setxattr(mount.path / "big", "user.more", secrets.token_bytes(1000))
    after = properties(azurite, container, "big")
    assert (after.etag, after.metadata) == (before.etag, before.metadata)
    assert json.loads(after.metadata["encryptiondata"])
