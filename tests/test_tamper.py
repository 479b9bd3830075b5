"""Who can write the container but has no KEK: each change is refused, or said in SECURITY.md.

The table is in `tests/tampering.py`; the attacker is the Azure SDK.
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from blobfs import envelope
from blobfs.envelope import Kek, KeySet, box_encrypt, box_payload
from tests.azurite import Azurite
from tests.mounts import ROOT, Mount, mounted
from tests.sdk import AesKek, content, write_key_file
from tests.tampering import FORMS, ROWS, Blob, Outcome, Row, Versions, allowed, versions_of
from tests.upkeep import Upkeep

pytestmark = pytest.mark.mount

KEK, SECOND, NEW = (AesKek(f"local:{name}", os.urandom(32)) for name in ("first", "second", "new"))
ERRNOS = {errno.EIO, errno.EACCES, errno.ENOKEY}
SECURITY = " ".join((ROOT / "blobfs/SECURITY.md").read_text().replace("*", "").split())

# A refusal is one line; a traceback, or a bug that was caught, is none.
REFUSAL = r"(?s)\A(?!.*(Traceback|a bug)).* (ERROR|WARNING) "


def _keys() -> KeySet:
    kek = Kek(KEK.get_kid(), KEK._key)
    return KeySet([kek], kek)


@pytest.fixture
def versions() -> dict[str, Versions]:
    """Fresh for each test: decrypted regions are kept by the key that they are under."""
    keys = _keys()
    box = box_encrypt(b"c" * 32, keys.wrap(box_payload(b"c" * 32)), b"{}")
    wrapped = json.loads(box.serialize())
    box_key = {name: wrapped[name] for name in ("KeyId", "EncryptedKey", "Algorithm")}
    return {name: versions_of(form, keys, box_key) for name, form in FORMS.items()}


Ward = tuple[ContainerClient, Mount]


@pytest.fixture(scope="module")
def ward(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("tamper")
    keys = write_key_file(directory / "keys.json", KEK, SECOND)
    with mounted(azurite, container, directory, "metadata_ttl=0", key_file=keys) as mount:
        mount.expect_log(REFUSAL)
        yield azurite.sdk(container), mount


def put(raw: ContainerClient, name: str, blob: Blob) -> None:
    raw.upload_blob(name, blob.body, metadata=blob.metadata, overwrite=True)


def outcome_of(path: Path) -> bytes | int:
    """What is read, or the errno."""
    try:
        return path.read_bytes()
    except OSError as exc:
        return exc.errno or 0


def applicable(row: Row, versions: dict[str, Versions]) -> Iterator[tuple[str, Versions, Blob]]:
    for form, version in versions.items():
        if version.form.column in row.outcomes:
            blob = row.change(version)
            costs = len(blob.body) > 10**6 and blob.body == version.own.body
            if blob != version.own and not costs:  # what is done to metadata, small blobs show
                yield form, version, blob


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_change_is_refused_or_what_it_leads_to_is_documented(
    row: Row, versions: dict[str, Versions], ward: Ward
) -> None:
    raw, mount = ward
    tried, logged = 0, len(mount.log())
    for form, version, blob in applicable(row, versions):
        name = f"{row.name} {form}"
        path, permitted = mount.path / name, row.outcomes[version.form.column]
        put(raw, name, blob)
        _check(path, permitted, version)
        assert path.stat().st_size >= 0
        assert name in os.listdir(mount.path)
        _xattrs_are_told_or_refused(path)
        if permitted <= ERRNOS:
            _cannot_be_changed(raw, path, blob)
        put(raw, name, version.own)
        assert path.read_bytes() == version.form.plain(0)
        put(raw, name, blob)
        _check(path, permitted | {"own"}, version)  # what was kept of it may be read, whole
        raw.delete_blob(name)
        tried += 1
    assert tried
    assert "Traceback" not in mount.log()[logged:]
    assert row.said or all(outcome <= ERRNOS for outcome in row.outcomes.values())


def _check(path: Path, permitted: Outcome, version: Versions) -> None:
    found = outcome_of(path)
    if isinstance(found, int):
        assert found in permitted, f"{path.name}: {os.strerror(found)}"
    else:
        assert allowed(permitted, version, found), f"{path.name}: read {len(found)} bytes"


def _xattrs_are_told_or_refused(path: Path) -> None:
    for name in ("user.blobfs.protocol", "user.blobfs.key_id", "user.blobfs.region_length"):
        code = 0
        try:
            os.getxattr(path, name)
        except OSError as exc:
            code = exc.errno or -1
        assert code in {0, errno.ENODATA, *ERRNOS}


def _cannot_be_changed(raw: ContainerClient, path: Path, blob: Blob) -> None:
    """Writing in the middle needs the rest, which is refused; what is stored stays."""
    code = 0
    try:
        with path.open("r+b", buffering=0) as file:
            file.seek(5)
            file.write(b"x")
    except OSError as exc:
        code = exc.errno or -1
    assert code in ERRNOS
    assert raw.get_blob_client(path.name).download_blob().readall() == blob.body


def test_what_is_not_detectable_is_said_in_the_security_document() -> None:
    for sentence in {row.said for row in ROWS if row.said}:
        assert sentence in SECURITY, sentence


LARGE = 3 * 1024 * 1024


@pytest.mark.parametrize("name", ["flipped", "exchanged", "older", "other", "cut", "other cut"])
def test_a_change_under_an_open_file_is_refused_or_the_genuine_bytes_are_read(
    name: str, ward: Ward
) -> None:
    raw, mount = ward
    path = mount.path / f"open {name}"
    region = 65536 + 28
    path.write_bytes(content(LARGE, 1))
    older = stored(raw, path.name)
    path.write_bytes(content(LARGE, 2))
    own = stored(raw, path.name)
    body = own.body
    half = len(body) // region * region // 2
    changed = {
        "flipped": own.with_body(body[:-1000] + bytes([body[-1000] ^ 1]) + body[-999:]),
        "exchanged": own.with_body(body[half:] + body[:half]),
        "older": older,
        "other": own.with_body(older.body),
        "cut": own.with_body(body[: 20 * region]).with_metadata(blobfs_seal=None),
        "other cut": own.with_metadata(blobfs_seal=None).with_data(
            lambda data: data["EncryptedRegionInfo"].update(DataLength=32768)
        ),
    }[name]
    # fadvise: what the kernel keeps is the owner's bytes already
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 4096, 0) == content(LARGE, 2)[:4096]
        put(raw, path.name, changed)
        for offset in range(LARGE - 4096, 0, -262144):
            found = read_at(file.fileno(), offset)
            if isinstance(found, int):
                assert found in {errno.EIO, errno.ESTALE}
            else:
                shorter = name == "cut"  # without a seal the kernel is told of another end
                assert found == content(LARGE, 2)[offset : offset + 4096] or (shorter and not found)


def read_at(descriptor: int, offset: int) -> bytes | int:
    try:
        return os.pread(descriptor, 4096, offset)
    except OSError as exc:
        return exc.errno or 0


def stored(raw: ContainerClient, name: str) -> Blob:
    blob = raw.get_blob_client(name)
    return Blob(blob.download_blob().readall(), dict(blob.get_blob_properties().metadata))


def test_a_sealed_symlink_and_a_sealed_file_do_not_change_places(ward: Ward) -> None:
    raw, mount = ward
    link, file = mount.path / "a link", mount.path / "a file"
    link.symlink_to("/etc/hostname")
    file.write_bytes(b"/etc/passwd")
    put(raw, "a link", stored(raw, "a link").with_metadata(is_symlink=None))
    put(raw, "a file", stored(raw, "a file").with_metadata(is_symlink="true"))
    assert outcome_of(link) == errno.EIO
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        os.readlink(file)


def test_extended_attributes_that_were_changed_are_refused(ward: Ward) -> None:
    raw, mount = ward
    for name in ("boxed", "other box"):
        (mount.path / name).write_bytes(b"x")
        os.setxattr(mount.path / name, "user.a", name.encode())
        os.setxattr(mount.path / name, "user.b", b"2")
    deadline = time.monotonic() + 10  # attributes may wait a second for a write that carries them
    while not all("blobfs_xattr" in stored(raw, name).metadata for name in ("boxed", "other box")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    own, other = stored(raw, "boxed"), stored(raw, "other box")
    box = json.loads(own.metadata["blobfs_xattr"])
    key = json.loads(own.metadata["encryptiondata"])["WrappedContentKey"]
    for spoiled in (
        {**box, "Data": box["Data"][:-8] + "AAAAAAA="},
        {**box, "Data": ""},
        {**box, **key},
        {**box, "Data": json.loads(other.metadata["blobfs_xattr"])["Data"]},
        {"KeyId": "x"},
    ):
        put(raw, "boxed", own.with_metadata(blobfs_xattr=json.dumps(spoiled)))
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
            os.getxattr(mount.path / "boxed", "user.a")
        assert (mount.path / "boxed").read_bytes() == b"x"
    put(raw, "boxed", own.with_metadata(blobfs_xattr=other.metadata["blobfs_xattr"]))
    assert os.getxattr(mount.path / "boxed", "user.a") == b"other box"
    assert "A box is not bound to its blob" in (
        " ".join((Path(envelope.__file__).parent / "FORMAT.md").read_text().split())
    )


# --- looking after a container that was tampered with ------------------------------------------

SMALL = ("2.1 sealed", "2.1 bare", "1.0 sealed")


@pytest.fixture
def spoiled(
    azurite: Azurite, container: str, versions: dict[str, Versions]
) -> dict[str, tuple[Row, Versions]]:
    """Every row of the small forms in one container, by name."""
    raw, names = azurite.sdk(container), {}
    chosen = {name: versions[name] for name in SMALL}
    for row in ROWS:
        for form, version, blob in applicable(row, chosen):
            names[f"{row.name} {form}"] = row, version
            put(raw, f"{row.name} {form}", blob)
    return names


def _errors(report: str) -> set[str]:
    found = json.loads(report)["findings"]
    return {finding["name"] for finding in found if finding["severity"] == "error"}


def _outcome(row: Row, version: Versions) -> frozenset[int | str]:
    return row.outcomes[version.form.column]


def test_verify_finds_all_that_a_mount_refuses_and_nothing_else(
    azurite: Azurite, container: str, spoiled: dict[str, tuple[Row, Versions]], tmp_path: Path
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, KEK, SECOND)
    errors = _errors(upkeep.run("verify", "--deep", "--json", status=4))
    refused = {name for name, entry in spoiled.items() if _outcome(*entry) <= ERRNOS}
    readable = {name for name, entry in spoiled.items() if not _outcome(*entry) & ERRNOS}
    readable -= {name for name in readable if "changed" in _outcome(*spoiled[name])}
    assert refused - errors == set()
    assert readable & errors == set()


@pytest.mark.parametrize("options", ["", "require_seal,min_protocol=2.0"], ids=["any", "strict"])
def test_rekey_and_reencrypt_make_nothing_valid_that_a_mount_refuses(
    options: str,
    azurite: Azurite,
    container: str,
    spoiled: dict[str, tuple[Row, Versions]],
    tmp_path: Path,
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, NEW, KEK, SECOND, options=options)
    upkeep.run("rekey", status=4)
    upkeep.run("reencrypt", status=4)
    keys = write_key_file(tmp_path / "new.json", NEW, KEK, SECOND)
    strict = options or "require_seal"
    with mounted(azurite, container, tmp_path, strict, key_file=keys) as mount:
        mount.expect_log(REFUSAL)
        for name, (row, version) in spoiled.items():
            found = outcome_of(mount.path / name)
            if isinstance(found, bytes):
                assert allowed(_outcome(row, version), version, found), name
                assert not options or _outcome(row, version) & {"own", "older", "other"}, name
