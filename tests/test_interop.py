"""blobfs and the Azure SDK read what the other wrote."""

import base64
import hashlib
import json
import os
import random
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.azurite import Azurite
from tests.mounts import Mount, mounted
from tests.sdk import (
    WRITES_PROTOCOL_1,
    AesKek,
    RsaKek,
    content,
    download,
    encrypting,
    write_key_file,
)

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

MIB = 1024 * 1024
SIZES = [0, 1, 15, 16, 17, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 5]
KEK = AesKek("local:interop", secrets.token_bytes(32))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key_file(tmp_path / "keys.json", KEK)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expect_notice_of_protocol_1(mount: Mount, protocol: str) -> None:
    if protocol == "1.0":
        mount.expect_log("WARNING .*protocol 1.0")


# The SDK writes, the mount reads


@pytest.mark.parametrize("protocol", ["1.0", "2.0"])
def test_the_mount_reads_every_size_that_the_sdk_wrote(
    protocol: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK, protocol)
    for size in SIZES:
        sdk.upload_blob(f"d/{size}", content(size))
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        expect_notice_of_protocol_1(mount, protocol)
        listing = subprocess.check_output(["ls", "-l", mount.path / "d"], text=True)
        assert {line.split()[4]: line.split()[-1] for line in listing.splitlines()[1:]} == {
            str(size): str(size) for size in SIZES
        }
        read = {size: digest((mount.path / f"d/{size}").read_bytes()) for size in SIZES}
        assert read == {size: digest(content(size)) for size in SIZES}


@pytest.mark.parametrize("protocol", ["1.0", "2.0"])
def test_stat_of_one_file_is_exact_without_a_listing_by_ls(
    protocol: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK, protocol)
    for size in SIZES[:5]:
        sdk.upload_blob(f"{size}", content(size))
    with mounted(azurite, container, tmp_path, "metadata_ttl=0", key_file=key_file) as mount:
        expect_notice_of_protocol_1(mount, protocol)
        sizes = [(mount.path / f"{size}").stat().st_size for size in SIZES[:5]]
        assert sizes == SIZES[:5]


