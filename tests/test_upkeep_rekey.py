"""`blobfs rekey`: everything stored is under the current key, and nothing else has changed."""

import json
import os
import random
import secrets
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import (
    AccessPolicy,
    ContentSettings,
    StandardBlobTier,
    generate_container_sas,
)
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from blobfs.cli import main
from blobfs.envelope import WrappedKey
from blobfs.errors import TokenRefused
from blobfs.keyring import Keyring
from blobfs.options import parse_source
from blobfs.session import open_session, parse_by_clock
from blobfs.upkeep import Report, rekey
from tests.azurite import Azurite, signature
from tests.mounts import mounted
from tests.sdk import (
    WRITES_PROTOCOL_1,
    AesKek,
    RsaKek,
    content,
    download,
    encrypting,
    write_key_file,
)
from tests.upkeep import Upkeep, everything_of, upload_many, writes_in

OLD = AesKek("local:old", secrets.token_bytes(32))
NEW = AesKek("local:new", secrets.token_bytes(32))
OTHER = AesKek("local:other", secrets.token_bytes(32))
OLD_RSA = RsaKek("local:old-rsa", generate_private_key(65537, 2048), "RSA-OAEP")

HEADERS = ContentSettings(content_type="text/x-novel", cache_control="no-transform")
TAGS = {"team": "storage"}
MODTIME = {"ModTime": "1577934245123456789", "Author": "Ann"}


def key_ids(azurite: Azurite, container: str) -> dict[str, str]:
    return {
        blob.name: json.loads(blob.metadata["encryptiondata"])["WrappedContentKey"]["KeyId"]
        for blob in azurite.sdk(container).list_blobs(include=["metadata"])
        if "encryptiondata" in blob.metadata
    }


# --- what is changed and what is kept --------------------------------------------------------


