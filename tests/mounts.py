"""Real mounts for the tests: started, watched, ended, and searched for what must not be there.

    with mounted(azurite, container, tmp_path, "metadata_ttl=0") as m:
        (m.path / "file").write_bytes(PLAINTEXT_MARKER)

The end of the block unmounts and then fails the test unless the daemon left in time and with
status 0, leaked no handle, logged no WARNING or ERROR but those that `expect_log` announced, and
left neither a plaintext marker nor a SAS signature in the service's data, the spool or the log.
Whatever happens, no mount and no process stays behind.
"""

import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.azurite import Azurite, signature
from tests.leaks import find_leaks
from tests.marker import PLAINTEXT_MARKER as PLAINTEXT_MARKER

ROOT = Path(__file__).parents[1]

START_LIMIT_S = 30
END_LIMIT_S = 30

_FSTYPE = "fuse.blobfs"
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|Exception ignored|leaked handles")


class MountFailed(Exception):
    """`blobfs mount` ended, or did not answer, before there was a mount."""

    def __init__(self, status: int | None, stderr: str) -> None:
        super().__init__(f"exit status {status}: {stderr}")
        self.status = status
        self.stderr = stderr


def let_users_mount() -> None:
    """What udev does where it runs."""
    os.chmod("/dev/fuse", 0o666)


def fstypes_at(path: Path) -> list[str]:
    """The file system types mounted on `path`, lowest first."""
    types = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        # the kernel writes blank, tab, newline and backslash as three octal digits
        mount_point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        if mount_point == str(path):
            types.append(after.split()[0])
    return types


def _argv_of(pid: int) -> list[str]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return []
    return command.rstrip("\0").split("\0")


def _ended_within(pid: int, limit_s: float) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], limit_s)[0])
    finally:
        os.close(process)


@contextmanager
def _notified() -> Iterator[tuple[str, socket.socket]]:
    """A socket that any user may send to, as systemd's (sd_notify(3)), and its address."""
    with (
        tempfile.TemporaryDirectory(prefix="notify-") as folder,  # a short path, as it has to be
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifications,
    ):
        os.chmod(folder, 0o711)
        address = f"{folder}/socket"
        notifications.bind(address)
        os.chmod(address, 0o666)
        yield address, notifications


def _says_ready(notifications: socket.socket) -> bool:
    while True:
        try:
            if b"READY=1" in notifications.recv(65536).split(b"\n"):
                return True
        except BlockingIOError:
            return False


