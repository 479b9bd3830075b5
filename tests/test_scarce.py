"""What runs short on this machine costs the one call that needs it, and nothing else."""

import errno
import hashlib
import os
import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.cgroups import memory_limit
from tests.disks import disk, fill
from tests.mounts import PLAINTEXT_MARKER, Mount, mounted
from tests.networks import Network, network
from tests.torture.crash import Crashes
from tests.torture.scarce import CutOff, FullDisk, LittleMemory, SpoolRemoved, rounds
from tests.waiting import eventually

pytestmark = pytest.mark.mount

MIB = 1024 * 1024
MEMORY = 250 * MIB


def content(seed: int, size: int) -> bytes:
    piece = PLAINTEXT_MARKER + random.Random(seed).randbytes(32)
    return (piece * (size // len(piece) + 1))[:size]


@contextmanager
def no_space() -> Iterator[None]:
    with pytest.raises(OSError, match="No space left") as failure:
        yield
    assert failure.value.errno == errno.ENOSPC


# --- the spool's disk is full ----------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "small", 6 * MIB) as directory:
        yield directory


def test_a_full_disk_is_enospc_for_the_write_and_all_else_goes_on(
    azurite: Azurite, container: str, tmp_path: Path, spool: Path
) -> None:
    with mounted(azurite, container, tmp_path, "buffer_size=1M", spool_dir=spool) as m:
        (m.path / "before").write_bytes(content(1, 300_000))
        held = os.open(m.path / "held", os.O_RDWR | os.O_CREAT)
        os.pwrite(held, content(2, 700_000), 0)
        greedy = os.open(m.path / "greedy", os.O_RDWR | os.O_CREAT)
        written = 0
        with no_space():
            for number in range(40, 0, -1):  # from the end: nothing can be staged
                os.pwrite(greedy, content(number, MIB // 2), number * MIB // 2)
                written = number
        assert 20 < written < 40
        # what is there already is read, and what was written is stored
        assert (m.path / "before").read_bytes() == content(1, 300_000)
        os.close(held)
        assert (m.path / "held").read_bytes() == content(2, 700_000)
        # there is room again, without a remount
        os.ftruncate(greedy, 0)
        (m.path / "small").write_bytes(content(3, 1000))
        os.pwrite(greedy, content(4, 4 * MIB), 0)
        os.close(greedy)
        m.remount()
        for name, data in {
            "before": content(1, 300_000),
            "held": content(2, 700_000),
            "greedy": content(4, 4 * MIB),
            "small": content(3, 1000),
        }.items():
            assert (m.path / name).read_bytes() == data, name


def test_what_was_written_before_the_disk_was_full_is_stored_by_the_close(
    azurite: Azurite, container: str, tmp_path: Path, spool: Path
) -> None:
    with mounted(azurite, container, tmp_path, "buffer_size=1M", spool_dir=spool) as m:
        file = os.open(m.path / "file", os.O_RDWR | os.O_CREAT)
        pieces = {}
        with no_space():
            for number in range(40, 0, -1):
                pieces[number] = content(number, MIB // 2)
                assert os.pwrite(file, pieces[number], number * MIB // 2) == MIB // 2
        del pieces[number]  # of this one, any part may be there
        os.close(file)
        m.remount()
        with (m.path / "file").open("rb") as stored:
            for number, piece in pieces.items():
                assert os.pread(stored.fileno(), MIB // 2, number * MIB // 2) == piece, number


def test_front_to_back_a_file_larger_than_the_disk_fails_or_is_whole(
    azurite: Azurite, container: str, tmp_path: Path, spool: Path
) -> None:
    with mounted(azurite, container, tmp_path, "buffer_size=1M", spool_dir=spool) as m:
        (m.path / "file").write_bytes(b"old")
        with no_space():
            (m.path / "file").write_bytes(content(1, 40 * MIB))
        # as with a local disk: what was written before that is in the file
        stored = (m.path / "file").read_bytes()
        assert stored == content(1, 40 * MIB)[: len(stored)]
        (m.path / "file").write_bytes(content(2, 2 * MIB))
        assert (m.path / "file").read_bytes() == content(2, 2 * MIB)


@contextmanager
def file_that_can_go_nowhere(
    azurite: Azurite, container: str, tmp_path: Path
) -> Iterator[tuple[Mount, Network]]:
    """A mount whose network is cut and whose disk is full, where the close of `file` has failed."""
    with (
        network(azurite.port) as net,
        disk(tmp_path / "full", MIB) as spool,
        mounted(
            azurite, container, tmp_path, "timeout=2s", spool_dir=spool, prefix=net.prefix
        ) as m,
    ):
        m.expect_log("NOT STORED, and no recovery file could be written: .*No space")
        m.expect_log("flush 'file': Input/output error")
        (m.path / "other").write_bytes(b"other")
        file = os.open(m.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(file, content(1, 500_000))
        fill(spool / "filler")
        net.cut()
        with pytest.raises(OSError, match="Input/output error"):
            os.close(file)
        eventually(lambda: "NOT STORED" in m.log())
        yield m, net


def test_a_close_without_network_and_disk_is_stored_when_the_network_is_back(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with file_that_can_go_nowhere(azurite, container, tmp_path) as (m, net):
        net.restore()
        eventually(lambda: azurite.sdk(container).get_blob_client("file").exists())
        assert (m.path / "file").read_bytes() == content(1, 500_000)
        assert (m.path / "other").read_bytes() == b"other"


def test_a_close_without_network_and_disk_is_kept_when_there_is_room(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with file_that_can_go_nowhere(azurite, container, tmp_path) as (m, net):
        m.expect_log("flush 'file': Input/output error|ERROR .*file: ")
        m.expect_log("not stored; its content is kept, encrypted, in ")
        (tmp_path / "full/filler").unlink()
        eventually(lambda: bool(list((tmp_path / "full").glob("*.blobfs-recovery"))))
        net.restore()


# --- the spool directory is removed ----------------------------------------------------------


def test_a_spool_directory_that_is_removed_is_made_again(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with (
        network(azurite.port) as net,
        mounted(
            azurite, container, tmp_path, "buffer_size=1M", "timeout=2s", prefix=net.prefix
        ) as m,
    ):
        held = os.open(m.path / "held", os.O_RDWR | os.O_CREAT)
        os.pwrite(held, content(1, 3 * MIB), MIB)  # some of it is in the spool
        shutil.rmtree(m.spool_dir)
        os.pwrite(held, content(2, 3 * MIB), 4 * MIB)
        (m.path / "big").write_bytes(content(3, 12 * MIB))
        os.close(held)
        assert (m.path / "held").read_bytes() == bytes(MIB) + content(1, 3 * MIB) + content(
            2, 3 * MIB
        )
        assert (m.path / "big").read_bytes() == content(3, 12 * MIB)
        shutil.rmtree(m.spool_dir, ignore_errors=True)
        m.expect_log("flush 'lost': Input/output error")
        m.expect_log("lost: not stored; its content is kept, encrypted, in")
        lost = os.open(m.path / "lost", os.O_WRONLY | os.O_CREAT)
        os.write(lost, content(4, 1000))
        net.cut()
        with pytest.raises(OSError, match="Input/output error"):
            os.close(lost)
        eventually(lambda: bool(list(m.spool_dir.glob("*.blobfs-recovery"))))
        net.restore()


# --- 250 MiB of memory -----------------------------------------------------------------------


def high_water(pid: int) -> int:
    """The most bytes that the process has had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_250_mib_are_enough_for_many_writers_and_readers(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    size, files = 20 * MIB, 12

    def write(number: int) -> None:
        data = content(number, size)
        with (m.path / f"f{number}").open("wb", buffering=0) as file:
            for offset in range(0, size, MIB):
                assert file.write(data[offset : offset + MIB]) == MIB

    def read(number: int) -> str:
        return hashlib.sha256((m.path / f"f{number}").read_bytes()).hexdigest()

    with (
        memory_limit(MEMORY) as prefix,
        mounted(azurite, container, tmp_path, prefix=prefix) as m,
        ThreadPoolExecutor(files) as pool,
    ):
        list(pool.map(write, range(files)))
        m.remount()
        found = list(pool.map(read, range(files)))
        assert found == [hashlib.sha256(content(n, size)).hexdigest() for n in range(files)]
        # where no cgroup can be made, this stands for it, without the files that are mapped
        assert prefix or high_water(m.pid) < MEMORY + 50 * MIB


# --- all of them while programs do this and that ----------------------------------------------


@pytest.mark.parametrize(
    ("kind", "happened"),
    [
        pytest.param(CutOff, "contents owed, all found", id="the network goes for good"),
        pytest.param(SpoolRemoved, "spools removed", id="the spool is removed"),
        pytest.param(FullDisk, "operations without space", id="the disk is full"),
        pytest.param(LittleMemory, "files checked", id="memory is short"),
    ],
)
def test_random_work_survives_what_runs_short(
    azurite: Azurite, tmp_path: Path, kind: type[Crashes], happened: str
) -> None:
    """`scripts/torture scarce` does the same for longer, from other seeds."""
    assert rounds(kind, azurite, tmp_path, seed=1, number=1)[happened]
