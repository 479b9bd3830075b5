"""`blobfs verify`: what is wrong is found and named, what is right is not."""

import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, StandardBlobTier

from blobfs.upkeep import findings
from tests.azurite import Azurite
from tests.fuzz.seeds import recovery_file
from tests.mounts import mounted
from tests.sdk import WRITES_PROTOCOL_1, AesKek, content, encrypting, write_key_file
from tests.upkeep import Upkeep, upload_many

KEK = AesKek("local:verify", secrets.token_bytes(32))
SAME_ID = AesKek("local:verify", secrets.token_bytes(32))
OTHER = AesKek("local:other", secrets.token_bytes(32))
REGION = 64 * 1024 + 28
SIZE = 3 * 64 * 1024 + 10

Found = dict[str, set[tuple[str, str]]]


def found_by(upkeep: Upkeep, *more: str, status: int) -> Found:
    """By name, the severity and the kind of each finding."""
    by_name: Found = {}
    for finding in report_of(upkeep, *more, status=status)["findings"]:
        kinds = by_name.setdefault(finding["name"], set())
        kinds.add((finding["severity"], finding["finding"]))
    return by_name


def report_of(upkeep: Upkeep, *more: str, status: int) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(upkeep.run("verify", "--json", *more, status=status))
    return report


@pytest.fixture(scope="module")
def written(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> ContainerClient:
    """A container as a mount has written it."""
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("written")
    key_file = write_key_file(directory / "keys.json", KEK)
    with mounted(azurite, container, directory, key_file=key_file) as mount:
        (mount.path / "d").mkdir()
        (mount.path / "d/file").write_bytes(content(SIZE))
        (mount.path / "d/same size").write_bytes(content(SIZE, seed=1))
        (mount.path / "empty").touch()
        os.symlink("d/file", mount.path / "link")
        for path in (mount.path / "d", mount.path / "d/file"):
            os.setxattr(path, "user.x", b"y")
    return azurite.sdk(container)


@pytest.fixture
def damaged(azurite: Azurite, container: str, written: ContainerClient) -> ContainerClient:
    """An own copy of it, to be spoiled."""
    copy = azurite.sdk(container)
    for name in written.list_blob_names():
        store(copy, name, *stored(written, name))
    return copy


def stored(client: ContainerClient, name: str) -> tuple[bytes, dict[str, str]]:
    blob = client.get_blob_client(name)
    return blob.download_blob().readall(), dict(blob.get_blob_properties().metadata)


def store(client: ContainerClient, name: str, body: bytes, metadata: dict[str, str]) -> None:
    client.upload_blob(name, body, metadata=metadata, overwrite=True)


# --- all is well -----------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [[], ["--deep"]], ids=["shallow", "deep"])
def test_what_a_mount_has_written_is_well(
    depth: list[str], azurite: Azurite, written: ContainerClient, tmp_path: Path
) -> None:
    upkeep = Upkeep(azurite, written.container_name, tmp_path, KEK)
    strict = report_of(upkeep, *depth, status=0)
    assert strict["findings"] == []
    assert strict["summary"]["keys"] == {"local:verify": 6}  # four bodies, two boxes
    assert strict["summary"]["protocols"] == {"2.1": 4}
    assert strict["summary"]["deep"] == bool(depth)
    assert strict["summary"]["complete"]
    table = upkeep.run("verify", *depth)
    assert "5 blobs" in table
    assert "0 errors, 0 notices" in table


def test_without_deep_it_costs_the_listing_alone(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, KEK, 30)
    upkeep = Upkeep(azurite, container, tmp_path, KEK, options="list_page=20")
    azurite.reset_requests()
    upkeep.run("verify", status=3)
    assert [request.query.get("comp") for request in azurite.requests()] == ["list", "list"]


# --- what is wrong ---------------------------------------------------------------------------


def test_bodies_that_were_changed_are_found(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    body, metadata = stored(damaged, "d/file")
    other_body, _ = stored(damaged, "d/same size")
    flipped = bytearray(body)
    flipped[REGION + 500] ^= 1
    swapped = body[REGION : 2 * REGION] + body[:REGION] + body[2 * REGION :]
    longer = {**metadata, "blobfs_seal": metadata["blobfs_seal"].replace("1:19", "1:29")}
    cut_metadata = {**metadata, "blobfs_seal": ""}
    del cut_metadata["blobfs_seal"]
    for name, spoiled, with_metadata in (
        ("cut at a region", body[: 2 * REGION], metadata),
        ("cut in a region", body[:-1], metadata),
        ("cut to less than a tag, unsealed", body[: REGION + 5], cut_metadata),
        ("another seal", body, longer),
        ("bit flipped", bytes(flipped), metadata),
        ("regions swapped", swapped, metadata),
        ("another body", other_body, metadata),
        ("a link made of it", body, {**metadata, "is_symlink": "true"}),
    ):
        store(damaged, name, spoiled, with_metadata)
    upkeep = Upkeep(azurite, damaged.container_name, tmp_path, KEK)
    shallow: Found = {
        "cut at a region": {("error", "truncated")},
        "cut in a region": {("error", "truncated")},
        "cut to less than a tag, unsealed": {("error", "truncated"), ("notice", "unsealed")},
        "another seal": {("error", "tampered")},
        "a link made of it": {("error", "tampered")},
    }
    assert found_by(upkeep, status=4) == shallow
    assert found_by(upkeep, "--deep", status=4) == shallow | {
        name: {("error", "tampered")} for name in ("bit flipped", "regions swapped", "another body")
    }


def test_a_damaged_copy_of_a_whole_file_is_found_after_the_whole_one_was_read(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    body, metadata = stored(damaged, "d/file")
    flipped = bytearray(body)
    flipped[500] ^= 1
    store(damaged, "d/file copied", body, metadata)
    store(damaged, "d/file spoiled", bytes(flipped), metadata)
    upkeep = Upkeep(azurite, damaged.container_name, tmp_path, KEK, options="connections=1")
    assert found_by(upkeep, "--deep", status=4) == {"d/file spoiled": {("error", "tampered")}}


def test_metadata_that_do_not_lead_to_a_key_are_found(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    body, metadata = stored(damaged, "d/file")
    data = metadata["encryptiondata"]
    box = json.loads(metadata["blobfs_xattr"])
    box["Data"] = box["Data"][:-8] + "AAAAAAA="
    for name, spoiled in {
        "not JSON": {**metadata, "encryptiondata": data[:-1]},
        "protocol 9": {**metadata, "encryptiondata": data.replace('"2.1"', '"9.0"')},
        "protocol 2.0": {**metadata, "encryptiondata": data.replace('"2.1"', '"2.0"')},
        "box": {**metadata, "blobfs_xattr": json.dumps(box)},
    }.items():
        store(damaged, name, body, spoiled)
    name = damaged.container_name
    encrypting(azurite, name, OTHER).upload_blob("unknown key", b"x")
    encrypting(azurite, name, SAME_ID).upload_blob("wrong key", b"x")
    upkeep = Upkeep(azurite, name, tmp_path, KEK)
    unsealed = ("notice", "unsealed")
    assert found_by(upkeep, status=4) == {
        "not JSON": {("error", "malformed")},
        "protocol 9": {("error", "protocol")},
        "protocol 2.0": {("error", "tampered")},
        "box": {("error", "tampered")},
        "unknown key": {("error", "unknown-key"), unsealed},
        "wrong key": {("error", "wrong-key"), unsealed},
    }
    keys = report_of(upkeep, status=4)["summary"]["keys"]
    assert keys["local:other"] == 1


# --- what is worth a look, and what the options make of it -----------------------------------


@WRITES_PROTOCOL_1
def test_plaintext_old_protocols_and_missing_seals_are_judged_by_the_mount_options(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    encrypting(azurite, container, KEK, "1.0").upload_blob("old", content(1000))
    encrypting(azurite, container, KEK, "1.0").upload_blob("old and empty", b"")
    encrypting(azurite, container, KEK, "2.0").upload_blob("sdk", content(1000))
    default = Upkeep(azurite, container, tmp_path / "default", KEK)
    both = {("notice", "protocol"), ("notice", "unsealed")}
    expected: Found = {"old": both, "old and empty": both, "sdk": {("notice", "unsealed")}}
    assert found_by(default, "--deep", status=3) == expected
    azurite.sdk(container).upload_blob("plain", b"x")
    assert found_by(default, status=4) == expected | {"plain": {("error", "plaintext")}}
    lenient = Upkeep(azurite, container, tmp_path / "lenient", KEK, options="norequire_encryption")
    assert found_by(lenient, status=3) == expected | {"plain": {("notice", "plaintext")}}
    strict = Upkeep(
        azurite, container, tmp_path / "strict", KEK, options="require_seal,min_protocol=2.0"
    )
    refused = {("error", "protocol"), ("error", "unsealed")}
    assert found_by(strict, status=4) == {
        "old": refused,
        "old and empty": refused,
        "sdk": {("error", "unsealed")},
        "plain": {("error", "plaintext")},
    }


@pytest.mark.mount
def test_what_was_left_lying_about_is_found(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    body, metadata = stored(damaged, "d/file")
    for name in (
        "d/file.blobfs-conflict-20260101T000000Z-abcdef",
        ".blobfs-hidden-0123456789abcdef01234567",
        ".blobfs-hidden-reencrypt-0123456789abcdef01234567",
    ):
        store(damaged, name, body, metadata)
    damaged.get_blob_client("never committed").stage_block("AAAA", b"x")
    upkeep = Upkeep(azurite, damaged.container_name, tmp_path, KEK)
    ours, another, cut = (
        upkeep.spool_dir / f"20260101T000000Z-{number}.blobfs-recovery" for number in range(3)
    )
    for file, url in ((ours, upkeep.source), (another, upkeep.source + "x")):
        file.write_bytes(recovery_file(container=url, name="d/file"))
    cut.write_bytes(b"cipher")
    assert found_by(upkeep, status=3) == {
        "d/file.blobfs-conflict-20260101T000000Z-abcdef": {("notice", "conflict")},
        ".blobfs-hidden-0123456789abcdef01234567": {("notice", "hidden")},
        ".blobfs-hidden-reencrypt-0123456789abcdef01234567": {("notice", "reencrypt")},
        "never committed": {("notice", "uncommitted")},
        str(ours): {("notice", "recovery")},
    }


@pytest.mark.mount
def test_hidden_blobs_are_deleted_when_asked_for_and_nothing_else(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    body, metadata = stored(damaged, "d/file")
    hidden, reencrypt = ".blobfs-hidden-0123456789abcdef", ".blobfs-hidden-reencrypt-0123456789"
    for name in (hidden, reencrypt, "d/x.blobfs-hidden-0", "d/x.blobfs-conflict-1"):
        store(damaged, name, body, metadata)
    before = set(damaged.list_blob_names())
    upkeep = Upkeep(azurite, damaged.container_name, tmp_path, KEK)
    assert found_by(upkeep, "--remove-hidden", status=3)[hidden] == {("notice", "hidden")}
    assert set(damaged.list_blob_names()) == before - {hidden}
    upkeep.write_token(azurite.sas(damaged.container_name, "rlw"))
    assert "lacks d" in upkeep.run("verify", "--remove-hidden", status=1) + upkeep.stderr


def test_what_is_in_the_archive_tier_is_not_called_damaged(
    azurite: Azurite, damaged: ContainerClient, tmp_path: Path
) -> None:
    damaged.get_blob_client("d/file").set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    upkeep = Upkeep(azurite, damaged.container_name, tmp_path, KEK)
    assert found_by(upkeep, status=0) == {}
    assert found_by(upkeep, "--deep", status=3) == {"d/file": {("notice", "unreadable")}}


# --- the report ------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_finding(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("pl\u00e4in", b"x")
    said = Upkeep(azurite, container, tmp_path, KEK).run("verify", status=4)
    assert said.splitlines()[0] == f"error   plaintext    {container}/pl\u00e4in: not encrypted"
    assert "1 errors, 0 notices" in said


def test_a_key_id_that_others_chose_does_nothing_to_the_terminal(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    kek = AesKek("evil\x1b[2J", bytes(32))
    encrypting(azurite, container, kek).upload_blob("file", content(10))
    said = Upkeep(azurite, container, tmp_path, KEK).run("verify", status=4)
    assert r"key 'evil\x1b[2J': 1" in said
    assert "\x1b" not in said


def test_the_json_has_the_members_that_its_schema_names(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("d/plain", b"x")
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    report = report_of(upkeep, "--prefix", "d/", status=4)
    assert report == {
        "version": 1,
        "source": upkeep.source,
        "findings": [
            {
                "severity": "error",
                "finding": "plaintext",
                "container": container,
                "name": "d/plain",
                "detail": "not encrypted",
            }
        ],
        "summary": {
            "blobs": 1,
            "bytes": 1,
            "errors": 1,
            "notices": 0,
            "deep": False,
            "complete": True,
            "protocols": {"plain": 1},
            "keys": {},
            "findings": {"plaintext": 1},
        },
    }
    for member in [*report, *report["findings"][0], *report["summary"]]:
        assert member in (findings.__doc__ or "")


def test_a_report_that_could_not_be_finished_is_whole_json_and_says_so(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upkeep = Upkeep(azurite, container, tmp_path, KEK, options="timeout=4s")
    upkeep.source = azurite.url("missing")
    report = report_of(upkeep, status=32)
    assert not report["summary"]["complete"]
    assert upkeep.stderr.splitlines()[-1].startswith("blobfs: List Blobs")


def test_told_to_stop_it_ends_and_says_that_not_all_was_looked_at(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, KEK, 300)
    upkeep = Upkeep(azurite, container, tmp_path, KEK, options="connections=1")
    azurite.reset_requests()
    process = upkeep.start("verify", "--deep", "--json")
    while len(azurite.requests()) < 3:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    summary = json.loads(said)["summary"]
    assert 0 < summary["blobs"] < 300
    assert not summary["complete"]