@pytest.mark.mount
@WRITES_PROTOCOL_1
def test_every_protocol_is_rekeyed_and_then_opens_with_the_new_key_alone(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    for protocol in ("1.0", "2.0"):
        for kek in (OLD, OLD_RSA):
            encrypting(azurite, container, kek, protocol).upload_blob(
                f"sdk-{protocol}-{kek.get_kid()}", content(70_000)
            )
    azurite.sdk(container).upload_blob("plain", b"as it is")
    old_keys = write_key_file(tmp_path / "old.json", OLD)
    with mounted(azurite, container, tmp_path, key_file=old_keys) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d/file").write_bytes(content(300_000))
        os.symlink("d/file", mount.path / "link")
        for path in (mount.path / "d", mount.path / "d/file"):
            os.setxattr(path, "user.secret", b"of " + path.name.encode())
    report = Upkeep(azurite, container, tmp_path, NEW, OLD, OLD_RSA).run("rekey")
    assert "7 re-keyed" in report
    assert set(key_ids(azurite, container).values()) == {"local:new"}
    for name in key_ids(azurite, container):
        sdk = encrypting(azurite, container, NEW)
        size = 6 if name == "link" else 300_000 if name == "d/file" else 70_000
        assert download(sdk, name) == (b"d/file" if name == "link" else content(size))
    new_keys = write_key_file(tmp_path / "new.json", NEW)
    with mounted(azurite, container, tmp_path, key_file=new_keys) as mount:
        mount.expect_log("protocol 1.0")
        assert (mount.path / "link").read_bytes() == content(300_000)
        assert os.readlink(mount.path / "link") == "d/file"
        for path in (mount.path / "d", mount.path / "d/file"):
            assert os.getxattr(path, "user.secret") == b"of " + path.name.encode()
        for name in key_ids(azurite, container):
            if name.startswith("sdk"):
                assert (mount.path / name).read_bytes() == content(70_000)


def test_all_but_the_wrapped_key_is_kept(azurite: Azurite, container: str, tmp_path: Path) -> None:
    blob = encrypting(azurite, container, OLD).upload_blob(
        "file",
        content(5000),
        metadata=MODTIME,
        content_settings=HEADERS,
        tags=TAGS,
        standard_blob_tier=StandardBlobTier.COOL,
    )
    raw = azurite.sdk(container).get_blob_client(blob.blob_name)
    before = everything_of(raw)
    Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey")
    after = everything_of(raw)
    data, old_data = (
        json.loads(state["metadata"].pop("encryptiondata")) for state in (after, before)
    )
    assert after == before
    assert data.pop("WrappedContentKey")["KeyId"] == "local:new"
    assert old_data.pop("WrappedContentKey")["KeyId"] == "local:old"
    assert data == old_data


def test_members_that_only_another_writer_knows_survive_in_their_order_and_spelling(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = encrypting(azurite, container, OLD).upload_blob("file", content(10))
    root = json.loads(blob.get_blob_properties().metadata["encryptiondata"])
    wrapped = root.pop("WrappedContentKey")
    value = {
        "future": [1, 2.5, None, {"x": "\u00e9"}],
        "wrappedContentKey": {
            "algorithm": wrapped["Algorithm"],
            "note": "kept",
            "keyId": wrapped["KeyId"],
            "encryptedKey": wrapped["EncryptedKey"],
        },
        **root,
        "KeyWrappingMetadata": {"EncryptionLibrary": "Novel 1.0", "by": {"whom": True}},
    }
    blob.set_blob_metadata({"EncryptionData": json.dumps(value)})
    Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey")
    ((name, stored),) = (
        (name, value)
        for name, value in blob.get_blob_properties().metadata.items()
        if name != "modtime"
    )
    assert name == "EncryptionData"
    again = json.loads(stored)
    assert again["wrappedContentKey"].pop("keyId") == "local:new"
    assert again["wrappedContentKey"].pop("encryptedKey") != wrapped["EncryptedKey"]
    del value["wrappedContentKey"]["keyId"], value["wrappedContentKey"]["encryptedKey"]
    assert json.dumps(again) == json.dumps(value)


def test_a_file_that_stores_no_time_keeps_the_one_that_it_is_shown_with(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = encrypting(azurite, container, OLD).upload_blob("file", b"")
    written = blob.get_blob_properties().last_modified
    Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey")
    modtime = int(blob.get_blob_properties().metadata["modtime"])
    assert datetime.fromtimestamp(modtime / 10**9, UTC) == written


def test_append_and_page_blobs_are_rekeyed_too(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = encrypting(azurite, container, OLD).upload_blob("file", content(10))
    metadata = blob.get_blob_properties().metadata
    raw = azurite.sdk(container)
    raw.get_blob_client("append").create_append_blob(metadata=metadata)
    raw.get_blob_client("page").create_page_blob(512, metadata=metadata)
    Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey")
    assert set(key_ids(azurite, container)) == {"append", "file", "page"}
    assert set(key_ids(azurite, container).values()) == {"local:new"}


# --- what it costs ---------------------------------------------------------------------------


def test_it_takes_one_request_a_blob_and_none_for_those_that_are_done(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, OLD, 40)
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, options="list_page=25")
    for changes in (40, 0):
        azurite.reset_requests()
        upkeep.run("rekey")
        asked = [request.query.get("comp") for request in azurite.requests()]
        assert sorted(asked) == ["list", "list", *["metadata"] * changes]


# --- what is asked for -----------------------------------------------------------------------


def test_a_dry_run_says_what_is_under_old_keys_and_changes_nothing(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, OLD, 3)
    encrypting(azurite, container, OTHER).upload_blob("other", b"x")
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, OTHER)
    report = upkeep.run("rekey", "--dry-run", status=4)
    assert "left under key 'local:old': 3" in report
    assert "left under key 'local:other': 1" in report
    assert set(key_ids(azurite, container).values()) == {"local:old", "local:other"}


def test_from_and_prefix_choose_the_blobs(azurite: Azurite, container: str, tmp_path: Path) -> None:
    for name, kek in {"a/old": OLD, "a/other": OTHER, "b/old": OLD}.items():
        encrypting(azurite, container, kek).upload_blob(name, b"x")
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, OTHER)
    report = upkeep.run("rekey", "--from", "local:old", "--prefix", "a/")
    assert "under key 'local:other', not asked for: 1" in report
    assert key_ids(azurite, container) == {
        "a/old": "local:new",
        "a/other": "local:other",
        "b/old": "local:old",
    }


@pytest.mark.mount
def test_a_folder_as_the_source_is_rekeyed_with_its_own_attributes_and_nothing_beside_it(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    old_keys = write_key_file(tmp_path / "old.json", OLD)
    with mounted(azurite, container, tmp_path, key_file=old_keys) as mount:
        for name in ("d", "d2"):
            (mount.path / name).mkdir()
            (mount.path / name / "file").write_bytes(b"x")
            os.setxattr(mount.path / name, "user.x", b"y")
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    upkeep.source += "/d"
    assert "2 re-keyed" in upkeep.run("rekey")
    assert key_ids(azurite, container) == {"d/file": "local:new", "d2/file": "local:old"}
    boxes = {
        name: azurite.sdk(container).get_blob_client(name).get_blob_properties().metadata
        for name in ("d", "d2")
    }
    assert json.loads(boxes["d"]["blobfs_xattr"])["KeyId"] == "local:new"
    assert json.loads(boxes["d2"]["blobfs_xattr"])["KeyId"] == "local:old"


def test_with_a_sas_dir_every_container_that_has_a_token_is_rekeyed(
    azurite: Azurite, tmp_path: Path
) -> None:
    names = [azurite.new_container() for _ in range(2)]
    upkeep = Upkeep(azurite, names[0], tmp_path, NEW, OLD)
    for name in names:
        encrypting(azurite, name, OLD).upload_blob("file", b"x")
        (tmp_path / f"{name}.sas").touch(0o600)
        (tmp_path / f"{name}.sas").write_text(azurite.sas(name))
    upkeep.sas_file.unlink()
    upkeep.source = f"{azurite.endpoint}/"
    upkeep.options = f"sas_dir={tmp_path},key_file={upkeep.key_file}"
    assert "2 re-keyed" in upkeep.run("rekey")
    assert [key_ids(azurite, name) for name in names] == [{"file": "local:new"}] * 2


# --- what is left ----------------------------------------------------------------------------


def test_what_cannot_be_rekeyed_is_listed_with_the_reason_and_the_rest_is_done(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    for name in ("leased", "snapshot", "usual"):
        encrypting(azurite, container, OLD).upload_blob(name, b"x")
    encrypting(azurite, container, OTHER).upload_blob("unknown", b"x")
    raw = azurite.sdk(container)
    raw.upload_blob("malformed", b"x", metadata={"encryptiondata": "{"})
    raw.get_blob_client("leased").acquire_lease()
    raw.get_blob_client("snapshot").create_snapshot()
    report = Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey", status=4)
    for name, key, reason in (
        ("leased", "local:old", "LeaseIdMissing"),
        ("snapshot", "local:old", "cannot be changed"),
        ("unknown", "local:other", "none of the mount's keys is 'local:other'"),
    ):
        (line,) = (line for line in report.splitlines() if f"/{name}: " in line)
        assert line.startswith(f"left under '{key}': ")
        assert reason in line
    assert "left: " in report
    assert "/malformed: encryptiondata is not a JSON object" in report
    assert "left under key 'local:old': 2" in report
    assert "left under key 'local:other': 1" in report
    ids = key_ids_of_readable(azurite, container)
    assert ids == {
        "leased": "local:old",
        "snapshot": "local:new",
        "unknown": "local:other",
        "usual": "local:new",
    }


def key_ids_of_readable(azurite: Azurite, container: str) -> dict[str, str]:
    azurite.sdk(container).delete_blob("malformed")
    return key_ids(azurite, container)


def test_a_token_that_cannot_write_is_refused_before_anything_is_asked(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, NEW, permissions="rl")
    azurite.reset_requests()
    upkeep.run("rekey", status=1)
    assert "lacks w" in upkeep.stderr
    assert azurite.requests() == []


def test_a_read_only_option_is_refused(azurite: Azurite, container: str, tmp_path: Path) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, NEW, options="ro")
    upkeep.run("rekey", status=1)
    assert "leave it out" in upkeep.stderr


# --- others change the blobs meanwhile -------------------------------------------------------


class Meddling(Keyring):
    """Something happens the first time that a key is unwrapped: between listing and change."""

    def __init__(self, keyring: Keyring, event: object) -> None:
        self.__dict__.update(keyring.__dict__)
        self._event = event

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        event, self._event = self._event, None
        if event is not None:
            event()  # type: ignore[operator]
        return await super().unwrap(wrapped)


async def rekey_during(azurite: Azurite, upkeep: Upkeep, event: object) -> bool:
    options = parse_source(upkeep.source, [upkeep.options], now=datetime.now(UTC))
    async with open_session(options) as session:
        meddling = replace(session, keyring=Meddling(session.keyring, event))
        return await rekey(meddling, Report("rekey"))


async def test_a_blob_whose_metadata_changes_meanwhile_keeps_that_change(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = encrypting(azurite, container, OLD).upload_blob("file", content(10))
    metadata = blob.get_blob_properties().metadata
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    done = await rekey_during(
        azurite, upkeep, lambda: blob.set_blob_metadata({**metadata, "note": "new"})
    )
    assert done
    assert blob.get_blob_properties().metadata["note"] == "new"
    assert key_ids(azurite, container) == {"file": "local:new"}
    assert download(encrypting(azurite, container, NEW), "file") == content(10)


async def test_a_blob_that_is_replaced_meanwhile_is_rekeyed_as_it_is_then(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk = encrypting(azurite, container, OLD)
    sdk.upload_blob("file", content(10))
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    replacing = lambda: sdk.upload_blob("file", content(20), overwrite=True)  # noqa: E731
    assert await rekey_during(azurite, upkeep, replacing)
    assert key_ids(azurite, container) == {"file": "local:new"}
    assert download(encrypting(azurite, container, NEW), "file") == content(20)


async def test_a_blob_that_is_deleted_meanwhile_is_no_failure(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    encrypting(azurite, container, OLD).upload_blob("file", content(10))
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    assert await rekey_during(azurite, upkeep, lambda: azurite.sdk(container).delete_blob("file"))
    assert key_ids(azurite, container) == {}


@pytest.mark.mount
def test_a_mount_reads_and_writes_on_while_its_files_are_rekeyed(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    keys = write_key_file(tmp_path / "keys.json", NEW, OLD)
    upload_many(azurite, container, OLD, 60)
    with mounted(azurite, container, tmp_path, "metadata_ttl=1h", key_file=keys) as mount:
        files = sorted(mount.path.iterdir())
        opened = [file.open("rb") for file in files[:20]]
        halves = [file.read(50) for file in opened]
        upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
        process = upkeep.start("rekey")
        for file in files[20:40]:
            file.write_bytes(content(200, seed=1))
            os.chmod(file, 0o600)
        assert process.communicate(timeout=60)[0]
        assert process.returncode == 0
        for file, half in zip(opened, halves, strict=True):
            assert half + file.read() == content(100)
            file.close()
        for file in files[40:]:
            os.chmod(file, 0o640)
            assert file.read_bytes() == content(100)
        assert files[25].read_bytes() == content(200, seed=1)
    assert set(key_ids(azurite, container).values()) == {"local:new"}


@pytest.mark.mount
@pytest.mark.parametrize("written_by", ["blobfs", "the SDK"])
def test_who_has_a_file_open_reads_and_writes_on_when_the_rekeyed_one_was_seen(
    azurite: Azurite, container: str, tmp_path: Path, written_by: str
) -> None:
    keys = write_key_file(tmp_path / "keys.json", NEW, OLD)
    options = ("metadata_ttl=0", "cache_size=1M", "readahead=0")
    with mounted(azurite, container, tmp_path, *options, key_file=keys) as mount:
        file = mount.path / "file"
        encrypting(azurite, container, OLD).upload_blob("file", content(100_000))
        if written_by == "blobfs":
            mount.remount(*options, "key_id=local:old")
            file.write_bytes(content(100_000))
        assert set(key_ids(azurite, container).values()) == {"local:old"}
        with file.open("rb") as reading, file.open("r+b", buffering=0) as writing:
            assert reading.read(5) == content(100_000)[:5]
            Upkeep(azurite, container, tmp_path, NEW, OLD).run("rekey")
            assert set(key_ids(azurite, container).values()) == {"local:new"}
            assert [entry.stat().st_size for entry in mount.path.iterdir()] == [100_000]
            os.posix_fadvise(reading.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert reading.read() == content(100_000)[5:]
            writing.write(b"new")
        assert file.read_bytes() == b"new" + content(100_000)[3:]


async def test_a_token_that_is_revoked_meanwhile_ends_the_pass_after_its_summary(
    azurite: Azurite, container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_many(azurite, container, OLD, 5)
    raw = azurite.sdk(container)

    def let_it_expire_in(hours: int) -> None:
        now = datetime.now(UTC)
        day_ago = now - timedelta(days=1)
        policy = AccessPolicy("rwl", expiry=now + timedelta(hours=hours), start=day_ago)
        raw.set_container_access_policy({"policy": policy})

    let_it_expire_in(1)
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, options="timeout=4s")
    sas = generate_container_sas(azurite.account, container, azurite.key, policy_id="policy")
    azurite.signatures.add(signature(sas))
    upkeep.write_token(sas)
    with pytest.raises(TokenRefused):
        await rekey_during(azurite, upkeep, lambda: let_it_expire_in(-1))
    assert "not all blobs were looked at: run this again" in capsys.readouterr().out
    assert set(key_ids(azurite, container).values()) == {"local:old"}


# --- a key that cannot be trusted ------------------------------------------------------------


class Lying(Keyring):
    """Wraps something else than it is given, and remembers what it was given."""

    def __init__(self, keyring: Keyring) -> None:
        self.__dict__.update(keyring.__dict__)

    async def wrap(self, payload: bytes) -> WrappedKey:
        wrapped = await super().wrap(secrets.token_bytes(len(payload)))
        self._remember(wrapped, payload)
        return wrapped


async def test_nothing_is_changed_when_the_new_key_does_not_give_back_what_it_wraps(
    azurite: Azurite, container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encrypting(azurite, container, OLD).upload_blob("file", content(10))
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    options = parse_source(upkeep.source, [upkeep.options], now=datetime.now(UTC))
    async with open_session(options) as session:
        lying = replace(session, keyring=Lying(session.keyring))
        assert not await rekey(lying, Report("rekey"))
    assert "does not give back what it wraps" in capsys.readouterr().out
    assert download(encrypting(azurite, container, OLD), "file") == content(10)


class Mistaken(Keyring):
    """Takes one file's content key for another's, as a key command might."""

    def __init__(self, keyring: Keyring) -> None:
        self.__dict__.update(keyring.__dict__)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        return (await super().unwrap(wrapped))[:8] + bytes(32)


async def test_nothing_is_changed_when_the_old_key_gives_what_does_not_fit_the_seal(
    azurite: Azurite, container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encrypting(azurite, container, OLD).upload_blob("file", content(10))
    Upkeep(azurite, container, tmp_path, OLD).run("reencrypt")  # which seals it
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD)
    options = parse_source(upkeep.source, [upkeep.options], now=datetime.now(UTC))
    async with open_session(options) as session:
        mistaken = replace(session, keyring=Mistaken(session.keyring))
        assert not await rekey(mistaken, Report("rekey"))
    assert "blobfs_seal does not fit this body" in capsys.readouterr().out
    assert download(encrypting(azurite, container, OLD), "file") == content(10)


def test_a_token_that_only_this_clock_calls_expired_is_used(
    azurite: Azurite,
    container: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, NEW)
    ahead = timedelta(hours=10, seconds=30)
    monkeypatch.setattr(parse_by_clock, "__defaults__", (lambda: datetime.now(UTC) + ahead,))
    assert main(["rekey", upkeep.source, "-o", upkeep.options]) == 0
    assert "clock is 10 hours ahead of the service's" in capsys.readouterr().err


# --- stopped at any moment -------------------------------------------------------------------


def test_killed_ten_times_and_run_again_every_file_is_whole_and_under_the_new_key(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    rng = random.Random("rekey, killed")
    count = 400  # more than ten runs change before they are killed
    upload_many(azurite, container, OLD, count)
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, options="connections=2")
    for _ in range(10):
        assert upkeep.killed_at(azurite, rng.randint(1, 10), "rekey")
    assert set(key_ids(azurite, container).values()) == {"local:old", "local:new"}
    upkeep.run("rekey")
    assert set(key_ids(azurite, container).values()) == {"local:new"}
    sdk = encrypting(azurite, container, NEW)
    assert all(download(sdk, f"{number:03}") == content(100) for number in range(count))


def test_told_to_stop_it_counts_what_is_left_and_ends(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, OLD, 300)
    upkeep = Upkeep(azurite, container, tmp_path, NEW, OLD, options="connections=1")
    azurite.reset_requests()
    process = upkeep.start("rekey")
    while not writes_in(azurite.requests()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    left = list(key_ids(azurite, container).values()).count("local:old")
    assert 0 < left < 300
    assert f"left under key 'local:old': {left}" in said
    assert "stopping" in errors
