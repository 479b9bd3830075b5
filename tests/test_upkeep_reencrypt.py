"""`blobfs reencrypt`: every file in the protocol wanted, checked before it replaces the old one."""

import json
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from azure.storage.blob import BlobProperties, ContentSettings, StandardBlobTier

from blobfs.blobs import Container, Version
from blobfs.errors import KeyUnknown
from blobfs.keyring import Keyring
from blobfs.options import parse_source
from blobfs.session import Session, open_session
from blobfs.upkeep import Report, reencrypt
from tests.azurite import Azurite
from tests.mounts import mounted
from tests.sdk import (
    WRITES_PROTOCOL_1,
    AesKek,
    content,
    download,
    encrypting,
    write_key_file,
)
from tests.upkeep import Upkeep, everything_of, upload_many, writes_in

KEK = AesKek("local:reencrypt", secrets.token_bytes(32))
OTHER = AesKek("local:other", secrets.token_bytes(32))
MIB = 1024 * 1024

HEADERS = ContentSettings(
    content_type="text/x-novel", cache_control="no-transform", content_language="de-AT"
)
TAGS = {"team": "storage", "keep": "yes"}


def formats(azurite: Azurite, container: str) -> dict[str, tuple[str, int] | str]:
    """Protocol and region length of every blob, "plain" for those without."""
    return {
        blob.name: format_of(blob)
        for blob in azurite.sdk(container).list_blobs(include=["metadata"])
    }


def format_of(blob: BlobProperties) -> tuple[str, int] | str:
    if "encryptiondata" not in blob.metadata:
        return "plain"
    data = json.loads(blob.metadata["encryptiondata"])
    length = data.get("EncryptedRegionInfo", {}).get("DataLength", 0)
    return data["EncryptionAgent"]["Protocol"], length


# --- what is changed and what is kept --------------------------------------------------------

SIZES = [0, 1, 65_536, 300_000]


