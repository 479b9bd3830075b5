"""A failure hits one file, with an errno that says which kind and one line that says why."""

import base64
import copy
import errno
import json
import os
import re
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
from azure.storage.blob import AccessPolicy, ContainerClient, generate_container_sas

from tests.azurite import Azurite, signature
from tests.kept import opened
from tests.mounts import PLAINTEXT_MARKER, Mount, MountFailed, mounted
from tests.sdk import (
    WRITES_PROTOCOL_1,
    AesKek,
    content,
    download,
    encrypting,
    write_key_file,
)
from tests.waiting import eventually

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

MIB = 1024 * 1024
REGION = 4096 + 28  # stored bytes of one region with region_size=4K
KEK = AesKek("local:failures", secrets.token_bytes(32))
PLAIN = content(3 * 4096 + 5)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key_file(tmp_path / "keys.json", KEK)


@contextmanager
def fails(mount: Mount, code: int, reason: str, *, also: str | None = None) -> Iterator[None]:
    """The block raises OSError with this errno, and the log gets one ERROR, which has `reason`.

    `also` is a second one, which comes when the file is released: a little after its close.
    """
    before = len(mount.log())
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as failure:
        yield
    assert failure.value.errno == code
    if also is not None:
        eventually(lambda: re.search(also, mount.log()[before:]) is not None)
    errors = re.findall(r".* (?:ERROR|CRITICAL) .*", mount.log()[before:])
    patterns = [pattern for pattern in (reason, also) if pattern is not None]
    assert len(errors) == len(patterns), errors
    for pattern, line in zip(patterns, errors, strict=True):
        assert re.search(pattern, line), line
        mount.expect_log(pattern)


def assert_lives_on(mount: Mount) -> None:
    name = f"good-{secrets.token_hex(4)}"
    (mount.path / name).write_bytes(PLAIN)
    assert (mount.path / name).read_bytes() == PLAIN


def metadata_of(client: ContainerClient, name: str) -> dict[str, str]:
    metadata: dict[str, str] = client.get_blob_client(name).get_blob_properties().metadata
    return metadata


# What is stored is not what may be served


@pytest.fixture(scope="module")
def ward(
    azurite: Azurite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ContainerClient, Mount]]:
    """A container, raw, and one mount for all that can be wrong with a blob."""
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("failures")
    key_file = write_key_file(directory / "keys.json", KEK)
    with mounted(
        azurite, container, directory, "metadata_ttl=0", "region_size=4K", key_file=key_file
    ) as mount:
        yield azurite.sdk(container), mount


Ward = tuple[ContainerClient, Mount]


def replace(
    raw: ContainerClient,
    name: str,
    change: Callable[[bytes], bytes] = bytes,
    **metadata: str | None,
) -> None:
    """Store the blob again with its ciphertext changed, and metadata set or (None) removed."""
    merged = {**metadata_of(raw, name), **metadata}
    raw.upload_blob(
        name,
        change(raw.download_blob(name).readall()),
        metadata={key: value for key, value in merged.items() if value is not None},
        overwrite=True,
    )


def test_the_wrong_key_is_EIO(azurite: Azurite, ward: Ward) -> None:
    raw, mount = ward
    same_name = AesKek(KEK.get_kid(), secrets.token_bytes(32))
    encrypting(azurite, raw.container_name, same_name).upload_blob("wrong-key", PLAIN)
    with fails(mount, errno.EIO, r"wrong-key.*local:failures"):
        (mount.path / "wrong-key").read_bytes()
    assert_lives_on(mount)


def test_an_unknown_key_is_ENOKEY(azurite: Azurite, ward: Ward) -> None:
    raw, mount = ward
    stranger = AesKek("local:stranger", secrets.token_bytes(32))
    encrypting(azurite, raw.container_name, stranger).upload_blob("unknown-key", PLAIN)
    with fails(mount, errno.ENOKEY, r"unknown-key.*local:stranger"):
        (mount.path / "unknown-key").read_bytes()
    assert_lives_on(mount)


