"""Directories of thousands: listed whole with bounded memory, looked up one by one, renamed."""

import errno
import http.client
import os
import queue
import re
import signal
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.mounts import PLAINTEXT_MARKER, Mount, mounted
from tests.relay import Asked, Refusal, Relay

pytestmark = pytest.mark.mount

MANY = 20_000
SOME = 200
FEW = 60


def clone(azurite: Azurite, container: str, original: str, names: Iterable[str]) -> None:
    """Store what `original` is under all of the names: one encrypted file in many places."""
    blob = azurite.sdk(container).get_blob_client(original)
    body = blob.download_blob().readall()
    token = azurite.sas(container)
    fields = {
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": "2021-12-02",
        "Content-Type": "application/octet-stream",
        **{f"x-ms-meta-{k}": v for k, v in blob.get_blob_properties().metadata.items()},
    }
    work: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    refused: list[int] = []

    def put() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", azurite.port)
        for name in iter(work.get, None):
            path = f"/{azurite.account}/{container}/{urllib.parse.quote(name)}"
            connection.request("PUT", f"{path}?{token}", body, fields)
            response = connection.getresponse()
            response.read()
            if response.status != 201:
                refused.append(response.status)
        connection.close()

    threads = [threading.Thread(target=put) for _ in range(4)]
    for name in names:
        work.put(name)
    for thread in threads:
        work.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused


