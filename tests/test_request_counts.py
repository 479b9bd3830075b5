"""What ordinary use costs, counted at the service: each request is time and money."""

import http.client
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.azurite import Azurite, Request
from tests.mounts import Mount, mounted
from tests.sdk import AesKek, content, encrypting, write_key_file

pytestmark = pytest.mark.mount

KEK = AesKek("local:counts", secrets.token_bytes(32))
KIB = 1024


STORED = ["overwritten", "synchronised", "read", "read by all", "moved", "changed", "removed"]


@pytest.fixture(scope="module")
def mount(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """With `STORED` in it (8 KiB each, written by the SDK), listed and not read."""
    container = azurite.new_container()
    for name in STORED:
        encrypting(azurite, container, KEK).upload_blob(name, content(8 * KIB))
    directory = tmp_path_factory.mktemp("counts")
    key_file = write_key_file(directory / "keys.json", KEK)
    with mounted(azurite, container, directory, "metadata_ttl=1h", key_file=key_file) as mount:
        assert sorted(os.listdir(mount.path)) == sorted(STORED)
        yield mount


@pytest.fixture
def local(tmp_path: Path) -> Path:
    file = tmp_path / "local"
    file.write_bytes(content(8 * KIB - 1))  # not the size of what is stored: rsync looks at that
    return file


@pytest.fixture
def cost(azurite: Azurite, mount: Mount) -> Callable[..., list[str]]:
    """Run a command; the requests made for it, those included that may wait for a second."""

    def of(*command: str | Path) -> list[str]:
        azurite.reset_requests()
        subprocess.run(command, check=True, capture_output=True)
        for file in mount.path.iterdir():
            opened = os.open(file, os.O_WRONLY)  # what is opened for reading is fetched
            os.fsync(opened)
            os.close(opened)
        return described(azurite.requests())

    return of


def described(requests: list[Request]) -> list[str]:
    return [
        "copy" if is_copy(request) else request.query.get("comp", request.method)
        for request, following in zip(requests, [*requests[1:], None], strict=True)
        # Azurite looks at a copy's source by a request to itself; Azure makes none.
        if not (request.method == "HEAD" and following is not None and is_copy(following))
    ]


def is_copy(request: Request) -> bool:
    return request.method == "PUT" and request.status == 202


def test_a_new_file_is_one_request(
    cost: Callable[..., list[str]], mount: Mount, local: Path
) -> None:
    assert cost("cp", local, mount.path / "new") == ["PUT"]


def test_a_long_write_is_sent_block_by_block_while_it_goes_on(
    cost: Callable[..., list[str]], mount: Mount
) -> None:
    """Also after a shell closed a duplicate, which stored the file while it was empty."""
    script = f"dd if=/dev/zero bs=1M count=40 status=none > {mount.path}/long"
    assert cost("sh", "-c", script) == ["PUT", *["block"] * 5, "blocklist"]


def test_an_overwrite_is_one_request(
    cost: Callable[..., list[str]], mount: Mount, local: Path
) -> None:
    assert cost("cp", local, mount.path / "overwritten") == ["PUT"]


def test_cp_a_is_at_most_two_requests(
    cost: Callable[..., list[str]], mount: Mount, local: Path
) -> None:
    assert cost("cp", "-a", local, mount.path / "new by cp -a") in (["PUT"], ["PUT", "metadata"])


def test_rsync_a_is_put_copy_and_delete(
    cost: Callable[..., list[str]], mount: Mount, local: Path
) -> None:
    assert cost("rsync", "-a", local, mount.path / "new by rsync") == ["PUT", "copy", "DELETE"]


def test_rsync_a_over_a_file_is_put_copy_and_delete(
    cost: Callable[..., list[str]], mount: Mount, local: Path
) -> None:
    assert cost("rsync", "-a", local, mount.path / "synchronised") == ["PUT", "copy", "DELETE"]


def test_reading_a_listed_file_is_one_request(cost: Callable[..., list[str]], mount: Mount) -> None:
    assert cost("cat", mount.path / "read") == ["GET"]


def test_many_who_read_a_listed_file_at_once_share_one_request(
    cost: Callable[..., list[str]], mount: Mount
) -> None:
    script = 'for n in 1 2 3 4 5 6 7 8; do cat "$1" >/dev/null & done; wait'
    assert cost("sh", "-c", script, "sh", mount.path / "read by all") == ["GET"]


def test_moving_a_file_is_copy_and_delete(cost: Callable[..., list[str]], mount: Mount) -> None:
    assert cost("mv", mount.path / "moved", mount.path / "elsewhere") == ["copy", "DELETE"]


def test_chmod_is_one_request(cost: Callable[..., list[str]], mount: Mount) -> None:
    assert cost("chmod", "600", mount.path / "changed") == ["metadata"]


def test_removing_a_file_is_one_request(cost: Callable[..., list[str]], mount: Mount) -> None:
    assert cost("rm", mount.path / "removed") == ["DELETE"]


def test_listing_a_thousand_files_with_sizes_is_one_request(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    stored = encrypting(azurite, container, KEK).upload_blob("0", content(100))
    data = stored.get_blob_properties().metadata["encryptiondata"]
    sas = azurite.sas(container)
    body = azurite.sdk(container).download_blob("0").readall()
    # One connection and no SDK: a thousand of its uploads take longer than all other tests here.
    service = http.client.HTTPConnection("127.0.0.1", azurite.port)
    for number in range(1, 1000):
        service.request(
            "PUT",
            f"/{azurite.account}/{container}/{number}?{sas}",
            body,
            {"x-ms-blob-type": "BlockBlob", "x-ms-meta-encryptiondata": data},
        )
        answer = service.getresponse()
        answer.read()
        assert answer.status == 201
    service.close()
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        azurite.reset_requests()
        listing = subprocess.check_output(["ls", "-l", mount.path], text=True)
        requests = azurite.requests()
        assert [line.split()[4] for line in listing.splitlines()[1:]] == ["100"] * 1000
        assert described(requests) == ["list"]
