"""A service that is silent for ever: everybody gets an answer in time, and nobody waits for others.

The stalls are those of a network that swallows packets: the connection stays open.
"""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import pytest

from blobfs.mount import MAX_TASKS
from tests.azurite import Azurite
from tests.faults import COPY, GET, call_of
from tests.mounts import Mount, mounted
from tests.relay import Act, Asked, Exchange, Relay
from tests.sdk import WRITES_PROTOCOL_1, AesKek, content, encrypting, write_key_file
from tests.waiting import eventually

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
    """`over(wanted)`: no request that is wanted is answered; `held` counts them. `end()`: all are,
    and who waits asks again."""

    def __init__(self, relay: Relay) -> None:
        self.held = 0
        self._relay = relay
        self._wanted: Callable[[Asked], bool] = lambda asked: False
        relay.choose = self._choose

    def over(self, wanted: Callable[[Asked], bool] = lambda asked: True) -> None:
        self._wanted = wanted

    def end(self) -> None:
        self.over(lambda asked: False)
        self._relay.disconnect()

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
    """With `file` in some directories, and `here/0` and on, of which each test that stalls takes
    others: what was read is in the cache."""
    container, tmp_path = azurite.new_container(), tmp_path_factory.mktemp("deadlines")
    sdk = encrypting(azurite, container, KEK)
    with ThreadPoolExecutor(4) as pool:
        names = [f"here/{number}" for number in range(FILES)]
        names += [f"{place}/file" for place in ("there", "ls", "cat", "cp", "cp-to", "mv", "rm")]
        list(pool.map(lambda name: sdk.upload_blob(name, PLAIN), names))
    key_file = write_key_file(tmp_path / "keys.json", KEK)
    options = (f"timeout={TIMEOUT:g}", "metadata_ttl=0")
    with mounted(relay.service, container, tmp_path, *options, key_file=key_file) as mount:
        yield mount
        if "ERROR" in mount.log():
            mount.expect_log(r" ERROR .*Input/output error: .*(no answer|no content|closed)")


def took(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


# In a directory each, where the kernel lets them work at once; and how many calls of theirs wait.
COMMANDS = {
    "ls": ("ls", 1),
    "cat": ("cat file", 1),
    "cp": ("cp file /dev/null", 1),
    "cp-to": ("cp /etc/hostname new", 2),
    "mv": ("mv file other", 3),
    "rm": ("rm -f file", 2),
}


def test_a_command_fails_in_time_when_nothing_is_answered(mount: Mount, silence: Silence) -> None:
    def start(directory: str) -> subprocess.Popen[str]:
        script = f"cd {directory} && echo there && read go && exec {COMMANDS[directory][0]}"
        command = subprocess.Popen(
            ["sh", "-c", script],
            cwd=mount.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert command.stdout is not None
        assert command.stdout.readline() == "there\n"
        return command

    def finish(command: subprocess.Popen[str]) -> tuple[float, str]:
        began = time.monotonic()
        _, errors = command.communicate("go\n")
        return time.monotonic() - began, errors

    commands = [start(directory) for directory in COMMANDS]
    silence.over()
    with ThreadPoolExecutor(len(commands)) as pool:
        ends = list(pool.map(finish, commands))
    for (line, calls), command, (seconds, errors) in zip(
        COMMANDS.values(), commands, ends, strict=True
    ):
        assert seconds < calls * TIMEOUT + GRACE, line
        assert command.returncode != 0, line
        assert "Input/output error" in errors, line


def test_a_caller_that_is_killed_is_gone_in_time(mount: Mount, silence: Silence) -> None:
    silence.over(lambda asked: call_of(asked) == GET)
    with subprocess.Popen(["cat", mount.path / "here/0"], stdout=subprocess.PIPE) as reader:
        eventually(lambda: silence.held > 0)
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
        mount.expect_log("ERROR .*file: mode, owner or times were not stored")
        silence.over(lambda asked: False)
        mount.start()  # which ends it again, with nothing left


def test_the_rename_of_a_directory_ends_when_nothing_is_answered_and_is_taken_up_again(
    azurite: Azurite, container: str, tmp_path: Path, relay: Relay, silence: Silence
) -> None:
    names = {str(number) for number in range(20)}
    for name in names:
        azurite.sdk(container).upload_blob(f"dir/{name}", b"")
    with mounted(relay.service, container, tmp_path, "timeout=2") as mount:
        mount.expect_log("ERROR .*a rename of 'dir' to 'new' is half done; run it again")
        mount.allow_log(r" (ERROR|WARNING) .*('dir|'new|no answer)")
        copies, held = itertools.count(), silence.held

        def wanted(asked: Asked) -> bool:
            """The third copy, and from then on everything."""
            return silence.held > held or (call_of(asked) == COPY and next(copies) == 2)

        silence.over(wanted)

        def rename() -> None:
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / "dir").rename(mount.path / "new")

        assert took(rename) < 4 * 2 + GRACE
        assert silence.held > held
        silence.end()
        (mount.path / "dir").rename(mount.path / "new")
        assert set(os.listdir(mount.path / "new")) == names
        assert os.listdir(mount.path) == ["new"]


@contextmanager
def stuck_readers(mount: Mount, silence: Silence, numbers: range) -> Iterator[None]:
    """Readers of as many open files, none of which gets its content before the block is over, and
    the first of which fails then."""
    # For writing, too: what is opened for reading alone is fetched at once.
    files = [os.open(mount.path / f"here/{n}", os.O_RDWR | os.O_DIRECT) for n in numbers]
    silence.over(lambda asked: call_of(asked) == GET and asked.name.startswith("here/"))
    held = silence.held
    with ThreadPoolExecutor(len(files)) as pool:
        reads = [pool.submit(os.pread, file, 4096, 0) for file in files]
        eventually(lambda: silence.held - held >= min(len(files), CONNECTIONS))
        yield
        assert not all(read.done() for read in reads)
        assert isinstance(next(as_completed(reads)).exception(), OSError)
        silence.end()  # the kernel sends 12 such reads at once: the others would take turns
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