def resident(mount: Mount) -> int:
    """Bytes of memory of the daemon."""
    for line in Path(f"/proc/{mount.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def populate(azurite: Azurite, mount: Mount, container: str, directory: str, count: int) -> None:
    (mount.path / directory).mkdir()
    (mount.path / "original").write_bytes(PLAINTEXT_MARKER)
    clone(azurite, container, "original", (f"{directory}/{n:06}" for n in range(count)))


# --- listing -------------------------------------------------------------------------------------


class Crowd:
    """Answers listings of `many/` with 20,000 entries like the service's own of one real blob,
    and sends what is asked of them to that blob: to store so many takes minutes."""

    PAGE = 5000

    def __init__(self, azurite: Azurite, container: str, original: str, relay: Relay) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", azurite.port)
        query = f"restype=container&comp=list&include=metadata&prefix={original}"
        connection.request(
            "GET", f"/{azurite.account}/{container}?{query}&{azurite.sas(container)}"
        )
        listing = connection.getresponse().read().decode()
        connection.close()
        found = re.search("<Blob>.*</Blob>", listing, re.DOTALL)
        assert found
        self._entry = found[0]
        self._name = f"<Name>{original}</Name>"
        assert self._name in self._entry
        self.listings = 0
        relay.choose = self._page
        relay.rewrite = lambda path: re.sub(r"/many/\d{6}\?", f"/{original}?", path)

    def _page(self, asked: Asked) -> bytes | None:
        if asked.query.get("comp") != ["list"] or asked.query.get("prefix") != ["many/"]:
            return None
        (size,) = map(int, asked.query["maxresults"])
        self.listings += size > 1  # one entry is asked for to see whether there is any
        (start,) = map(int, asked.query.get("marker", ["0"]))
        stop = min(start + min(size, self.PAGE), MANY)
        blobs = "".join(
            self._entry.replace(self._name, f"<Name>many/{number:06}</Name>")
            for number in range(start, stop)
        )
        marker = str(stop) if stop < MANY else ""
        return (
            "<EnumerationResults><Prefix>many/</Prefix>"
            f"<Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        ).encode()


def test_a_directory_of_20000_files_is_listed_whole_and_looked_up_without_listing(
    azurite: Azurite, relay: Relay, container: str, tmp_path: Path
) -> None:
    with mounted(relay.service, container, tmp_path, "metadata_ttl=0") as mount:
        (mount.path / "original").write_bytes(PLAINTEXT_MARKER)
        crowd = Crowd(azurite, container, "original", relay)
        before = resident(mount)
        started = time.monotonic()
        names = os.listdir(mount.path / "many")
        print(f"listed in {time.monotonic() - started:.1f} s")
        assert len(names) == MANY
        assert set(names) == {f"{n:06}" for n in range(MANY)}
        assert crowd.listings == MANY / crowd.PAGE
        after = resident(mount)
        print(f"{(after - before) // MANY} bytes an entry")
        assert (after - before) // MANY < 6000

        for _ in range(4):
            assert len(os.listdir(mount.path / "many")) == MANY
        print(f"{(resident(mount) - before) // MANY} bytes an entry after five listings")
        growth = resident(mount) - after
        assert growth < 2000 * MANY, "each listing leaves something behind"

        crowd.listings = 0
        for number in (0, 7, MANY // 2, MANY - 1):
            assert (mount.path / f"many/{number:06}").read_bytes() == PLAINTEXT_MARKER
        assert not (mount.path / "many/missing").exists()
        assert crowd.listings == 0


# --- renaming ------------------------------------------------------------------------------------


@pytest.fixture
def relay(azurite: Azurite) -> Iterator[Relay]:
    relay = Relay(azurite)
    yield relay
    relay.close()


def blobs_below(azurite: Azurite, container: str, directory: str) -> list[str]:
    found = azurite.sdk(container).list_blob_names(name_starts_with=f"{directory}/")
    return sorted(name.removeprefix(f"{directory}/") for name in found)


def expected_names(count: int) -> list[str]:
    return [f"{n:06}" for n in range(count)]


def test_a_directory_of_200_files_is_renamed(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with mounted(azurite, container, tmp_path) as mount:
        populate(azurite, mount, container, "old", SOME)
        started = time.monotonic()
        os.rename(mount.path / "old", mount.path / "new")
        print(f"renamed in {time.monotonic() - started:.1f} s")
        assert blobs_below(azurite, container, "old") == []
        assert blobs_below(azurite, container, "new") == expected_names(SOME)
        assert not (mount.path / "old").exists()
        assert sorted(os.listdir(mount.path / "new")) == expected_names(SOME)
        assert (mount.path / f"new/{SOME - 1:06}").read_bytes() == PLAINTEXT_MARKER


DENIED = Refusal(403, "AuthorizationPermissionMismatch")
LEASED = Refusal(412, "LeaseIdMissing")
BROKEN = Refusal(500, "InternalError")


@pytest.mark.parametrize(
    ("fails", "refusal", "code"),
    [
        ("copy", DENIED, errno.EACCES),
        ("copy", LEASED, errno.EBUSY),
        ("delete", DENIED, errno.EACCES),
        ("delete", LEASED, errno.EBUSY),
    ],
)
def test_a_rename_that_fails_half_way_says_why_and_leaves_each_file_under_one_name(
    fails: str,
    refusal: Refusal,
    code: int,
    azurite: Azurite,
    relay: Relay,
    container: str,
    tmp_path: Path,
) -> None:
    def choose(asked: Asked) -> Refusal | None:
        if fails == "copy":
            return refusal if asked.is_copy and asked.name == "new/000030" else None
        return refusal if asked.method == "DELETE" and asked.name == "old/000030" else None

    with mounted(relay.service, container, tmp_path, "metadata_ttl=0", "timeout=20s") as mount:
        mount.expect_log("ERROR .*rename '/old': ")
        populate(azurite, mount, container, "old", FEW)
        relay.choose = choose
        with pytest.raises(OSError, match="Errno") as failure:
            os.rename(mount.path / "old", mount.path / "new")
        assert failure.value.errno == code
        names = [*blobs_below(azurite, container, "old"), *blobs_below(azurite, container, "new")]
        assert sorted(names) == expected_names(FEW), "each under exactly one name"
        for directory in ("old", "new"):
            for name in blobs_below(azurite, container, directory)[::10]:
                assert (mount.path / directory / name).read_bytes() == PLAINTEXT_MARKER
        relay.choose = lambda asked: None
        os.rename(mount.path / "old", mount.path / "new")
        assert sorted(os.listdir(mount.path / "new")) == expected_names(FEW)
        assert not (mount.path / "old").exists()
        assert blobs_below(azurite, container, "old") == []


@pytest.mark.parametrize("dies_at", ["copy", "delete"])
def test_a_rename_that_a_crash_cut_short_is_finished_by_another(
    dies_at: str, azurite: Azurite, relay: Relay, container: str, tmp_path: Path
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    counted = iter(range(10 * FEW))

    def hold(asked: Asked) -> Refusal | None:
        matches = asked.is_copy if dies_at == "copy" else asked.method == "DELETE"
        if matches and next(counted) >= FEW // 2:
            reached.set()
            go_on.wait()
            return BROKEN
        return None

    with mounted(relay.service, container, tmp_path) as mount:
        populate(azurite, mount, container, "old", FEW)
        relay.choose = hold
        outcome: list[OSError] = []

        def rename() -> None:
            try:
                os.rename(mount.path / "old", mount.path / "new")
            except OSError as exc:
                outcome.append(exc)

        thread = threading.Thread(target=rename)
        thread.start()
        try:
            assert reached.wait(30)
            os.kill(mount.pid, signal.SIGKILL)
        finally:
            thread.join(30)
            go_on.set()
        assert [exc.errno for exc in outcome] in ([errno.ECONNABORTED], [errno.ENOTCONN])
        mount.remove()
        relay.choose = lambda asked: None
        everywhere = {*blobs_below(azurite, container, "old")}
        everywhere |= {*blobs_below(azurite, container, "new")}
        assert sorted(everywhere) == expected_names(FEW), "nothing is lost"

        mount.start()
        os.rename(mount.path / "old", mount.path / "new")
        assert sorted(os.listdir(mount.path / "new")) == expected_names(FEW)
        assert sorted(os.listdir(mount.path)) == ["new", "original"]
        for name in expected_names(FEW)[:: FEW // 10]:
            assert (mount.path / "new" / name).read_bytes() == PLAINTEXT_MARKER
        assert blobs_below(azurite, container, "old") == []