class Mount:
    """One `blobfs mount`: `start()` it, use `path`, `end()` it. See `mounted` for the usual way.

    All of its files lie in `state_dir`, and belong to `user` (a uid) when one is given. `prefix`
    is words before the command, of programs that become it (`exec`); `spool_dir` is there already.
    """

    def __init__(
        self,
        source: str,
        state_dir: Path,
        *options: str,
        sas: str,
        key_file: Path | None = None,
        user: int | None = None,
        foreground: bool = True,
        prefix: Sequence[str] = (),
        spool_dir: Path | None = None,
    ) -> None:
        self.source = source
        self.prefix = prefix
        self.options = options
        self.user = user
        self.foreground = foreground
        self.state_dir = state_dir
        self.path = state_dir / "mnt"
        self.spool_dir = spool_dir or state_dir / "spool"
        self.log_path = state_dir / "blobfs.log"
        self.stderr_path = state_dir / "stderr"
        self.sas_file = state_dir / "token.sas"
        self.key_file = key_file or state_dir / "keys.json"
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._expected: list[re.Pattern[str]] = []
        self._possible: list[re.Pattern[str]] = []
        self._signature = signature(sas)
        for directory in (self.path, self.spool_dir):
            directory.mkdir(exist_ok=directory == spool_dir)
            self._own(directory)
        self._write_secret(self.sas_file, sas)
        if key_file is None:
            self._write_secret(self.key_file, _new_key_set())

    def _own(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, self.user, self.user)

    def _write_secret(self, path: Path, content: str) -> None:
        path.touch(0o600)
        path.write_text(content)
        self._own(path)

    def argv(self) -> list[str]:
        options = [
            f"sas_file={self.sas_file}",
            f"key_file={self.key_file}",
            f"spool_dir={self.spool_dir}",
            f"log_file={self.log_path}",
            *(["foreground"] if self.foreground else []),
            *self.options,
        ]
        python = [sys.executable, "-m", "blobfs", "mount"]
        return [*python, self.source, str(self.path), "-o", ",".join(options)]

    @property
    def environment(self) -> dict[str, str]:
        """Of the daemon, and of whoever asks it for its status."""
        state_dir = str(self.state_dir)
        return {**os.environ, "HOME": state_dir, "XDG_RUNTIME_DIR": state_dir}

    def _daemons(self) -> list[int]:
        """The processes that serve our mount point: also a daemon whose parent has left.

        Source and options are not compared, since blobfs hides a token in its command line.
        """
        pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if self._serves(_argv_of(pid)[-7:])]

    def _serves(self, command: list[str]) -> bool:
        return command[:3] == ["-m", "blobfs", "mount"] and str(self.path) in command

    def start(self) -> None:
        """Mount, and return when the daemon says that it is ready; raises MountFailed. Before that
        its own look at the mount point would keep it from being unmounted.

        Not for a worker thread: the daemon is told to leave when the thread that started it ends.
        """
        if self.user is not None:
            let_users_mount()
        with self.stderr_path.open("ab") as stderr, _notified() as (address, notifications):
            self._process = subprocess.Popen(
                [*as_user(self.user), *_DIE_WITH_US, *self.prefix, *self.argv()],
                cwd=ROOT,
                env={**self.environment, "NOTIFY_SOCKET": address},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C unmounts first, then ends the daemon
            )
            self._wait_until_ready(self._process, notifications)

    def _wait_until_ready(
        self, process: subprocess.Popen[bytes], notifications: socket.socket
    ) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            status = process.poll()
            if self.foreground:
                if _says_ready(notifications):
                    self.pid = process.pid
                    return
                if status is not None:
                    raise MountFailed(status, self._stderr())
            elif status is not None:
                if status != 0 or fstypes_at(self.path)[-1:] != [_FSTYPE]:
                    raise MountFailed(status, self._stderr() or "no mount")
                (self.pid,) = self._daemons()
                return
            time.sleep(0.02)
        raise MountFailed(None, f"no mount within {START_LIMIT_S} s; {self._stderr()}{self.log()}")

    def unmount(self) -> list[str]:
        """Unmount and wait for the daemon to leave; the list says what went wrong."""
        # A release that the daemon has not read yet dies with the mount and passes for a leak:
        # when it answers this, which comes later, it has read all of them.
        subprocess.run([*as_user(self.user), "stat", "-f", self.path], capture_output=True)
        result = subprocess.run(
            ["fusermount3", "-u", self.path], capture_output=True, text=True, timeout=END_LIMIT_S
        )
        if result.returncode != 0:
            return [f"unmount: {result.stderr.strip()}"]
        return self.wait_for_end()

    def wait_for_end(self) -> list[str]:
        """After an unmount, until the daemon has left; the list says what went wrong."""
        if not _ended_within(self.pid, END_LIMIT_S):
            return [f"the daemon still ran {END_LIMIT_S} s after the unmount"]
        if self.foreground and self._process and (status := self._process.wait()) != 0:
            return [f"the daemon ended with status {status}"]
        return []

    def remove(self) -> None:
        """Take away what is left of the mount and its processes, whatever state they are in."""
        for pid in self._daemons():
            os.kill(pid, signal.SIGKILL)
        for _ in fstypes_at(self.path):
            subprocess.run(["fusermount3", "-u", "-z", self.path], check=True, timeout=END_LIMIT_S)
        if self._process is not None:
            self._process.wait()

    def remount(self, *options: str) -> None:
        """Unmount cleanly and mount again, with `options` instead of the former ones if given."""
        problems = self.unmount()
        assert not problems, problems
        self.options = options or self.options
        self.start()

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def _stderr(self) -> str:
        return self.stderr_path.read_text().strip()

    def expect_log(self, pattern: str) -> None:
        """Announce a WARNING or ERROR: allowed in the log, and the test fails without it."""
        self._expected.append(re.compile(pattern))

    def allow_log(self, pattern: str) -> None:
        """The same for what the moment decides: the test does not fail without it."""
        self._possible.append(re.compile(pattern))

    def problems(self, azurite: Azurite) -> list[str]:
        """What an ended mount has left behind that it must not."""
        problems = []
        records = _records(f"{self.log()}\n{self._stderr()}")
        for record in records:
            known = (*self._expected, *self._possible)
            expected = any(pattern.search(record) for pattern in known)
            if _TROUBLE.search(record) and not expected:
                problems.append(f"log: {record}")
        problems += [
            f"log: nothing matches the expected {pattern.pattern!r}"
            for pattern in self._expected
            if not any(pattern.search(record) for record in records)
        ]
        paths = [
            *(path for path in self.spool_dir.rglob("*") if path.is_file()),
            self.stderr_path,
            self.log_path,
        ]
        signatures = azurite.signatures | {self._signature}
        leaks = find_leaks(paths, signatures) + azurite.find_leaks(signatures)
        problems += [f"plaintext or SAS signature in {path}" for path in leaks]
        return problems