def test_a_changed_bit_is_EIO_for_its_region_alone(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "flipped").write_bytes(PLAIN)

    def flip(body: bytes) -> bytes:
        position = 2 * REGION + 100
        return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]

    replace(raw, "flipped", flip)
    file = os.open(mount.path / "flipped", os.O_RDONLY | os.O_DIRECT)
    try:
        with fails(mount, errno.EIO, r"'flipped'"):
            os.pread(file, 4096, 2 * 4096)
        assert os.pread(file, 4096, 0) == PLAIN[:4096]
    finally:
        os.close(file)
    assert_lives_on(mount)


def test_regions_that_changed_places_are_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "swapped").write_bytes(PLAIN)
    replace(raw, "swapped", lambda b: b[REGION : 2 * REGION] + b[:REGION] + b[2 * REGION :])
    with fails(mount, errno.EIO, r"'swapped'"):
        (mount.path / "swapped").read_bytes()
    assert_lives_on(mount)


def test_a_sealed_file_cut_at_the_end_of_a_region_is_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "cut").write_bytes(PLAIN)
    replace(raw, "cut", lambda body: body[: 2 * REGION])
    with fails(mount, errno.EIO, r"cut"):
        (mount.path / "cut").read_bytes()
    assert_lives_on(mount)


def test_a_sealed_file_that_was_emptied_is_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "emptied").write_bytes(PLAIN)
    replace(raw, "emptied", lambda body: b"")
    with fails(mount, errno.EIO, r"emptied"):
        (mount.path / "emptied").read_bytes()
    assert_lives_on(mount)


def test_another_files_seal_is_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "one").write_bytes(PLAIN)
    (mount.path / "other").write_bytes(PLAIN)
    replace(raw, "one", blobfs_seal=metadata_of(raw, "other")["blobfs_seal"])
    with fails(mount, errno.EIO, r"\bone\b.*seal"):
        (mount.path / "one").read_bytes()
    assert (mount.path / "other").read_bytes() == PLAIN
    assert_lives_on(mount)


def test_a_sealed_file_made_a_symlink_is_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "turned").write_bytes(b"/etc/passwd")
    replace(raw, "turned", is_symlink="true")
    with fails(mount, errno.EIO, r"turned.*seal"):
        os.readlink(mount.path / "turned")
    assert_lives_on(mount)


@pytest.mark.parametrize(
    "value",
    ["{", "[]", "{}", '{"EncryptionAgent": {"Protocol": "2.0"}}', "x" * 5000],
    ids=["cut", "no-object", "empty", "incomplete", "long"],
)
def test_malformed_encryptiondata_is_EIO(value: str, ward: Ward) -> None:
    raw, mount = ward
    name = f"malformed-{secrets.token_hex(4)}"
    raw.upload_blob(name, bytes(100), metadata={"encryptiondata": value})
    mount.expect_log(f"WARNING .*'{name}' is listed with its stored size")
    with fails(mount, errno.EIO, rf"{name}.*encryptiondata"):
        (mount.path / name).read_bytes()
    assert (mount.path / name).stat().st_size == 100
    assert_lives_on(mount)


def test_an_unknown_protocol_is_EACCES(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "future").write_bytes(PLAIN)
    data = json.loads(metadata_of(raw, "future")["encryptiondata"])
    data["EncryptionAgent"]["Protocol"] = "3.0"
    replace(raw, "future", encryptiondata=json.dumps(data))
    mount.expect_log("WARNING .*'future' is listed with its stored size")
    with fails(mount, errno.EACCES, r"future.*protocol '3\.0'"):
        (mount.path / "future").read_bytes()
    assert_lives_on(mount)


def test_a_region_length_of_another_value_is_EIO(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "relabelled").write_bytes(PLAIN[:100])
    data = json.loads(metadata_of(raw, "relabelled")["encryptiondata"])
    data["EncryptedRegionInfo"]["DataLength"] = 8192
    replace(raw, "relabelled", encryptiondata=json.dumps(data))
    with fails(mount, errno.EIO, r"relabelled.*seal"):
        (mount.path / "relabelled").read_bytes()
    assert_lives_on(mount)


