"""What a released version has stored is read by this one, in every format and with every attribute.

See `tests/golden`. Nothing here may ever be changed to make a later version pass.
"""

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from blobfs.envelope import (
    BOX_KEY,
    METADATA_KEY,
    SEAL_KEY,
    Box,
    EncryptionData,
    KeySet,
    box_cek,
    check_seal,
    load_key_set,
    open_body,
    unpack_cek,
)
from blobfs.recovery import read_description
from blobfs.xattrs import decode_box
from tests.azurite import Azurite
from tests.golden import HERE, VERSIONS, GoldenBlob, blobs_of, look, seen_by, timed, upload
from tests.mounts import mounted
from tests.sdk import content
from tests.upkeep import Upkeep

every_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def key_file(version: str, tmp_path: Path) -> Path:
    """With the mode that blobfs asks for, which git does not keep."""
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_bytes((HERE / version / "keys.json").read_bytes())
    return path


def plain_of(body: bytes, metadata: dict[str, str], keys: KeySet, kind: str) -> bytes:
    """By the envelope alone, without a service."""
    data = EncryptionData.parse(metadata[METADATA_KEY])
    cek = unpack_cek(data.protocol, keys.unwrap(data.wrapped))
    if SEAL_KEY in metadata:
        check_seal(metadata[SEAL_KEY], cek, data, len(body), kind)
    reader = open_body(data, cek, len(body))
    size = reader.settle_size(body[slice(*reader.tail_range())])
    start, stop = reader.blob_range(0, max(0, -(-size // reader.unit) - 1))
    return bytes(reader.decrypt(0, body[start:stop]))


def test_the_bytes_of_a_golden_container_are_never_changed() -> None:
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    kept = {str(path.relative_to(HERE)): path for path in _kept()}
    assert kept.keys() == listed.keys()
    for name, path in kept.items():
        assert sha256(path.read_bytes()).hexdigest() == listed[name], name


def _kept() -> Iterator[Path]:
    for version in VERSIONS:
        yield from (HERE / version).iterdir()


@every_version
def test_every_golden_blob_decrypts_to_what_was_written(version: str, key_file: Path) -> None:
    keys, seen = load_key_set(key_file), seen_by(version)
    decrypted = 0
    for blob in blobs_of(version):
        if METADATA_KEY in blob.metadata:
            shown = seen[blob.name]
            kind = "symlink" if "target" in shown else "file"
            plain = plain_of(blob.body, blob.metadata, keys, kind)
            if kind == "symlink":
                assert plain.decode() == shown["target"]
            else:
                assert (len(plain), sha256(plain).hexdigest()) == (shown["size"], shown["sha256"])
            decrypted += 1
    assert decrypted >= 40
    assert {"1.0", "2.0", "2.1"} == {_protocol(blob) for blob in blobs_of(version)} - {""}


def _protocol(blob: GoldenBlob) -> str:
    value = blob.metadata.get(METADATA_KEY)
    return "" if value is None else EncryptionData.parse(value).protocol


@every_version
def test_every_golden_box_opens(version: str, key_file: Path) -> None:
    keys, opened = load_key_set(key_file), 0
    for blob in blobs_of(version):
        if BOX_KEY in blob.metadata:
            box = Box.parse(blob.metadata[BOX_KEY])
            attributes = decode_box(box.decrypt(box_cek(keys.unwrap(box.wrapped))))
            assert attributes.keys() <= seen_by(version)[blob.name]["xattrs"].keys()
            opened += 1
    assert opened >= 2


@every_version
def test_a_golden_recovery_file_is_read(version: str, key_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(HERE / version / "kept.blobfs-recovery", tmp_path))
    path.chmod(0o600)
    file = read_description(path)
    assert (file.name, file.plain_size, file.unknown) == ("dir/kept", 5000, ((0, 4),))
    body = path.read_bytes()[: file.blob_size]
    metadata = dict(file.properties.metadata)
    assert plain_of(body, metadata, load_key_set(key_file), "file") == content(5000, 4)


@pytest.mark.mount
@every_version
def test_a_mount_shows_a_golden_container_as_it_was(
    version: str, key_file: Path, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blobs = blobs_of(version)
    upload(azurite.sdk(container), blobs)
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        mount.expect_log("WARNING .* protocol 1.0, which cannot detect tampering")
        assert look(mount.path, timed(blobs)) == seen_by(version)
    upkeep = Upkeep(azurite, container, tmp_path)
    shutil.copy(key_file, upkeep.key_file)
    summary = json.loads(upkeep.run("verify", "--deep", "--json", status=3))["summary"]
    assert (summary["errors"], summary["blobs"]) == (0, len(blobs))