def _records(log: str) -> list[str]:
    """The log's records: a line with a level, and the lines (a traceback, say) up to the next."""
    records: list[str] = []
    for line in log.splitlines():
        if _LEVEL.search(line) or not records:
            records.append(line)
        else:
            records[-1] += "\n" + line
    return records


def _new_key_set() -> str:
    key = urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return json.dumps({"keys": [{"kty": "oct", "kid": f"test-{secrets.token_hex(4)}", "k": key}]})


# TERM, not KILL: when the test run is killed the daemon unmounts before it leaves.
_DIE_WITH_US = ("setpriv", "--pdeathsig", "TERM")


def as_user(uid: int | None) -> list[str]:
    """The command prefix that runs a program as `uid`, which may read what only root reaches.

    The interpreter can lie in root's home; the capability goes no further than that.
    """
    if uid is None:
        return []
    # fmt: off
    return [
        "setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups",
        "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
    ]
    # fmt: on


@contextmanager
def mounted(
    azurite: Azurite,
    container: str,
    tmp_path: Path,
    *options: str,
    user: int | None = None,
    sas: str | None = None,
    key_file: Path | None = None,
    source_suffix: str = "",
    foreground: bool = True,
    prefix: Sequence[str] = (),
    spool_dir: Path | None = None,
) -> Iterator[Mount]:
    """A mount of `container`, checked when it ends (see the module).

    `source_suffix` follows the container's URL ("/prefix"); `sas` is a token, by default one that
    permits everything; `prefix` and `spool_dir` are as in `Mount`. Raises MountFailed.
    """
    with ExitStack() as stack:
        if user is None:
            state_dir = Path(tempfile.mkdtemp(prefix="mount-", dir=tmp_path))
        else:
            # tmp_path can be reached by root alone, and fusermount3 walks to the mount as the user
            state_dir = Path(tempfile.mkdtemp(prefix="blobfs-mount-"))
            os.chown(state_dir, user, user)
            stack.callback(shutil.rmtree, state_dir)
        mount = Mount(
            azurite.url(container) + source_suffix,
            state_dir,
            *options,
            sas=sas or azurite.sas(container),
            key_file=key_file,
            user=user,
            foreground=foreground,
            prefix=prefix,
            spool_dir=spool_dir,
        )
        stack.callback(mount.remove)
        mount.start()
        try:
            yield mount
        except BaseException as exc:
            mount.remove()
            exc.add_note(f"log of the mount:\n{mount.log()}{mount._stderr()}")
            raise
        problems = mount.unmount()
        mount.remove()
        problems += mount.problems(azurite)
        assert not problems, "\n".join(problems)