def test_a_blob_of_plaintext_is_EACCES_and_the_log_says_the_way_out(ward: Ward) -> None:
    raw, mount = ward
    raw.upload_blob("plain", b"not encrypted")
    with fails(mount, errno.EACCES, r"plain.*norequire_encryption"):
        (mount.path / "plain").read_bytes()
    assert_lives_on(mount)


def test_a_file_that_lost_its_encryptiondata_is_EACCES(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "stripped").write_bytes(PLAIN)
    replace(raw, "stripped", encryptiondata=None)
    with fails(mount, errno.EACCES, r"stripped.*not encrypted"):
        (mount.path / "stripped").read_bytes()
    assert_lives_on(mount)


def test_with_norequire_encryption_plain_blobs_are_read_and_written_encrypted(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    raw = azurite.sdk(container)
    raw.upload_blob("plain", b"not encrypted")
    with mounted(azurite, container, tmp_path, "norequire_encryption", key_file=key_file) as mount:
        assert (mount.path / "plain").read_bytes() == b"not encrypted"
        assert (mount.path / "plain").stat().st_size == len(b"not encrypted")
        with (mount.path / "plain").open("ab") as file:
            file.write(PLAINTEXT_MARKER)
    assert download(encrypting(azurite, container, KEK), "plain") == (
        b"not encrypted" + PLAINTEXT_MARKER
    )


def test_a_file_without_a_seal_is_read_unless_the_mount_requires_one(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    raw = azurite.sdk(container)
    with mounted(azurite, container, tmp_path, "metadata_ttl=0", key_file=key_file) as mount:
        (mount.path / "unsealed").write_bytes(PLAIN)
        (mount.path / "sealed").write_bytes(PLAIN)
        replace(raw, "unsealed", blobfs_seal=None)
        assert (mount.path / "unsealed").read_bytes() == PLAIN
    with mounted(azurite, container, tmp_path, "require_seal", key_file=key_file) as mount:
        with fails(mount, errno.EIO, r"unsealed.*no seal"):
            (mount.path / "unsealed").read_bytes()
        assert (mount.path / "sealed").read_bytes() == PLAIN


def test_a_protocol_below_the_minimum_is_EACCES(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    encrypting(azurite, container, KEK, "1.0").upload_blob("old", PLAIN)
    encrypting(azurite, container, KEK, "2.0").upload_blob("new", PLAIN)
    with mounted(azurite, container, tmp_path, "min_protocol=2.0", key_file=key_file) as mount:
        assert (mount.path / "new").read_bytes() == PLAIN
        mount.expect_log("WARNING .*'old' is listed with its stored size")
        with fails(mount, errno.EACCES, r"old.*min_protocol"):
            (mount.path / "old").read_bytes()


# Somebody else changes a file that is open


@pytest.mark.parametrize("deleted", [False, True], ids=["replaced", "deleted"])
def test_a_file_that_goes_while_it_is_read_is_ESTALE_and_never_a_mixture(
    deleted: bool, azurite: Azurite, ward: Ward
) -> None:
    raw, mount = ward
    name = f"gone-{deleted}"
    old, new = content(9 * MIB), content(9 * MIB, seed=1)
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob(name, old)
    file = os.open(mount.path / name, os.O_RDONLY | os.O_DIRECT)
    try:
        first = os.pread(file, 4096, 0)
        if deleted:
            sdk.delete_blob(name)
        else:
            sdk.upload_blob(name, new, overwrite=True)
        with fails(mount, errno.ESTALE, rf"{name}.*(replaced|deleted) by someone else"):
            os.pread(file, 4096, 8 * MIB + 4096)
        assert first == old[:4096]
    finally:
        os.close(file)
    if not deleted:
        assert (mount.path / name).read_bytes() == new
    assert_lives_on(mount)


@pytest.mark.parametrize("size", [9 * MIB, 100], ids=["same-size", "smaller"])
def test_what_others_read_of_a_new_version_does_not_reach_who_has_the_old_one_open(
    size: int, azurite: Azurite, ward: Ward
) -> None:
    raw, mount = ward
    name = f"two-readers-{size}"
    old, new = content(9 * MIB), content(size, seed=1)
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob(name, old)
    file = os.open(mount.path / name, os.O_RDONLY)  # both through the kernel's page cache
    try:
        assert os.pread(file, 4096, 0) == old[:4096]
        sdk.upload_blob(name, new, overwrite=True)
        assert (mount.path / name).read_bytes() == new
        with fails(mount, errno.ESTALE, rf"{name}.*replaced .*by someone else"):
            os.pread(file, 4096, 8 * MIB)
    finally:
        os.close(file)
    assert (mount.path / name).stat().st_size == size
    assert_lives_on(mount)


def test_a_change_of_metadata_alone_does_not_disturb_a_reader(azurite: Azurite, ward: Ward) -> None:
    raw, mount = ward
    plain = content(9 * MIB)
    encrypting(azurite, raw.container_name, KEK).upload_blob("calm", plain)
    file = os.open(mount.path / "calm", os.O_RDONLY | os.O_DIRECT)
    try:
        os.pread(file, 4096, 0)
        blob = raw.get_blob_client("calm")
        blob.set_blob_metadata({**metadata_of(raw, "calm"), "note": "changed"})
        assert os.pread(file, 4096, 8 * MIB + 4096) == plain[8 * MIB + 4096 :][:4096]
    finally:
        os.close(file)


def test_a_file_replaced_before_its_writer_wrote_is_ESTALE_for_the_writer(
    azurite: Azurite, ward: Ward
) -> None:
    raw, mount = ward
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob("late", b"at first")
    file = os.open(mount.path / "late", os.O_WRONLY)
    try:
        sdk.upload_blob("late", b"theirs", overwrite=True)
        assert (mount.path / "late").read_bytes() == b"theirs"
        with fails(mount, errno.ESTALE, r"write 'late'.*by someone else"):
            os.write(file, b"OURS")
    finally:
        os.close(file)
    assert download(sdk, "late") == b"theirs"


def test_of_two_writers_the_second_gets_ESTALE_and_both_versions_are_kept(
    azurite: Azurite, ward: Ward
) -> None:
    raw, mount = ward
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob("contested", b"at first")
    file = (mount.path / "contested").open("r+b")
    file.write(b"OURS")
    file.flush()
    sdk.upload_blob("contested", b"theirs", overwrite=True)
    with fails(mount, errno.ESTALE, r"contested.*kept as 'contested\.blobfs-conflict-"):
        file.close()
    assert (mount.path / "contested").read_bytes() == b"theirs"
    (aside,) = mount.path.glob("contested.blobfs-conflict-*")
    assert aside.read_bytes() == b"OURSirst"
    assert_lives_on(mount)


def test_a_big_file_changed_in_place_over_a_new_version_is_ESTALE(
    azurite: Azurite, ward: Ward
) -> None:
    raw, mount = ward
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob("half", content(9 * MIB))
    file = (mount.path / "half").open("r+b")
    file.write(b"OURS")
    file.flush()
    sdk.upload_blob("half", b"theirs", overwrite=True)
    # What is not changed was never read, and exists no more: what was written is kept.
    kept_line = r"half: not stored; its content is kept.*, but for \d+ bytes of the version below"
    with fails(mount, errno.ESTALE, r"flush 'half'", also=kept_line):
        file.close()
    assert (mount.path / "half").read_bytes() == b"theirs"
    (kept,) = mount.spool_dir.glob("*.blobfs-recovery")
    plain, description = opened(kept, mount.key_file)
    assert plain[:4] == b"OURS"
    (start, length), *_ = description["unknown"]
    assert start + length <= 9 * MIB
    assert plain[start : start + length] == bytes(length)
    kept.unlink()
    assert_lives_on(mount)


def test_a_file_that_appeared_meanwhile_is_not_overwritten(azurite: Azurite, ward: Ward) -> None:
    raw, mount = ward
    file = (mount.path / "raced").open("xb")
    file.write(b"ours")
    encrypting(azurite, raw.container_name, KEK).upload_blob("raced", b"theirs")
    with fails(mount, errno.ESTALE, r"raced.*kept as 'raced\.blobfs-conflict-"):
        file.close()
    assert (mount.path / "raced").read_bytes() == b"theirs"
    (aside,) = mount.path.glob("raced.blobfs-conflict-*")
    assert aside.read_bytes() == b"ours"


def test_a_big_file_in_conflict_is_kept_too(azurite: Azurite, ward: Ward) -> None:
    raw, mount = ward
    ours = content(20 * MIB)  # staged in blocks for its own name, before anyone knows
    sdk = encrypting(azurite, raw.container_name, KEK)
    sdk.upload_blob("big", b"at first")
    file = (mount.path / "big").open("wb")
    file.write(ours)
    sdk.upload_blob("big", b"theirs", overwrite=True)
    with fails(mount, errno.ESTALE, r"big.*kept as"):
        file.close()
    (aside,) = mount.path.glob("big.blobfs-conflict-*")
    assert aside.read_bytes() == ours
    assert download(sdk, "big") == b"theirs"


def test_on_conflict_overwrite_the_last_writer_wins(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    sdk = encrypting(azurite, container, KEK)
    for name in ("changed", "deleted"):
        sdk.upload_blob(name, b"at first")
    with mounted(azurite, container, tmp_path, "on_conflict=overwrite", key_file=key_file) as mount:
        files = [(mount.path / name).open("r+b") for name in ("changed", "deleted")]
        for file in files:
            file.write(b"OURS")
            file.flush()
        sdk.upload_blob("changed", b"theirs", overwrite=True)
        sdk.delete_blob("deleted")
        for file in files:
            file.close()
    assert {name: download(sdk, name) for name in sdk.list_blob_names()} == {
        "changed": b"OURSirst",
        "deleted": b"OURSirst",
    }


# What the service refuses


def test_an_archived_blob_is_EIO_and_the_log_names_the_tier(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "frozen").write_bytes(PLAIN)
    raw.get_blob_client("frozen").set_standard_blob_tier("Archive")
    assert (mount.path / "frozen").stat().st_size == len(PLAIN)
    file = os.open(mount.path / "frozen", os.O_RDONLY | os.O_DIRECT)
    try:
        with fails(mount, errno.EIO, r"(?i)frozen.*archive"):
            os.pread(file, 4096, 0)
    finally:
        os.close(file)
    assert_lives_on(mount)


def test_a_leased_blob_is_EBUSY_and_the_bytes_are_kept(ward: Ward) -> None:
    raw, mount = ward
    (mount.path / "leased").write_bytes(PLAIN)
    lease = raw.get_blob_client("leased").acquire_lease()
    try:
        with fails(mount, errno.EBUSY, r"(?i)leased.*lease", also=r"leased.*kept, encrypted, in"):
            (mount.path / "leased").write_bytes(PLAINTEXT_MARKER)
        assert (mount.path / "leased").read_bytes() == PLAIN
        assert recovery_file(mount, "leased").stat().st_mode & 0o777 == 0o600
    finally:
        lease.release()
    (mount.path / "leased").write_bytes(b"free again")
    assert_lives_on(mount)


def recovery_file(mount: Mount, name: str) -> Path:
    """The file that the log says to hold what could not be stored."""
    (path,) = re.findall(rf"ERROR .* {name}: not stored; .*kept, encrypted, in (\S+)", mount.log())
    assert Path(path).parent == mount.spool_dir
    return Path(path)


def test_a_token_that_expires_on_the_way_is_EACCES_and_said_to_be(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    raw = azurite.sdk(container)
    hour = timedelta(hours=1)
    now = datetime.now(UTC)

    def set_expiry(expiry: datetime) -> None:
        policy = AccessPolicy(permission="racwdlt", start=now - 2 * hour, expiry=expiry)
        raw.set_container_access_policy({"policy": policy})

    set_expiry(now + hour)
    sas = generate_container_sas(azurite.account, container, azurite.key, policy_id="policy")
    azurite.signatures.add(signature(sas))
    with mounted(
        azurite, container, tmp_path, "metadata_ttl=0", "timeout=3", sas=sas, key_file=key_file
    ) as mount:
        mount.expect_log("the service refuses the token; waiting up to 1 s for another one")
        (mount.path / "file").write_bytes(PLAIN)
        set_expiry(now - hour)
        with fails(mount, errno.EACCES, r"SAS token is expired"):
            (mount.path / "file").read_bytes()
        set_expiry(now + hour)
        assert_lives_on(mount)


def test_a_container_that_does_not_exist_is_said_before_anything_is_mounted(
    azurite: Azurite, tmp_path: Path, key_file: Path
) -> None:
    with (
        pytest.raises(MountFailed) as failure,
        mounted(azurite, "no-such-container", tmp_path, key_file=key_file),
    ):
        pytest.fail("mounted")
    assert re.fullmatch(r"blobfs: .*no-such-container does not exist: .*", failure.value.stderr)


# The service does not answer


class Line:
    """A TCP way to the service that can be cut: `refuse` new and old connections, or `stall`."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._refusing = False
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self) -> None:
        self._refusing = True
        self._hang_up()

    def stall(self) -> None:
        self._open.clear()

    def restore(self) -> None:
        self._hang_up()  # what was held back must not arrive late
        self._refusing = False
        self._open.set()

    def close(self) -> None:
        self.refuse()
        self._listener.close()

    def _hang_up(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._refusing:
                    client.close()
                    continue
                server = socket.create_connection(self._target)
                self._connections += [client, server]
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        with client, server, suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    self._open.wait()
                    if not data:
                        return
                    other[source].sendall(data)


@pytest.fixture
def line(azurite: Azurite) -> Iterator[Line]:
    line = Line(azurite.port)
    yield line
    line.close()


def over(line: Line, azurite: Azurite) -> Azurite:
    """The same service, at the other end of the line."""
    behind = copy.copy(azurite)
    behind.endpoint = azurite.endpoint.replace(f":{azurite.port}/", f":{line.port}/")
    return behind


@pytest.mark.parametrize("how", ["refuse", "stall"])
def test_a_close_that_cannot_reach_the_service_fails_in_time_and_keeps_the_bytes(
    how: str, line: Line, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    plain = PLAINTEXT_MARKER * 100
    with mounted(
        over(line, azurite), container, tmp_path, "timeout=2s", "metadata_ttl=0", key_file=key_file
    ) as mount:
        file = os.open(mount.path / "unsent", os.O_WRONLY | os.O_CREAT)
        os.write(file, plain)
        getattr(line, how)()
        started = monotonic()
        with fails(mount, errno.EIO, r"flush 'unsent'", also=r"unsent.*kept, encrypted, in"):
            try:
                os.close(file)
            finally:
                assert monotonic() - started < 10  # the deadline is 2 s
        kept = recovery_file(mount, "unsent").read_bytes()
        assert PLAINTEXT_MARKER not in kept
        assert len(kept) > len(plain)
        line.restore()
        assert_lives_on(mount)
        assert not (mount.path / "unsent").exists()


@pytest.mark.parametrize("how", ["refuse", "stall"])
def test_a_read_that_cannot_reach_the_service_is_EIO_in_time(
    how: str, line: Line, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    encrypting(azurite, container, KEK).upload_blob("file", PLAIN)
    with mounted(
        over(line, azurite), container, tmp_path, "timeout=2s", key_file=key_file
    ) as mount:
        # for writing, too: what is opened for reading alone is fetched at once
        file = os.open(mount.path / "file", os.O_RDWR | os.O_DIRECT)
        try:
            getattr(line, how)()
            started = monotonic()
            with fails(mount, errno.EIO, r"read 'file'.*(Get Blob of 'file'|no answer within 2 s)"):
                os.pread(file, len(PLAIN), 0)
            assert monotonic() - started < 10  # the deadline is 2 s
            line.restore()
            assert os.pread(file, len(PLAIN), 0) == PLAIN
        finally:
            os.close(file)


def test_a_short_outage_is_not_noticed(
    line: Line, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    with mounted(over(line, azurite), container, tmp_path, key_file=key_file) as mount:
        file = (mount.path / "file").open("wb")
        file.write(PLAIN)
        line.refuse()
        timer = threading.Timer(0.5, line.restore)
        timer.start()
        file.close()
        timer.join()
        assert base64.b64encode((mount.path / "file").read_bytes()) == base64.b64encode(PLAIN)
    assert download(encrypting(azurite, container, KEK), "file") == PLAIN