@pytest.mark.parametrize(
    ("protocol", "cache"),
    # Small enough to drop what was read before; a region of 2.0 needs more to be kept at all.
    [("1.0", "512K"), ("2.0", "64M"), ("2.1", "512K")],
)
def test_any_range_is_the_same_bytes(
    protocol: str, cache: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    size = 9 * MIB + 5
    plain = content(size)
    rng = random.Random(f"ranges of {protocol}")
    if protocol != "2.1":
        encrypting(azurite, container, KEK, protocol).upload_blob("file", plain)
    with mounted(
        azurite, container, tmp_path, f"cache_size={cache}", "readahead=128K", key_file=key_file
    ) as mount:
        expect_notice_of_protocol_1(mount, protocol)
        if protocol == "2.1":
            (mount.path / "file").write_bytes(plain)
        # O_DIRECT: each read is asked of blobfs as it is, past the kernel's page cache.
        file = os.open(mount.path / "file", os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(200):
                start, length = rng.randrange(size + 20), rng.choice([1, 17, 4096, 70_000, 300_000])
                buffer = bytearray(length)
                got = os.preadv(file, [buffer], start)
                assert buffer[:got] == plain[start : start + length], (start, length)
        finally:
            os.close(file)


def python_nonce(region: int) -> bytes:
    return region.to_bytes(12, "big")


def java_nonce(region: int) -> bytes:
    return region.to_bytes(8, "big") + bytes(4)


def dotnet_nonce(region: int) -> bytes:
    return bytes(4) + (region + 1).to_bytes(8, "little")


def synthetic(
    plain: bytes, region: int, nonce: Callable[[int], bytes], protocol: str
) -> tuple[bytes, str]:
    """Body and `encryptiondata` in the manner of another SDK, made without blobfs."""
    cek = secrets.token_bytes(32)
    body = b"".join(
        nonce(i) + AESGCM(cek).encrypt(nonce(i), plain[i * region : (i + 1) * region], None)
        for i in range(-(-len(plain) // region))
    )
    wrapped = KEK.wrap_key(protocol.encode().ljust(8, b"\0") + cek)
    value = {
        # compact, and the mode first: as .NET writes it
        "EncryptionMode": "FullBlob",
        "WrappedContentKey": {
            "KeyId": KEK.get_kid(),
            "EncryptedKey": base64.b64encode(wrapped).decode(),
            "Algorithm": "A256KW",
        },
        "EncryptionAgent": {"Protocol": protocol, "EncryptionAlgorithm": "AES_GCM_256"},
        "EncryptedRegionInfo": {"DataLength": region, "NonceLength": 12},
        "KeyWrappingMetadata": {"EncryptionLibrary": "another"},
    }
    return body, json.dumps(value, separators=(",", ":"))


def test_the_mount_reads_any_region_length_and_nonce_encoding(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    expected = {}
    for protocol in ("2.0", "2.1"):
        for nonce in (python_nonce, java_nonce, dotnet_nonce):
            for region, size in ((16, 1000), (1000, 3000), (1000, 2999), (MIB, 2 * MIB + 1)):
                name = f"{protocol} {nonce.__name__} {size} in {region}"
                body, data = synthetic(content(size), region, nonce, protocol)
                azurite.sdk(container).upload_blob(name, body, metadata={"encryptiondata": data})
                expected[name] = (size, digest(content(size)))
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        found = {
            file.name: (file.stat().st_size, digest(file.read_bytes()))
            for file in mount.path.iterdir()
        }
        assert found == expected


def test_a_symlink_that_the_sdk_wrote_is_one(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK)
    sdk.upload_blob("link", b"../some/where", metadata={"is_symlink": "true"})
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        assert os.readlink(mount.path / "link") == "../some/where"
        assert (mount.path / "link").lstat().st_size == len("../some/where")


# The mount writes, the SDK reads


@pytest.mark.parametrize("protocol", ["2.1", "2.0", "1.0"])
def test_the_sdk_reads_every_size_that_the_mount_wrote(
    protocol: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    with mounted(azurite, container, tmp_path, f"protocol={protocol}", key_file=key_file) as mount:
        for size in SIZES:
            (mount.path / f"{size}").write_bytes(content(size))
        os.symlink("../some/where", mount.path / "link")
    sdk = encrypting(azurite, container, KEK)
    read = {size: digest(download(sdk, f"{size}")) for size in SIZES}
    assert read == {size: digest(content(size)) for size in SIZES}
    assert download(sdk, "link") == b"../some/where"
    assert sdk.get_blob_client("link").get_blob_properties().metadata["is_symlink"] == "true"


@pytest.mark.parametrize("region_size", ["16", "4K", "1M"])
def test_the_sdk_reads_any_region_length_that_the_mount_wrote(
    region_size: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    size = 33 if region_size == "16" else 2 * MIB + 17
    with mounted(
        azurite, container, tmp_path, f"region_size={region_size}", key_file=key_file
    ) as mount:
        (mount.path / "file").write_bytes(content(size))
    assert download(encrypting(azurite, container, KEK), "file") == content(size)


def test_a_file_changed_in_the_mount_is_still_one_for_the_sdk(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK)
    sdk.upload_blob("file", content(4 * MIB + 100))
    expected = bytearray(content(4 * MIB + 100))
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        with (mount.path / "file").open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"in the middle")
        expected[3 * MIB : 3 * MIB + 13] = b"in the middle"
        with (mount.path / "file").open("ab") as file:
            file.write(b"at the end")
        expected += b"at the end"
    assert digest(download(sdk, "file")) == digest(expected)


def blanked(metadata: dict[str, str], *, library: bool = True) -> str:
    """`encryptiondata` as stored, without the values that differ from one body to the next."""
    value: dict[str, Any] = json.loads(metadata["encryptiondata"])
    length = len(base64.b64decode(value["WrappedContentKey"]["EncryptedKey"], validate=True))
    value["WrappedContentKey"]["EncryptedKey"] = f"{length} bytes"
    if "ContentEncryptionIV" in value:
        length = len(base64.b64decode(value["ContentEncryptionIV"], validate=True))
        value["ContentEncryptionIV"] = f"{length} bytes"
    value["KeyWrappingMetadata"]["EncryptionLibrary"] = "…"
    return json.dumps(value)


@pytest.mark.parametrize("protocol", ["1.0", "2.0"])
def test_encryptiondata_is_what_the_sdk_writes(
    protocol: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK, protocol)
    theirs = sdk.upload_blob("theirs", b"x").get_blob_properties().metadata
    with mounted(azurite, container, tmp_path, f"protocol={protocol}", key_file=key_file) as mount:
        (mount.path / "ours").write_bytes(b"x")
    ours = sdk.get_blob_client("ours").get_blob_properties().metadata
    assert blanked(ours) == blanked(theirs)
    # Order and separators too: older SDKs depend on them.
    assert ours["encryptiondata"] == json.dumps(json.loads(ours["encryptiondata"]))


# Keys

RSA = generate_private_key(65537, 2048)


def test_the_mount_unwraps_every_algorithm_and_picks_the_key_by_its_id(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    algorithms = ["RSA-OAEP-256", "RSA-OAEP", "RSA"]
    keks = {name: RsaKek("the rsa key", RSA, name) for name in algorithms}
    for name, kek in keks.items():
        encrypting(azurite, container, kek).upload_blob(name, content(100))
    encrypting(azurite, container, KEK).upload_blob("A256KW", content(100))
    key_file = write_key_file(tmp_path / "keys.json", KEK, keks["RSA-OAEP-256"])
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        read = {name: (mount.path / name).read_bytes() for name in [*algorithms, "A256KW"]}
        assert read == dict.fromkeys([*algorithms, "A256KW"], content(100))


def test_key_id_names_the_key_that_wraps_and_the_sdk_unwraps_it(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    rsa = RsaKek("the rsa key", RSA)
    key_file = write_key_file(tmp_path / "keys.json", KEK, rsa)
    with mounted(azurite, container, tmp_path, "key_id=the rsa key", key_file=key_file) as mount:
        (mount.path / "file").write_bytes(content(5000))
    sdk = encrypting(azurite, container, rsa)
    assert download(sdk, "file") == content(5000)
    stored = sdk.get_blob_client("file").get_blob_properties().metadata["encryptiondata"]
    wrapped = json.loads(stored)["WrappedContentKey"]
    assert (wrapped["KeyId"], wrapped["Algorithm"]) == ("the rsa key", "RSA-OAEP-256")