@pytest.mark.mount
@WRITES_PROTOCOL_1
def test_every_file_gets_the_protocol_and_region_size_asked_for_and_reads_the_same(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    files = {f"{protocol}/{size}": size for protocol in ("1.0", "2.0") for size in SIZES}
    files["2.0/in blocks"] = 9 * MIB + 1
    for name, size in files.items():
        encrypting(azurite, container, KEK, name[:3]).upload_blob(name, content(size))
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    with mounted(azurite, container, tmp_path, "protocol=1.0", key_file=key_file) as mount:
        mount.expect_log("protocol 1.0")
        os.symlink("1.0/1", mount.path / "link")
        assert (mount.path / "1.0/1").read_bytes() == content(1)
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    assert "10 re-encrypted" in upkeep.run("reencrypt", "--region-size", "32K")
    found = formats(azurite, container)
    assert {found[name] for name in [*files, "link"]} == {("2.1", 32 * 1024)}
    assert not [name for name in found if "hidden" in name]
    strict = ("require_seal", "min_protocol=2.1")
    with mounted(azurite, container, tmp_path, *strict, key_file=key_file) as mount:
        assert os.readlink(mount.path / "link") == "1.0/1"
        assert all((mount.path / name).read_bytes() == content(files[name]) for name in files)
    sdk = encrypting(azurite, container, KEK)
    assert all(download(sdk, name) == content(size) for name, size in files.items())


@WRITES_PROTOCOL_1
def test_all_but_the_encryption_is_kept(azurite: Azurite, container: str, tmp_path: Path) -> None:
    blob = encrypting(azurite, container, KEK, "1.0").upload_blob(
        "file",
        content(5000),
        metadata={"ModTime": "1577934245123456789", "Author": "Ann", "permissions": "33200"},
        content_settings=HEADERS,
        tags=TAGS,
        standard_blob_tier=StandardBlobTier.COOL,
    )
    raw = azurite.sdk(container).get_blob_client(blob.blob_name)
    before = everything_of(raw)
    Upkeep(azurite, container, tmp_path, KEK).run("reencrypt")
    after = everything_of(raw)
    for state in (before, after):
        del state["bytes"], state["metadata"]["encryptiondata"], state["headers"]["content_md5"]
    assert after["metadata"].pop("blobfs_seal").startswith("1:5000:")
    assert after == before


@WRITES_PROTOCOL_1
def test_a_file_that_stores_no_time_keeps_the_one_that_it_is_shown_with(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = encrypting(azurite, container, KEK, "1.0").upload_blob("file", b"x")
    written = blob.get_blob_properties().last_modified
    Upkeep(azurite, container, tmp_path, KEK).run("reencrypt")
    modtime = int(blob.get_blob_properties().metadata["modtime"])
    assert datetime.fromtimestamp(modtime / 10**9, UTC) == written


def test_plaintext_is_encrypted_only_when_that_is_asked_for(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    raw = azurite.sdk(container)
    plain = random.Random("plain").randbytes(70_000)
    raw.upload_blob("file", plain, metadata={"Author": "Ann"})
    raw.upload_blob("empty", b"")
    raw.upload_blob("folder", b"", metadata={"hdi_isfolder": "true"})
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    said = upkeep.run("reencrypt")
    assert "plaintext, not asked for (--include-plain): 2" in said
    assert set(formats(azurite, container).values()) == {"plain"}
    upkeep.run("reencrypt", "--include-plain", "--protocol", "2.0")
    assert formats(azurite, container) == {
        "file": ("2.0", 4 * MIB),
        "empty": ("2.0", 4 * MIB),
        "folder": "plain",
    }
    assert download(encrypting(azurite, container, KEK), "file") == plain
    assert raw.get_blob_client("file").get_blob_properties().metadata["Author"] == "Ann"


def test_what_is_as_it_should_be_costs_no_request(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    encrypting(azurite, container, KEK).upload_blob("file", content(10))
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    upkeep.run("reencrypt")
    azurite.reset_requests()
    assert "0 re-encrypted" in upkeep.run("reencrypt")
    asked = [request.query.get("comp") for request in azurite.requests()]
    assert asked == ["list", "list"]  # what a run before left, and the pass


def test_a_dry_run_changes_nothing(azurite: Azurite, container: str, tmp_path: Path) -> None:
    encrypting(azurite, container, KEK).upload_blob("a/file", content(10))
    encrypting(azurite, container, KEK).upload_blob("b/file", content(10))
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    azurite.reset_requests()
    said = upkeep.run("reencrypt", "--dry-run", "--prefix", "a/", status=4)
    assert "still to be re-encrypted: 1" in said
    assert [request.method for request in azurite.requests()] == ["GET"]


# --- what is left ----------------------------------------------------------------------------


@WRITES_PROTOCOL_1
def test_what_cannot_be_rewritten_is_listed_with_the_reason_and_stays_as_it_was(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk, raw = encrypting(azurite, container, KEK, "1.0"), azurite.sdk(container)
    for name in ("leased", "archived", "snapshot", "cut", "usual"):
        sdk.upload_blob(name, content(5000))
    encrypting(azurite, container, OTHER, "1.0").upload_blob("unknown", content(5000))
    metadata = raw.get_blob_client("cut").get_blob_properties().metadata
    body = raw.download_blob("cut").readall()
    raw.upload_blob("cut", body[:-1], metadata=metadata, overwrite=True)
    append = raw.get_blob_client("append")
    append.create_append_blob(metadata=metadata)
    append.append_block(body)
    raw.get_blob_client("leased").acquire_lease()
    raw.get_blob_client("archived").set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    raw.get_blob_client("snapshot").create_snapshot()
    reasons = {
        "leased": "lease",
        "archived": "archive tier",
        "snapshot": "snapshot ",
        "cut": "",
        "unknown": "none of the mount's keys is 'local:other'",
        "append": "AppendBlob",
    }
    said = Upkeep(azurite, container, tmp_path, KEK).run("reencrypt", status=4)
    for name, reason in reasons.items():
        (line,) = (line for line in said.splitlines() if f"/{name}: " in line)
        assert line.startswith("left: ")
        assert reason in line
    assert "left, for the reasons above: 6" in said
    found = formats(azurite, container)
    assert {name for name, form in found.items() if form == ("2.1", 65536)} == {
        "usual",
        "snapshot",
    }
    assert set(found) == {*reasons, "usual"}
    assert raw.download_blob("cut").readall() == body[:-1]


@WRITES_PROTOCOL_1
def test_tags_that_the_token_could_not_keep_keep_the_file_as_it_is(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk = encrypting(azurite, container, KEK, "1.0")
    sdk.upload_blob("tagged", b"x", tags=TAGS)
    upkeep = Upkeep(azurite, container, tmp_path, KEK, permissions="rwdl")
    assert "lacks t to keep them" in upkeep.run("reencrypt", status=4)
    assert azurite.sdk(container).get_blob_client("tagged").get_blob_tags() == TAGS


def test_a_token_that_could_not_clean_up_is_refused(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, KEK, permissions="rwl")
    upkeep.run("reencrypt", status=1)
    assert "lacks d" in upkeep.stderr


# --- nothing counts before it was read back --------------------------------------------------


class Spoiling(Container):
    """Does something just before or after a step; the steps themselves are the service's."""

    def __init__(self, container: Container, **events: Callable[[str], None]) -> None:
        self.__dict__.update(container.__dict__)
        self._events = events

    def _happen(self, event: str, name: str) -> None:
        if happening := self._events.pop(event, None):
            happening(name)

    async def put(self, name: str, *args: object, **kwargs: object) -> Version:
        version = await super().put(name, *args, **kwargs)  # type: ignore[arg-type]
        self._happen("stored_hidden", name)
        return version

    async def put_block_list(self, name: str, *args: object, **kwargs: object) -> Version:
        self._happen("before_commit", name)
        return await super().put_block_list(name, *args, **kwargs)  # type: ignore[arg-type]


async def reencrypt_with(
    upkeep: Upkeep, spoil: Callable[[Container], Container] = lambda container: container
) -> bool:
    options = parse_source(upkeep.source, [upkeep.options], now=datetime.now(UTC))
    async with open_session(options) as session:
        (place,) = session.places
        place = replace(place, container=spoil(place.container))
        spoiled = Session(session.options, session.keyring, (place,))
        return await reencrypt(spoiled, Report("reencrypt"))


@WRITES_PROTOCOL_1
async def test_without_a_key_that_wraps_nothing_is_uploaded(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_1(azurite, container, 5000)
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    options = parse_source(upkeep.source, [upkeep.options], now=datetime.now(UTC))
    azurite.reset_requests()
    async with open_session(options) as session:
        keyless = replace(session, keyring=Keyring(None))
        with pytest.raises(KeyUnknown):
            await reencrypt(keyless, Report("reencrypt"))
    assert writes_in(azurite.requests()) == 0


def upload_1(azurite: Azurite, container: str, size: int) -> None:
    encrypting(azurite, container, KEK, "1.0").upload_blob("file", content(size), overwrite=True)


@WRITES_PROTOCOL_1
async def test_a_copy_that_does_not_read_back_never_replaces_the_file(
    azurite: Azurite, container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_1(azurite, container, 5000)
    raw = azurite.sdk(container)
    before = everything_of(raw.get_blob_client("file"))

    def flip(hidden: str) -> None:
        state = everything_of(raw.get_blob_client(hidden))
        body = bytearray(state["bytes"])
        body[100] ^= 1
        raw.upload_blob(hidden, bytes(body), metadata=state["metadata"], overwrite=True)

    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    assert not await reencrypt_with(upkeep, lambda c: Spoiling(c, stored_hidden=flip))
    assert "left: " in capsys.readouterr().out
    assert everything_of(raw.get_blob_client("file")) == before
    assert [*raw.list_blob_names()] == ["file"]


@WRITES_PROTOCOL_1
async def test_a_file_that_is_replaced_meanwhile_is_begun_again(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_1(azurite, container, 5000)
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    assert await reencrypt_with(
        upkeep,
        lambda c: Spoiling(c, before_commit=lambda name: upload_1(azurite, container, 7000)),
    )
    assert formats(azurite, container) == {"file": ("2.1", 65536)}
    assert download(encrypting(azurite, container, KEK), "file") == content(7000)


@WRITES_PROTOCOL_1
async def test_metadata_and_tags_that_change_meanwhile_are_those_that_stay(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_1(azurite, container, 5000)
    blob = azurite.sdk(container).get_blob_client("file")

    def change(hidden: str) -> None:
        blob.set_blob_metadata({**blob.get_blob_properties().metadata, "note": "new"})
        blob.set_blob_tags(TAGS)

    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    assert await reencrypt_with(upkeep, lambda c: Spoiling(c, stored_hidden=change))
    assert blob.get_blob_properties().metadata["note"] == "new"
    assert blob.get_blob_tags() == TAGS
    assert formats(azurite, container) == {"file": ("2.1", 65536)}


@WRITES_PROTOCOL_1
async def test_a_large_file_is_put_in_place_piece_by_piece(
    azurite: Azurite, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[reencrypt.__module__], "PIECE", MIB)
    upload_1(azurite, container, 3 * MIB + 5)
    azurite.reset_requests()
    assert await reencrypt_with(Upkeep(azurite, container, tmp_path, KEK))
    staged = [r for r in azurite.requests() if r.query.get("comp") == "block"]
    assert len(staged) == 4
    assert download(encrypting(azurite, container, KEK), "file") == content(3 * MIB + 5)


@pytest.mark.mount
@WRITES_PROTOCOL_1
def test_a_mount_takes_a_rewritten_file_for_one_that_another_host_has_replaced(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_1(azurite, container, 3 * MIB)
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    with mounted(azurite, container, tmp_path, "metadata_ttl=0", key_file=key_file) as mount:
        mount.expect_log("protocol 1.0")
        mount.expect_log("Stale file handle: 'file' was replaced")
        with (mount.path / "file").open("rb") as opened:
            Upkeep(azurite, container, tmp_path, KEK).run("reencrypt")
            with pytest.raises(OSError, match="Stale"):
                opened.read()
        assert (mount.path / "file").read_bytes() == content(3 * MIB)
        (mount.path / "file").write_bytes(b"and on")
        assert (mount.path / "file").read_bytes() == b"and on"


# --- stopped at any moment -------------------------------------------------------------------


@WRITES_PROTOCOL_1
def test_killed_ten_times_and_run_again_every_file_is_whole_and_rewritten(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    rng = random.Random("reencrypt, killed")
    sizes = {f"{number:02}": rng.choice([0, 10, 70_000]) for number in range(24)}
    sizes["03"] = 9 * MIB
    sdk = encrypting(azurite, container, KEK, "1.0")
    for name, size in sizes.items():
        sdk.upload_blob(name, content(size))
    upkeep = Upkeep(azurite, container, tmp_path, KEK, options="connections=4")
    for _ in range(10):
        assert upkeep.killed_at(azurite, rng.randint(1, 10), "reencrypt")
        seen = {name for name in formats(azurite, container) if "hidden" not in name}
        assert seen == sizes.keys()
    assert {form[0] for form in formats(azurite, container).values()} == {"1.0", "2.1"}
    upkeep.run("reencrypt")
    assert formats(azurite, container) == dict.fromkeys(sizes, ("2.1", 65536))
    again = encrypting(azurite, container, KEK)
    assert all(download(again, name) == content(size) for name, size in sizes.items())


def test_told_to_stop_it_gives_up_the_files_under_way_and_leaves_nothing_behind(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, KEK, 100)
    upkeep = Upkeep(azurite, container, tmp_path, KEK, options="connections=2")
    azurite.reset_requests()
    process = upkeep.start("reencrypt")
    while not writes_in(azurite.requests()):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    found = formats(azurite, container)
    left = list(found.values()).count(("2.0", 4 * MIB))
    assert f"still to be re-encrypted: {left}" in said
    assert not [name for name in found if "hidden" in name]
    assert len(found) == 100
