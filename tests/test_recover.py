"""`blobfs recover`: what failed closes left is listed, stored whole, and never lost on the way."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from azure.storage.blob import ContainerClient

from blobfs.attributes import Kind
from blobfs.blobs import ContentHeaders
from blobfs.cli import main
from blobfs.envelope import Protocol, load_key_set
from blobfs.keyring import Keyring
from blobfs.recovering import locked
from blobfs.recovery import MAGIC, attempt_mark, keep_for_recovery
from blobfs.writer import Properties, WritePolicy
from tests.azurite import Azurite
from tests.mounts import ROOT
from tests.sdk import WRITES_PROTOCOL_1, AesKek, content, download, encrypting, write_key_file

pytestmark = WRITES_PROTOCOL_1

KEK = AesKek("local:recover", bytes(range(32)))
PLAIN = content(3 * 65536 + 5)
METADATA = {"project": "x", "permissions": "33188"}


class Ward:
    """A container, a spool directory, and the command."""

    def __init__(self, azurite: Azurite, container: str, directory: Path) -> None:
        self.url = azurite.url(container)
        self.raw: ContainerClient = azurite.sdk(container)
        self.sdk = encrypting(azurite, container, KEK)
        self.spool = directory / "spool"
        self.spool.mkdir()
        self.key_file = write_key_file(directory / "keys.json", KEK)
        self.sas_file = directory / "token.sas"
        self.sas_file.touch(0o600)
        self.sas_file.write_text(azurite.sas(container))
        self.options = f"sas_file={self.sas_file},key_file={self.key_file}"

    def left(
        self,
        name: str,
        plain: bytes = PLAIN,
        *,
        etag: str = "",
        attempts: tuple[str, ...] = (),
        unknown: tuple[tuple[int, int], ...] = (),
        tags: dict[str, str] | None = None,
        protocol: Protocol = Protocol.V2_1,
    ) -> Path:
        """A recovery file as a failed close leaves it."""

        async def read(offset: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
            return plain[offset : offset + size], [*unknown] if offset == 0 else []

        async def keep() -> Path:
            return await keep_for_recovery(
                self.spool,
                container_url=self.url,
                name=name,
                etag=etag,
                attempts=attempts,
                kind=Kind.FILE,
                size=len(plain),
                read=read,
                properties=Properties(METADATA, ContentHeaders("text/x"), tags, None),
                keyring=Keyring(load_key_set(self.key_file)),
                policy=WritePolicy(protocol),
                reason="close failed",
            )

        return trio.run(keep)

    def recover(self, *arguments: str) -> int:
        return main(["recover", "--spool-dir", str(self.spool), *arguments])

    def upload(self, *arguments: str) -> int:
        return self.recover("upload", *arguments, "-o", self.options)

    def names(self) -> list[str]:
        return sorted(self.raw.list_blob_names())


@pytest.fixture
def ward(azurite: Azurite, container: str, tmp_path: Path) -> Ward:
    return Ward(azurite, container, tmp_path)


Capture = pytest.CaptureFixture[str]


# Listing


def test_list_says_what_where_when_and_why(ward: Ward, capsys: Capture) -> None:
    path = ward.left("docs/a")
    assert ward.recover("list") == 0
    (line,) = capsys.readouterr().out.splitlines()
    where = re.escape(f"{ward.url}/docs/a")
    stamp = r"20\d{6}T\d{6}Z"
    pattern = rf"{path.name}: '{where}', {len(PLAIN)} bytes, {stamp}, close failed, complete"
    assert re.fullmatch(pattern, line)


def test_list_with_a_token_says_what_has_become_of_the_name(ward: Ward, capsys: Capture) -> None:
    ward.raw.upload_blob("changed", b"theirs")
    etag = ward.raw.upload_blob("same", b"old").get_blob_properties().etag.strip('"')
    for name, known in (("new", ""), ("same", etag), ("changed", "0x1"), ("gone", "0x1")):
        ward.left(name, etag=known)
    assert ward.recover("list", "-o", ward.options) == 0
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.rpartition(", ")[2] for line in said) == [
        "changed since",
        "gone since",
        "still not there",
        "unchanged since",
    ]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def foreign(path: Path) -> None:
    path.write_bytes(b"x" * 100 + (7).to_bytes(8, "big") + MAGIC)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[1:])


def with_description(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        blob = path.read_bytes()
        length = int.from_bytes(blob[-16:-8], "big")
        said = json.loads(blob[-16 - length : -16])
        change(said)
        trailer = json.dumps(said).encode()
        path.write_bytes(blob[: -16 - length] + trailer + len(trailer).to_bytes(8, "big") + MAGIC)

    return spoil


def writable_by_others(path: Path) -> None:
    path.chmod(0o620)


def of_another_user(path: Path) -> None:
    os.chown(path, 65534, 65534)


def changed_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(70_000)
        file.write(b"!")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut, "is incomplete: whatever wrote it was cut short"),
        (foreign, "is damaged"),
        (shortened, "is damaged: it has .* bytes of content"),
        (writable_by_others, "belongs to, or can be written by, another user"),
        (of_another_user, "belongs to, or can be written by, another user"),
        (with_description(lambda said: said.pop("name")), "its description makes no sense"),
        (with_description(lambda said: said.update(blob_size=-1)), "its description makes no"),
        (with_description(lambda said: said.update(metadata={"a": 1})), "its description makes"),
    ],
)
def test_what_is_no_whole_recovery_file_is_listed_as_that_and_left(
    spoil: Callable[[Path], None], why: str, ward: Ward, capsys: Capture
) -> None:
    path = ward.left("a")
    spoil(path)
    assert ward.recover("list") == 0
    assert re.search(why, capsys.readouterr().out)
    assert ward.upload("--all") == 32
    assert re.search(why, capsys.readouterr().err)
    assert path.exists()
    assert ward.names() == []


@pytest.mark.parametrize(
    "spoil",
    [changed_byte, with_description(lambda said: said["metadata"].update(blobfs_seal="1:5:x"))],
    ids=["content", "seal"],
)
def test_content_that_is_not_as_it_was_sealed_is_not_stored(
    spoil: Callable[[Path], None], ward: Ward, capsys: Capture
) -> None:
    path = ward.left("a")
    spoil(path)
    assert ward.upload("--all") == 32
    assert path.exists()
    assert ward.names() == []


# Storing


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("plain", [b"", PLAIN, content(20_000_000)], ids=["empty", "one", "blocks"])
def test_a_new_file_is_stored_whole_and_the_recovery_file_is_gone(
    protocol: Protocol, plain: bytes, ward: Ward, capsys: Capture
) -> None:
    path = ward.left("docs/a", plain, tags={"k": "v"}, protocol=protocol)
    assert ward.upload("--all") == 0
    assert capsys.readouterr().out == f"{path.name}: stored as 'docs/a'\n"
    assert not path.exists()
    assert download(ward.sdk, "docs/a") == plain
    blob = ward.raw.get_blob_client("docs/a")
    stored = blob.get_blob_properties()
    assert METADATA.items() <= stored.metadata.items()
    assert stored.content_settings.content_type == "text/x"
    assert blob.get_blob_tags() == {"k": "v"}


def test_the_version_that_it_was_to_replace_is_replaced(ward: Ward) -> None:
    etag = ward.raw.upload_blob("a", b"old").get_blob_properties().etag.strip('"')
    path = ward.left("a", etag=etag)
    assert ward.upload(path.name) == 0
    assert download(ward.sdk, "a") == PLAIN
    assert ward.names() == ["a"]


def test_a_version_that_the_same_close_had_stored_unheard_is_no_conflict(ward: Ward) -> None:
    old, new = content(300_000, 1), bytearray(content(250_000, 2))
    new[1000:200_000] = bytes(199_000)
    stored = ward.sdk.upload_blob("a", old).get_blob_properties().metadata["encryptiondata"]
    marks = attempt_mark("another"), attempt_mark(stored)
    ward.left("a", bytes(new), etag="0x1", attempts=marks, unknown=((1000, 199_000),))
    assert ward.upload("--all") == 0
    assert ward.names() == ["a"]
    assert download(ward.sdk, "a") == new[:1000] + old[1000:200_000] + new[200_000:]


@pytest.mark.parametrize("etag", ["", "0x1"], ids=["new", "changed"])
def test_another_version_is_never_overwritten_unless_asked_for(
    etag: str, ward: Ward, capsys: Capture
) -> None:
    ward.raw.upload_blob("a", b"theirs")
    path = ward.left("a", etag=etag, attempts=(attempt_mark("ours"),))
    assert ward.upload("--all") == 0
    aside = f"a.blobfs-conflict-{path.name.removesuffix('.blobfs-recovery')}"
    assert f"stored beside the version that others made, as {aside!r}" in capsys.readouterr().out
    assert ward.names() == ["a", aside]
    assert ward.raw.download_blob("a").readall() == b"theirs"
    assert download(ward.sdk, aside) == PLAIN
    ward.left("a", b"ours", etag=etag)
    assert ward.upload("--all", "--overwrite") == 0
    assert download(ward.sdk, "a") == b"ours"


def test_a_version_that_others_deleted_is_kept_beside_its_name(ward: Ward) -> None:
    ward.left("a", etag="0x1")
    assert ward.upload("--all") == 0
    (aside,) = ward.names()
    assert aside.startswith("a.blobfs-conflict-")


@pytest.mark.parametrize("there", [b"", b"theirs"], ids=["free", "conflict"])
def test_what_is_stored_already_is_not_stored_twice(
    there: bytes, ward: Ward, capsys: Capture
) -> None:
    """As after a crash between the commit and the removal."""
    if there:
        ward.raw.upload_blob("a", there)
    path = ward.left("a")
    kept = path.read_bytes()
    assert ward.upload("--all") == 0
    names = ward.names()
    path.write_bytes(kept)
    assert ward.upload("--all") == 0
    assert "was stored already" in capsys.readouterr().out
    assert ward.names() == names
    assert not path.exists()


def test_what_is_not_known_is_filled_in_from_the_version_below(ward: Ward) -> None:
    old, new = content(300_000, 1), bytearray(content(250_000, 2))
    new[1000:200_000] = bytes(199_000)
    blob = ward.sdk.upload_blob("a", old)
    etag = blob.get_blob_properties().etag.strip('"')
    ward.left("a", bytes(new), etag=etag, unknown=((1000, 199_000),))
    assert ward.upload("--all") == 0
    assert download(ward.sdk, "a") == new[:1000] + old[1000:200_000] + new[200_000:]
    assert list(ward.spool.iterdir()) == []


def test_holes_are_stored_only_when_they_are_accepted(ward: Ward, capsys: Capture) -> None:
    path = ward.left("a", etag="0x1", unknown=((0, 100),))
    assert ward.recover("list") == 0
    assert "complete but for 100 bytes of the version below" in capsys.readouterr().out
    assert ward.upload("--all") == 32
    assert "lacks 100 bytes" in capsys.readouterr().err
    assert path.exists()
    assert ward.upload("--all", "--accept-holes") == 0
    assert not path.exists()


def test_one_file_that_fails_keeps_no_other_from_being_stored(ward: Ward) -> None:
    cut(ward.left("a"))
    ward.left("b")
    assert ward.upload("--all") == 32
    assert ward.names() == ["b"]


def test_a_token_for_another_container_stores_nothing(
    ward: Ward, azurite: Azurite, capsys: Capture
) -> None:
    path = ward.left("a")
    other = azurite.new_container()
    ward.sas_file.write_text(f"{azurite.url(other)}?{azurite.sas(other)}")
    assert ward.upload("--all") == 1
    assert f"the SAS is for the container {other}" in capsys.readouterr().err
    ward.sas_file.write_text(azurite.sas(other))
    assert ward.recover("upload", "--all", "-o", f"{ward.options},timeout=3") == 32
    assert "SAS token is expired" in capsys.readouterr().err
    assert path.exists()


def test_the_tokens_of_a_directory_are_found_by_container(ward: Ward, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    ward.sas_file.rename(tokens / f"{ward.url.rpartition('/')[2]}.sas")
    ward.left("a")
    options = f"sas_dir={tokens},key_file={ward.key_file}"
    assert ward.recover("upload", "--all", "-o", options) == 0
    assert ward.names() == ["a"]


def test_a_token_in_the_options_is_not_shown_to_others(ward: Ward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ward.url = f"http://127.0.0.1:{silent.getsockname()[1]}/account/container"
        path = ward.left("a")
        token = ward.sas_file.read_text()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "blobfs", "recover", "upload", path),
                *("-o", f"sas={token},key_file={ward.key_file}"),
            ],
            cwd=ROOT,
        )
        try:
            silent.settimeout(30)
            silent.accept()[0].close()  # by now it asks the service
            shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.kill()
            process.wait()
    assert b"sas=" in shown
    assert re.findall("sig=[^&]+", token)[0].encode() not in shown


def test_two_at_once_store_one(ward: Ward, capsys: Capture) -> None:
    path = ward.left("a")
    with locked(path):
        assert ward.upload("--all") == 32
    assert "another blobfs recover works on" in capsys.readouterr().err
    assert path.exists()


def test_an_upload_that_was_killed_is_finished_by_another(ward: Ward) -> None:
    path = ward.left("a", content(24_000_000))
    arguments = ["recover", "--spool-dir", str(ward.spool), "upload", "--all", "-o", ward.options]
    for delay in (0.7, 1.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "blobfs", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert path.exists() or ward.names() == ["a"]
    if path.exists():
        assert ward.upload("--all") == 0
    assert download(ward.sdk, "a") == content(24_000_000)
    assert ward.names() == ["a"]


# Discarding


def test_discard_asks_and_without_a_terminal_wants_yes(ward: Ward, capsys: Capture) -> None:
    path, other = ward.left("a"), ward.left("b")
    assert ward.recover("discard", path.name) == 1
    assert "give --yes" in capsys.readouterr().err
    assert path.exists()
    assert ward.recover("discard", path.name, "--yes") == 0
    assert not path.exists()
    assert other.exists()


def test_an_incomplete_file_can_be_discarded_unless_it_is_being_written(
    ward: Ward, capsys: Capture
) -> None:
    path = ward.left("a")
    cut(path)
    writer = os.open(path, os.O_WRONLY)
    try:
        assert ward.recover("list") == 0
        assert "is being written" in capsys.readouterr().out
        assert ward.recover("discard", "--all", "--yes") == 32
        assert path.exists()
    finally:
        os.close(writer)
    assert ward.recover("discard", "--all", "--yes") == 0
    assert not path.exists()


def test_files_must_be_named(ward: Ward, capsys: Capture) -> None:
    ward.left("a")
    for verb in (["upload", "-o", ward.options], ["discard", "--yes"]):
        assert ward.recover(*verb) == 1
        assert "name the recovery files, or give --all" in capsys.readouterr().err


def test_no_spool_directory_is_no_recovery_file(ward: Ward, capsys: Capture) -> None:
    ward.spool.rmdir()
    assert ward.recover("list") == 0
    assert capsys.readouterr().out == f"no recovery files in {ward.spool}\n"
