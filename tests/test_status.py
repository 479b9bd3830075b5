"""What `blobfs status` tells, and to whom."""

import codecs
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from blobfs import control, mountinfo
from blobfs.cli.terminal import Terminal, duration, size
from blobfs.control import ask, find
from blobfs.errors import NoStatus
from tests.azurite import Azurite
from tests.leaks import is_leak
from tests.mounts import PLAINTEXT_MARKER, ROOT, Mount, as_user, mounted
from tests.relay import Asked, Relay
from tests.sdk import WRITES_PROTOCOL_1, AesKek, encrypting, write_key_file
from tests.waiting import eventually

LIMIT_S = 30
NOBODY = 65534
RUN = Path("/run/blobfs")


def status(
    mount: Mount, *arguments: str, user: int | None = None, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blobfs", "status", *arguments, str(path or mount.path)]
    return subprocess.run(
        [*as_user(user), *command],
        cwd=ROOT,
        env=mount.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def report(mount: Mount, path: Path | None = None) -> dict[str, Any]:
    """As root. Not by a program: one that is started closes our files, which stores them."""
    return ask(find(path or mount.path), {"do": "status"})


def socket_of(mount: Mount) -> Path:
    device = mountinfo.mounts_at(mount.path)[-1].device
    directory = RUN if mount.user is None else mount.state_dir / "blobfs"
    return directory / f"{os.major(device)}-{os.minor(device)}.sock"


@contextmanager
def watched(*args: Any, **kw: Any) -> Iterator[Mount]:
    """A mount whose status can be asked for, which it can a moment after it is there."""
    with mounted(*args, **kw) as mount:
        wait_for(mount)
        yield mount


def wait_for(mount: Mount) -> None:
    eventually(lambda: socket_of(mount).exists())


@pytest.fixture(scope="module")
def mount(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    container = azurite.new_container()
    with watched(azurite, container, tmp_path_factory.mktemp("status")) as mount:
        yield mount


# --- what is told ----------------------------------------------------------------------------


@pytest.mark.mount
def test_status_counts_what_the_service_was_asked(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.reset_requests()
    with watched(azurite, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"x" * 100_000)
        assert len((mount.path / "file").read_bytes()) == 100_000
        os.setxattr(mount.path / "file", "user.azure.content_language", b"de")
        told = report(mount)
        served = Counter(
            (request.method, request.status)
            for request in azurite.requests()
            if request.path.startswith(container)
        )
    counted: Counter[tuple[str, int]] = Counter()
    for entry in told["requests"]:
        counted[entry["verb"], entry["status"]] += entry["count"]
    assert counted == served
    assert (told["bytes"]["read"], told["bytes"]["written"]) == (100_000, 100_000)
    assert told["bytes"]["sent"] >= 100_000
    for latencies in (told["latency_ms"], told["request_latency_ms"]):
        for entry in latencies.values():
            assert entry["count"] >= 1
            assert 0 <= entry["p50"] <= entry["p90"] <= entry["p99"]
    assert told["latency_ms"]["write"]["count"] >= 1
    assert told["memory"]["peak"] >= told["memory"]["resident"] // 2 > 2**20


@pytest.mark.mount
def test_status_tells_of_the_token_and_the_keys(mount: Mount) -> None:
    (mount.path / "file").write_bytes(b"x")
    told = report(mount)
    (token,) = told["tokens"]
    assert token["rights"] == "racwdlt"
    assert 7 * 3600 < token["expires_in_s"] <= 8 * 3600
    assert (token["container"], token["file"]) == (mount.source, str(mount.sas_file))
    key_id = json.loads(mount.key_file.read_text())["keys"][0]["kid"]
    wrapping = {"key_id": key_id, "algorithm": "A256KW", "provider": "key_file"}
    assert told["keys"]["writes_with"] == wrapping
    assert told["keys"]["content_keys"][key_id] >= 1
    assert (told["pid"], told["mountpoint"]) == (mount.pid, str(mount.path))


@pytest.mark.mount
def test_status_tells_of_the_token_that_has_taken_the_place_of_another(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with watched(azurite, container, tmp_path) as mount:
        mount.sas_file.write_text(azurite.sas(container, expiry=timedelta(days=3)))
        eventually(lambda: report(mount)["tokens"][0]["expires_in_s"] > 2 * 86400)


@pytest.mark.mount
def test_status_tells_what_is_not_stored_yet(mount: Mount) -> None:
    with (mount.path / "draft").open("wb", buffering=0) as file:
        for _ in range(20):
            file.write(bytes(2**20))
        files = report(mount)["files"]
        assert (files["unsaved"], files["unsaved_bytes"]) == (1, 20 * 2**20)
        assert files["staged_bytes"] >= 8 * 2**20
        assert files["open"] >= 1
        assert files["memory_bytes"] + files["spool_bytes"] > 0
    files = report(mount)["files"]
    assert (files["unsaved"], files["unsaved_bytes"], files["staged_bytes"]) == (0, 0, 0)


@pytest.mark.mount
def test_uploads_under_way_are_told_also_while_the_service_does_not_answer(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    relay, answer = Relay(azurite), threading.Event()
    try:
        with watched(relay.service, container, tmp_path) as mount:

            def hold(asked: Asked) -> None:
                if asked.method == "PUT":
                    answer.wait(LIMIT_S)

            relay.choose = hold
            # With a dot in its name it is no directory's, which would be listed at once, too.
            writer = threading.Thread(target=(mount.path / "file.x").write_bytes, args=(b"x",))
            writer.start()
            try:
                deadline = time.monotonic() + LIMIT_S
                while not (told := report(mount))["in_flight"]["uploads"]:
                    assert time.monotonic() < deadline, told
                    time.sleep(0.02)
                assert told["in_flight"] == {"requests": 1, "uploads": 1}
                assert (told["files"]["unsaved"], told["files"]["unsaved_bytes"]) == (1, 1)
            finally:
                answer.set()
                writer.join()
            assert report(mount)["in_flight"] == {"requests": 0, "uploads": 0}
    finally:
        answer.set()
        relay.close()


@pytest.mark.mount
def test_a_daemon_that_is_stopped_keeps_nobody_waiting_for_long(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TIMEOUT", 0.2)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NoStatus, match=r"does not answer \(timed out\)"):
            report(mount)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert report(mount)["pid"] == mount.pid


@pytest.mark.mount
def test_a_second_read_is_a_hit(mount: Mount) -> None:
    (mount.path / "cached").write_bytes(b"x" * 10_000)
    for _ in range(2):
        descriptor = os.open(mount.path / "cached", os.O_RDONLY | os.O_DIRECT)
        before = report(mount)["cache"]
        os.pread(descriptor, 4096, 0)
        after = report(mount)["cache"]
        os.close(descriptor)
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 0)
    assert 10_000 <= after["bytes"] <= after["limit"]


@pytest.mark.mount
def test_failed_calls_are_counted_by_their_errno(mount: Mount) -> None:
    (mount.path / "one").write_bytes(b"")
    with pytest.raises(OSError, match="Operation not supported"):
        os.link(mount.path / "one", mount.path / "two")
    assert not (mount.path / "missing").exists()
    with pytest.raises(OSError, match="Operation not supported"):
        os.getxattr(mount.path / "one", "system.posix_acl_access")  # as `ls -l` does
    assert report(mount)["errors"] == [{"operation": "link", "errno": "EOPNOTSUPP", "count": 1}]


@pytest.mark.mount
def test_people_read_the_same_in_lines(mount: Mount) -> None:
    done = status(mount)
    assert done.returncode == 0
    for line in (
        rf"^{re.escape(mount.source)} on {re.escape(str(mount.path))}$",
        r"^token: .* rights racwdlt, expires \d{4}-.* \(in 7 h 5\d min\)$",
        r"^key: writes with test-\w+ \(A256KW, key_file\)$",
        r"^cache: \d+ hits, \d+ misses",
        r"^  List Blobs GET 200 \d+$",
    ):
        assert re.search(line, done.stdout, re.MULTILINE), line
    assert "\x1b" not in done.stdout


@pytest.mark.mount
def test_status_tells_no_secret_and_no_file_name(azurite: Azurite, mount: Mount) -> None:
    (mount.path / "a-name-of-a-file").write_bytes(PLAINTEXT_MARKER)
    key = json.loads(mount.key_file.read_text())["keys"][0]["k"]
    for arguments in ((), ("--json",), ("--log-level", "info")):
        done = status(mount, *arguments)
        assert not is_leak((done.stdout + done.stderr).encode(), azurite.signatures)
        assert not re.search(f"a-name-of-a-file|{key}|sig=", done.stdout + done.stderr)


@pytest.mark.mount
def test_a_bind_mount_has_the_same_status(mount: Mount, tmp_path: Path) -> None:
    subprocess.run(["mount", "--bind", mount.path, tmp_path], check=True)
    try:
        assert report(mount, path=tmp_path)["pid"] == mount.pid
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- who is told -----------------------------------------------------------------------------


@pytest.mark.mount
def test_only_the_owner_may_open_the_socket(mount: Mount) -> None:
    path = socket_of(mount)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    done = status(mount, user=NOBODY)
    assert (done.returncode, done.stdout) == (32, "")
    assert "its status is for the user who mounted it alone" in done.stderr


@pytest.mark.mount
def test_who_gets_at_the_socket_all_the_same_is_refused_by_their_uid(mount: Mount) -> None:
    path = socket_of(mount)
    path.parent.chmod(0o755)
    path.chmod(0o666)
    try:
        done = status(mount, user=NOBODY)
        assert (done.returncode, done.stdout) == (32, "")
        assert "ask as that user, or as root" in done.stderr
        done = status(mount, "--log-level", "debug", user=NOBODY)
        assert done.returncode == 32
        assert report(mount)["log_level"] == "info"
    finally:
        path.chmod(0o600)
        path.parent.chmod(0o700)


@pytest.mark.mount
def test_a_user_asks_their_own_mount(azurite: Azurite, container: str, tmp_path: Path) -> None:
    with watched(azurite, container, tmp_path, user=NOBODY) as mount:
        done = status(mount, "--json", user=NOBODY)
        assert json.loads(done.stdout)["pid"] == mount.pid, done.stderr
        path = socket_of(mount)
        assert path.stat().st_uid == NOBODY
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.parent.exists()


@pytest.mark.mount
def test_a_directory_that_others_can_write_to_is_not_used(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with watched(azurite, container, tmp_path, user=NOBODY) as mount:
        path = socket_of(mount)
        path.parent.chmod(0o777)
        try:
            done = status(mount, user=NOBODY)
            assert done.returncode == 32
        finally:
            path.parent.chmod(0o700)


# --- sockets that nobody answers -------------------------------------------------------------


@pytest.mark.mount
def test_a_killed_daemon_is_told_and_the_socket_that_it_left_is_removed_by_the_next(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with watched(azurite, container, tmp_path, user=NOBODY) as mount:
        left = socket_of(mount)
        os.kill(mount.pid, signal.SIGKILL)
        done = status(mount, user=NOBODY)
        assert (done.returncode, left.exists()) == (32, True)
        assert f"the daemon of {mount.path} does not answer" in done.stderr
        os.rename(left, left.with_name("99999-1.sock"))  # the device numbers of a later mount vary
        mount.remove()
        mount.start()
        wait_for(mount)
        done = status(mount, "--json", user=NOBODY)
        assert json.loads(done.stdout)["pid"] == mount.pid, done.stderr
        assert list(left.parent.iterdir()) == [socket_of(mount)]


@pytest.mark.mount
def test_nonsense_over_the_socket_is_answered_and_does_no_harm(mount: Mount) -> None:
    for sent in (b"\n", b"[]\n", b"{}\n", b'{"do": "x"}\n', b"x" * 100_000, b'{"do":"log_level"}'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT_S)
            connection.connect(str(socket_of(mount)))
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert b'"error"' in connection.recv(10_000)
    assert report(mount)["pid"] == mount.pid


@pytest.mark.parametrize("path", ["/", "/proc", "{tmp}", "{tmp}/missing"])
def test_what_is_no_mount_of_blobfs_is_said(path: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blobfs", "status", path.format(tmp=tmp_path)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "is no mount of blobfs: see findmnt -t fuse.blobfs" in done.stderr


# --- the log level ---------------------------------------------------------------------------


@pytest.mark.mount
def test_the_log_level_is_changed_at_run_time(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with watched(azurite, container, tmp_path) as mount:
        (mount.path / "file").write_bytes(b"")

        def refused_link() -> str:
            before = mount.log()
            with pytest.raises(OSError, match="not supported"):
                os.link(mount.path / "file", mount.path / "link")
            return mount.log().removeprefix(before)

        assert "DEBUG" not in refused_link()
        done = status(mount, "--log-level", "debug")
        assert (done.returncode, done.stdout) == (0, "log_level: debug (it was info)\n")
        assert "DEBUG blobfs.fuse: link" in refused_link()
        assert report(mount)["log_level"] == "debug"
        rotated = mount.log_path.rename(mount.log_path.with_suffix(".1"))
        os.kill(mount.pid, signal.SIGHUP)  # what logrotate does afterwards
        eventually(lambda: mount.log_path.exists() and "reloaded" in mount.log())
        assert "DEBUG blobfs.fuse: link" in refused_link()
        assert "reloaded" not in rotated.read_text()
        assert status(mount, "--log-level", "info").returncode == 0
        assert "DEBUG" not in refused_link()


# --- how it looks ----------------------------------------------------------------------------


class Screen:
    """A program on a terminal."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._descriptor, other = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a read may end in a character
        self.shown = ""

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not re.search(pattern, self.shown, re.DOTALL):
            left = deadline - time.monotonic()
            assert left > 0, self.shown
            if select.select([self._descriptor], [], [], left)[0]:
                self.shown += self._decoder.decode(os.read(self._descriptor, 65536))

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        with suppress(OSError):  # EIO: nobody has the other side open
            while piece := os.read(self._descriptor, 65536):
                self.shown += self._decoder.decode(piece)
        os.close(self._descriptor)
        return self.process.wait(LIMIT_S)


@pytest.mark.mount
def test_watch_shows_it_again_with_rates_until_it_is_interrupted(mount: Mount) -> None:
    screen = Screen(sys.executable, "-m", "blobfs", "status", "--watch", str(mount.path))
    screen.until(r"bytes: [^\n]* read, .*\x1b\[H\x1b\[2J.*bytes: [^\n]* read \([^\n]*B/s\)")
    screen.process.send_signal(signal.SIGINT)
    assert screen.end() == 0
    assert "Traceback" not in screen.shown


@pytest.mark.mount
def test_watch_as_json_is_a_line_each_time(mount: Mount) -> None:
    command = [sys.executable, "-m", "blobfs", "status", "--watch", "--json", str(mount.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reports = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    assert reports[0]["uptime_s"] < reports[1]["uptime_s"]


@pytest.mark.mount
@pytest.mark.parametrize(
    ("environment", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colours_are_for_terminals_that_want_them(
    mount: Mount, environment: dict[str, str], colours: bool
) -> None:
    screen = Screen(sys.executable, "-m", "blobfs", "status", str(mount.path), **environment)
    assert screen.end() == 0
    assert "token: " in screen.shown
    assert ("\x1b[" in screen.shown) is colours


def test_columns_are_aligned_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "count"), ("a", 5), ("long name", 1000)]
    plain = Terminal()
    plain.is_terminal = False
    assert list(plain.columns(rows)) == ["name count", "a 5", "long name 1000"]
    plain.is_terminal = True
    assert list(plain.columns(rows)) == [
        "name       count",
        "a              5",
        "long name   1000",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (12 * 2**20, "12 MiB"), (2**50, "1024 TiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (185, "3 min 5 s"), (7200, "2 h"), (100_000, "1 d 3 h")],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- what a file tells of itself -------------------------------------------------------------


def views(path: Path) -> dict[str, str]:
    found = {}
    for name in ("protocol", "key_id", "region_length", "sealed", "etag"):
        with suppress(OSError):
            found[name] = os.getxattr(path, f"user.blobfs.{name}").decode()
    return found


@pytest.mark.mount
@WRITES_PROTOCOL_1
def test_a_file_tells_how_it_is_encrypted(azurite: Azurite, container: str, tmp_path: Path) -> None:
    kek = AesKek("the-sdks", bytes(range(32)))
    encrypting(azurite, container, kek, "1.0").upload_blob("sdk-1", b"x")
    encrypting(azurite, container, kek, "2.0").upload_blob("sdk-2", b"x")
    azurite.sdk(container).upload_blob("plain", b"x")
    key_file = write_key_file(tmp_path / "keys.json", kek)
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        mount.expect_log("protocol 1.0, which cannot detect tampering")
        (mount.path / "ours").write_bytes(b"x")
        (mount.path / "directory").mkdir()
        told = {path.name: views(path) for path in mount.path.iterdir()}
        listed = {name for path in mount.path.iterdir() for name in os.listxattr(path)}
        for change in (
            lambda: os.setxattr(mount.path / "ours", "user.blobfs.sealed", b"no"),
            lambda: os.removexattr(mount.path / "ours", "user.blobfs.protocol"),
        ):
            with pytest.raises(PermissionError):
                change()
        with pytest.raises(OSError, match="Invalid argument"):
            os.setxattr(mount.path / "ours", "user.blobfs.mine", b"x")
    etags = {name: told[name].pop("etag") for name in told}
    stored = azurite.sdk(container).list_blobs()
    assert etags == {blob.name: blob.etag.strip('"') for blob in stored}
    envelope = {"key_id": "the-sdks", "sealed": "no"}
    assert told == {
        "ours": {**envelope, "protocol": "2.1", "region_length": "65536", "sealed": "yes"},
        "sdk-1": {**envelope, "protocol": "1.0"},
        "sdk-2": {**envelope, "protocol": "2.0", "region_length": "4194304"},
        "plain": {},
        "directory": {},
    }
    assert not [name for name in listed if name.startswith("user.blobfs.")]


# --- mountinfo -------------------------------------------------------------------------------


def test_a_line_of_mountinfo_is_taken_apart() -> None:
    line = (
        r"98 96 0:52 / /mnt/a\040b\134c rw,nosuid shared:9 - fuse.blobfs "
        r"https://a.example/c\040d rw,user_id=1000,group_id=1000,default_permissions"
    )
    mount = mountinfo._parse(line)
    assert (mount.path, mount.fstype) == (r"/mnt/a b\c", "fuse.blobfs")
    assert (mount.device, mount.user) == (os.makedev(0, 52), 1000)
