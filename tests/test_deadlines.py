"""A service that is silent for ever: everybody gets an answer in time, and nobody waits for others.

The stalls are those of a network that swallows packets: the connection stays open.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from blobfs.mount import MAX_TASKS
from tests.azurite import Azurite
from tests.faults import GET, call_of
from tests.mounts import Mount, mounted
from tests.relay import Act, Asked, Exchange, Relay
from tests.sdk import WRITES_PROTOCOL_1, AesKek, content, encrypting, write_key_file

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

TIMEOUT = 4.0
GRACE = 4.0
"""Seconds beyond the deadline for a loaded machine, and for a command to start."""

KEK = AesKek("local:deadlines", os.urandom(32))
READERS = 64
FILES = READERS + 2
CONNECTIONS = 16  # the default of the option
PLAIN = content(20_000)


class Silence:
    """`over(wanted)`: no request that is wanted is answered; `held` counts them."""

    def __init__(self, relay: Relay) -> None:
        self.held = 0
        self._wanted: Callable[[Asked], bool] = lambda asked: False
        relay.choose = self._choose

    def over(self, wanted: Callable[[Asked], bool] = lambda asked: True) -> None:
        self._wanted = wanted

    def _choose(self, asked: Asked) -> Act | None:
        return self._hold if self._wanted(asked) else None

    def _hold(self, exchange: Exchange) -> None:
        self.held += 1
        exchange.hold()
        exchange.close()


@pytest.fixture(scope="module")
def relay(azurite: Azurite) -> Iterator[Relay]:
    relay = Relay(azurite)
    yield relay
    relay.close()


@pytest.fixture
def silence(relay: Relay) -> Iterator[Silence]:
    silence = Silence(relay)
    yield silence
    silence.over(lambda asked: False)


@pytest.fixture(scope="module")
def mount(
    azurite: Azurite, relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """With `there/file`, and `here/0` and on, of which each test that stalls takes others: what
    was read is in the cache."""
    container, tmp_path = azurite.new_container(), tmp_path_factory.mktemp("deadlines")
    sdk = encrypting(azurite, container, KEK)
    with ThreadPoolExecutor(4) as pool:
        names = [f"here/{number}" for number in range(FILES)]
        list(pool.map(lambda name: sdk.upload_blob(name, PLAIN), [*names, "there/file"]))
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    options = (f"timeout={TIMEOUT:g}", "metadata_ttl=0")
    with mounted(relay.service, container, tmp_path, *options, key_file=key_file) as mount:
        yield mount
        if "ERROR" in mount.log():
            mount.expect_log(r" ERROR .*Input/output error: .*(no answer|no content)")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        pytest.param("ls here", 1, id="ls"),
        pytest.param("cat here/0", 1, id="cat"),
        pytest.param("cp here/0 /dev/null", 1, id="cp from"),
        pytest.param("cp /etc/hostname here/new", 2, id="cp to"),
        pytest.param("mv here/0 here/other", 3, id="mv"),
        pytest.param("rm -f here/0", 2, id="rm"),
    ],
)
def test_a_command_fails_in_time_when_nothing_is_answered(
    command: str, calls: int, mount: Mount, silence: Silence
) -> None:
    silence.over()
    began = time.monotonic()
    done = subprocess.run(command.split(), cwd=mount.path, capture_output=True, text=True)
    assert time.monotonic() - began < calls * TIMEOUT + GRACE
    assert done.returncode != 0
    assert "Input/output error" in done.stderr


def test_a_caller_that_is_killed_is_gone_in_time(mount: Mount, silence: Silence) -> None:
    silence.over(lambda asked: call_of(asked) == GET)
    with subprocess.Popen(["cat", mount.path / "here/0"], stdout=subprocess.PIPE) as reader:
        wait_for(lambda: silence.held > 0)
        reader.send_signal(signal.SIGKILL)
        assert took(reader.wait) < TIMEOUT + GRACE
        assert reader.returncode == -signal.SIGKILL


def test_a_mount_ends_in_time_when_nothing_is_answered(
    container: str, tmp_path: Path, relay: Relay, silence: Silence
) -> None:
    """Also with a mode that is not stored yet, which is lost then, and said so."""
    with mounted(relay.service, container, tmp_path, f"timeout={TIMEOUT:g}") as mount:
        (mount.path / "file").write_bytes(PLAIN)
        (mount.path / "file").chmod(0o600)
        silence.over()
        began = time.monotonic()
        assert mount.unmount() == []
        assert time.monotonic() - began < TIMEOUT + GRACE
        mount.expect_log("WARNING .*file: mode, owner or times are not stored yet")
        silence.over(lambda asked: False)
        mount.start()  # which ends it again, with nothing left


@contextmanager
def stuck_readers(mount: Mount, silence: Silence, numbers: range) -> Iterator[None]:
    """Readers of as many open files, none of which gets its content before the block is over."""
    files = [os.open(mount.path / f"here/{n}", os.O_RDONLY | os.O_DIRECT) for n in numbers]
    silence.over(lambda asked: call_of(asked) == GET and asked.name.startswith("here/"))
    held = silence.held
    with ThreadPoolExecutor(len(files)) as pool:
        reads = [pool.submit(os.pread, file, 4096, 0) for file in files]
        wait_for(lambda: silence.held - held >= min(len(files), CONNECTIONS))
        yield
        assert not all(read.done() for read in reads)
        for read in reads:
            assert isinstance(read.exception(), OSError)
    for file in files:
        os.close(file)


def test_a_stalled_file_blocks_no_other(mount: Mount, silence: Silence) -> None:
    here = mount.path / "here"

    def use_others() -> None:
        (here / "new").write_bytes(PLAIN)
        (here / "new").rename(here / "newer")
        (here / "newer").unlink()
        assert len(list(here.iterdir())) == FILES
        assert (here / "1").stat().st_size == len(PLAIN)
        assert (mount.path / "there/file").read_bytes() == PLAIN

    with stuck_readers(mount, silence, range(1, 2)):
        assert took(use_others) < TIMEOUT


def test_64_stalled_readers_do_not_block_stat_elsewhere(mount: Mount, silence: Silence) -> None:
    assert READERS < MAX_TASKS

    def stat() -> None:
        assert (mount.path / "there/file").stat().st_size == len(PLAIN)

    with stuck_readers(mount, silence, range(2, FILES)):
        assert took(stat) < TIMEOUT / 2
