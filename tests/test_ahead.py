"""What will be read is there already: what was opened, and small files in the order of names."""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from blobfs.fs.ahead import GAP, MOST, SMALL, STREAK
from tests.azurite import Azurite
from tests.mounts import Mount, mounted
from tests.sdk import AesKek, content, encrypting, write_key_file

pytestmark = pytest.mark.mount

KEK = AesKek("local:ahead", bytes(32))
COUNT = 24


@pytest.fixture(scope="module")
def container(azurite: Azurite) -> str:
    name = azurite.new_container()
    for number in range(COUNT):
        encrypting(azurite, name, KEK).upload_blob(f"f{number:02}", content(100 + number))
    encrypting(azurite, name, KEK).upload_blob("f05-large", content(SMALL + 1))
    return name


@pytest.fixture
def mount(azurite: Azurite, container: str, tmp_path: Path) -> Iterator[Mount]:
    """Listed, so that the kernel knows all files, and not read."""
    keys = write_key_file(tmp_path / "keys.json", KEK)
    with mounted(azurite, container, tmp_path, "metadata_ttl=1h", key_file=keys) as mount:
        for entry in os.scandir(mount.path):
            entry.stat()
        azurite.reset_requests()
        yield mount


def fetched(azurite: Azurite) -> list[str]:
    """The files that were read from the service, in the order of their names."""
    return sorted(
        request.path.rpartition("/")[2] for request in azurite.requests() if request.method == "GET"
    )


def settled(azurite: Azurite, expected: Sequence[str] = ()) -> list[str]:
    """The same, when nothing has been added to it for a while and it has all that is expected."""
    before: list[str] = []
    for _ in range(100):
        now = fetched(azurite)
        if now and now == before and set(expected) <= set(now):
            break
        before = now
        time.sleep(0.2)
    return now


def assert_fetched(azurite: Azurite, expected: Sequence[str]) -> None:
    assert settled(azurite, expected) == expected


def read(mount: Mount, *numbers: int) -> None:
    for number in numbers:
        assert (mount.path / f"f{number:02}").read_bytes() == content(100 + number)


def names(*numbers: int) -> list[str]:
    return [f"f{number:02}" for number in numbers]


def test_what_is_opened_for_reading_alone_is_fetched_before_it_is_read(
    azurite: Azurite, mount: Mount
) -> None:
    for number, flags in ((3, os.O_RDONLY), (7, os.O_WRONLY), (11, os.O_RDWR)):
        os.close(os.open(mount.path / f"f{number:02}", flags))
    assert_fetched(azurite, ["f03"])


def test_after_some_files_in_order_the_next_are_fetched(azurite: Azurite, mount: Mount) -> None:
    read(mount, *range(STREAK))
    assert_fetched(azurite, names(*range(STREAK + 2)))


def test_each_file_of_a_directory_is_fetched_once(azurite: Azurite, mount: Mount) -> None:
    read(mount, *range(COUNT))
    assert_fetched(azurite, names(*range(COUNT)))


def test_no_more_is_fetched_ahead_than_a_few(azurite: Azurite, mount: Mount) -> None:
    read(mount, *range(8))
    assert len(settled(azurite)) <= 8 + MOST


def test_files_read_in_no_order_are_fetched_alone(azurite: Azurite, mount: Mount) -> None:
    chosen = [20, 3, 11, 2, 17, 9]
    read(mount, *chosen)
    assert_fetched(azurite, names(*sorted(chosen)))


def test_files_far_apart_are_fetched_alone(azurite: Azurite, mount: Mount) -> None:
    chosen = list(range(0, COUNT, GAP + 1))
    read(mount, *chosen)
    assert_fetched(azurite, names(*chosen))


def test_a_large_file_is_not_fetched_ahead(azurite: Azurite, mount: Mount) -> None:
    read(mount, 1, 2, 3, 4, 5, 6, 7)
    assert "f05-large" not in settled(azurite)


def test_what_the_kernel_has_is_not_fetched_again(azurite: Azurite, mount: Mount) -> None:
    read(mount, *range(COUNT))
    settled(azurite)
    azurite.reset_requests()
    read(mount, *range(COUNT))
    assert fetched(azurite) == []


def test_an_error_is_for_who_reads_the_file(azurite: Azurite, container: str, mount: Mount) -> None:
    blob = azurite.sdk(container).get_blob_client("f03")
    stored = blob.download_blob().readall()
    metadata = blob.get_blob_properties().metadata
    try:
        blob.upload_blob(bytes(len(stored)), metadata=metadata, overwrite=True)
        azurite.reset_requests()
        read(mount, *range(STREAK))
        settled(azurite)
        mount.expect_log("read 'f03': .* fails authentication")
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "f03").read_bytes()
        read(mount, 4, 5)
    finally:
        blob.upload_blob(stored, metadata=metadata, overwrite=True)


def test_files_that_are_made_between_change_nothing(azurite: Azurite, mount: Mount) -> None:
    for number, new in zip(range(STREAK + 3), itertools.count(), strict=False):
        (mount.path / f"new{new}").write_bytes(b"x")
        read(mount, number)
    for new in range(STREAK + 3):
        (mount.path / f"new{new}").unlink()
    expected = names(*range(STREAK + 3))
    assert set(expected) <= set(settled(azurite, expected))
