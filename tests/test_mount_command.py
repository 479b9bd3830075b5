"""The commands that mount, as people, mount(8) and systemd run them: what they take, when they
return, and what they say when there is no mount."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from blobfs.envelope import write_key_set
from tests.azurite import Azurite, signature
from tests.mounts import ROOT, fstypes_at, mounted
from tests.waiting import eventually

pytestmark = pytest.mark.mount

LIMIT_S = 30

BLOBFS = [sys.executable, "-m", "blobfs"]
HELPER = [
    sys.executable,
    "-c",
    "import sys; from blobfs.cli import mount_helper as m; sys.exit(m())",
]


class Command:
    """What goes into a mount command, all of it right until a test spoils something."""

    def __init__(self, azurite: Azurite, container: str, directory: Path) -> None:
        self.directory = directory
        self.source = azurite.url(container)
        self.mountpoint = directory / "mnt"
        self.sas = azurite.sas(container)
        self.sas_file = directory / "token.sas"
        self.key_file = directory / "keys.json"
        self.log_file = directory / "log"
        self.extra: list[str] = []
        self.mountpoint.mkdir()
        write_key_set(self.key_file)

    @property
    def options(self) -> str:
        named = {
            "sas_file": self.sas_file,
            "key_file": self.key_file,
            "log_file": self.log_file,
            "spool_dir": self.directory / "spool",
        }
        return ",".join([*(f"{name}={value}" for name, value in named.items()), *self.extra])

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a daemon that it leaves runs on."""
        self.sas_file.touch(0o600)
        self.sas_file.write_text(self.sas)
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    def mount(self) -> subprocess.CompletedProcess[str]:
        where = [self.source, str(self.mountpoint)]
        return self.run(*BLOBFS, "mount", *where, "-o", self.options)

    @property
    def is_mounted(self) -> bool:
        return fstypes_at(self.mountpoint)[-1:] == ["fuse.blobfs"]

    def processes(self) -> list[int]:
        """Everything that runs with our directory in its command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if os.fsencode(self.directory) in command:
                found.append(int(entry.name))
        return found

    def wait_until_gone(self) -> None:
        eventually(lambda: not self.processes() and not self.is_mounted)

    def unmount(self) -> None:
        # Releases that the kernel has not sent yet would be lost; it sends this after them.
        os.statvfs(self.mountpoint)
        subprocess.run(["fusermount3", "-u", self.mountpoint], check=True)
        self.wait_until_gone()

    def remove(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for _ in fstypes_at(self.mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", self.mountpoint], check=True)
        # what mount(8) has noted of a mount that it was not asked to unmount
        subprocess.run(["umount", "-i", "--fake", self.mountpoint], capture_output=True)


@pytest.fixture
def command(azurite: Azurite, container: str, tmp_path: Path) -> Iterator[Command]:
    command = Command(azurite, container, tmp_path)
    yield command
    try:
        if command.is_mounted:
            command.unmount()
        assert command.processes() == []
        log = command.log_file.read_text() if command.log_file.exists() else ""
        trouble = re.compile("WARNING|ERROR|CRITICAL|Traceback|sig=(?!REDACTED)")
        assert [line for line in log.splitlines() if trouble.search(line)] == []
    finally:
        command.remove()


# --- forms -----------------------------------------------------------------------------------

FORMS = {
    "blobfs mount SOURCE MNT -o": [*BLOBFS, "mount", "{source}", "{mnt}", "-o", "{options}"],
    "blobfs SOURCE MNT -o": [*BLOBFS, "{source}", "{mnt}", "-o", "{options}"],
    "blobfs -o SOURCE MNT": [*BLOBFS, "mount", "-o", "{options}", "{source}", "{mnt}"],
    "blobfs, two -o": [*BLOBFS, "{source}", "{mnt}", "-o", "metadata_ttl=1", "-o", "{options}"],
    "mount.blobfs": [*HELPER, "{source}", "{mnt}", "-o", "{options}"],
    "mount.blobfs, as mount(8) calls it": [
        *(*HELPER, "{source}", "{mnt}", "-n", "-v", "-s", "-o"),
        "rw,nosuid,nodev,relatime,_netdev,x-systemd.automount,some_other_systems_option,{options}",
    ],
    "mount.blobfs -w -t": [*HELPER, "{source}", "{mnt}", "-w", "-t", "fuse.blobfs", "-o{options}"],
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_mounts_and_returns_when_the_mount_answers(form: str, command: Command) -> None:
    words = {"source": command.source, "mnt": command.mountpoint, "options": command.options}
    done = command.run(*(word.format(**words) for word in FORMS[form]))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert command.is_mounted
    (command.mountpoint / "file").write_text("x")
    assert os.listdir(command.mountpoint) == ["file"]


@pytest.mark.parametrize("way", ["-r", "-oro"])
def test_a_mount_can_be_read_only(way: str, command: Command) -> None:
    where = [command.source, str(command.mountpoint)]
    assert command.run(*HELPER, *where, way, "-o", command.options).returncode == 0
    with pytest.raises(OSError, match="Read-only file system"):
        (command.mountpoint / "file").touch()
    flags = subprocess.check_output(
        ["findmnt", "-rno", "OPTIONS", command.mountpoint], text=True
    ).split(",")
    assert "ro" in flags


def test_fake_checks_everything_and_mounts_nothing(command: Command) -> None:
    where = [command.source, str(command.mountpoint)]
    assert command.run(*HELPER, *where, "-f", "-o", command.options).returncode == 0
    assert not command.is_mounted
    failed = command.run(*HELPER, *where, "-f", "-o", f"{command.options},nonsense")
    assert failed.returncode != 0


def test_an_unknown_option_is_passed_over_with_s_alone(command: Command) -> None:
    where = [command.source, str(command.mountpoint)]
    options = f"nonsense,{command.options}"
    assert command.run(*HELPER, *where, "-o", options).returncode != 0
    assert not command.is_mounted
    assert command.run(*HELPER, *where, "-s", "-o", options).returncode == 0
    assert command.is_mounted


def test_another_mount_namespace_is_entered_with_capital_n(command: Command) -> None:
    where = [command.source, str(command.mountpoint)]
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        namespace = f"/proc/{holder.pid}/ns/mnt"
        done = command.run(*HELPER, *where, "-N", namespace, "-o", command.options)
        inside = Path(f"/proc/{holder.pid}/mountinfo").read_text()
        if hasattr(os, "setns"):
            assert done.returncode == 0, done.stderr
            assert str(command.mountpoint) in inside
            subprocess.run(
                ["nsenter", f"--mount={namespace}", "umount", command.mountpoint], check=True
            )
            command.wait_until_gone()
        else:
            assert done.returncode != 0
            assert "nsenter" in done.stderr
        assert not command.is_mounted
        assert holder.stdin is not None
        holder.stdin.close()


# --- the daemon ------------------------------------------------------------------------------


def test_the_daemon_is_on_its_own(command: Command) -> None:
    assert command.mount().returncode == 0
    (daemon,) = command.processes()
    assert os.getsid(daemon) == daemon
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    descriptors = [os.readlink(f"/proc/{daemon}/fd/{number}") for number in (0, 1, 2)]
    assert descriptors == ["/dev/null"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(number: signal.Signals, command: Command) -> None:
    assert command.mount().returncode == 0
    (command.mountpoint / "file").write_text("x")
    (daemon,) = command.processes()
    os.kill(daemon, number)
    command.wait_until_gone()


def test_the_foreground_stays_and_ends_with_0_when_it_is_unmounted(command: Command) -> None:
    command.extra = ["foreground"]
    command.sas_file.touch(0o600)
    command.sas_file.write_text(command.sas)
    where = [command.source, str(command.mountpoint)]
    with subprocess.Popen([*BLOBFS, *where, "-o", command.options], cwd=ROOT) as process:
        eventually(lambda: command.is_mounted or process.poll() is not None)
        assert command.processes() == [process.pid]
        subprocess.run(["fusermount3", "-u", command.mountpoint], check=True)
        assert process.wait(LIMIT_S) == 0


def test_relative_paths_are_those_of_the_caller(command: Command) -> None:
    command.sas_file.touch(0o600)
    command.sas_file.write_text(command.sas)
    options = "sas_file=token.sas,key_file=keys.json,log_file=log,spool_dir=spool"
    done = subprocess.run(
        [*BLOBFS, command.source, "mnt", "-o", options],
        cwd=command.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert command.is_mounted
    (command.mountpoint / "file").write_text("x")
    command_lines = subprocess.check_output(["ps", "-eo", "pid,args"], text=True)
    daemons = [line for line in command_lines.splitlines() if "sas_file=token.sas" in line]
    subprocess.run(["fusermount3", "-u", command.mountpoint], check=True)
    for line in daemons:
        process = os.pidfd_open(int(line.split()[0]))
        os.close(process)


def test_a_token_in_the_options_is_not_shown_by_ps(command: Command) -> None:
    options = command.options.replace(f"sas_file={command.sas_file}", f"sas={command.sas}")
    done = command.run(*BLOBFS, command.source, str(command.mountpoint), "-o", options)
    assert done.returncode == 0, done.stderr
    (command.mountpoint / "file").write_text("x")
    (daemon,) = command.processes()
    secret = re.escape(signature(command.sas)[:12])
    shown = Path(f"/proc/{daemon}/cmdline").read_text() + Path("/proc/self/mountinfo").read_text()
    assert not re.search(secret, shown)


# --- mistakes --------------------------------------------------------------------------------


def option(text: str) -> Callable[[Command, Azurite], None]:
    return lambda command, azurite: command.extra.append(text)


def token(change: Callable[[str], str]) -> Callable[[Command, Azurite], None]:
    def spoil(command: Command, azurite: Azurite) -> None:
        command.sas = change(command.sas)

    return spoil


def source(url: str) -> Callable[[Command, Azurite], None]:
    def spoil(command: Command, azurite: Azurite) -> None:
        command.source = url

    return spoil


def _no_key_file(command: Command, azurite: Azurite) -> None:
    command.key_file.unlink()


def _key_file_for_all(command: Command, azurite: Azurite) -> None:
    command.key_file.chmod(0o644)


def _key_file_of_nonsense(command: Command, azurite: Azurite) -> None:
    command.key_file.write_text("not keys")


def _token_of_another_container(command: Command, azurite: Azurite) -> None:
    command.sas = azurite.sas(azurite.new_container())


def _no_such_container(command: Command, azurite: Azurite) -> None:
    command.source = azurite.url("never-made")
    command.sas = azurite.sas("never-made")


def _no_such_folder(command: Command, azurite: Azurite) -> None:
    command.source += "/no/such/folder"


def _expired(command: Command, azurite: Azurite) -> None:
    command.sas = azurite.sas(command.source.rpartition("/")[2], expiry=timedelta(hours=-1))


def _https_only(command: Command, azurite: Azurite) -> None:
    command.sas = azurite.sas(command.source.rpartition("/")[2], protocol="https")


def _no_mountpoint(command: Command, azurite: Azurite) -> None:
    command.mountpoint = command.directory / "missing"


def _mountpoint_is_a_file(command: Command, azurite: Azurite) -> None:
    command.mountpoint = command.directory / "file"
    command.mountpoint.touch()


def _nobody_listens(command: Command, azurite: Azurite) -> None:
    command.source = command.source.replace(f":{azurite.port}/", ":1/")
    command.extra = ["timeout=1"]


def _other_signature(sas: str) -> str:
    return re.sub("sig=..", "sig=AA", sas)


# One of each kind; test_options.py and test_sas.py have every way to get those two wrong.
MISTAKES: dict[str, tuple[Callable[[Command, Azurite], None], str]] = {
    "unknown option": (option("metadata_tll=3"), "metadata_tll.*did you mean metadata_ttl"),
    "no key file": (_no_key_file, "keys.json"),
    "key file that others can read": (_key_file_for_all, "keys.json.*chmod"),
    "key file without keys": (_key_file_of_nonsense, "keys.json"),
    "token of another container": (_token_of_another_container, "token"),
    "wrong signature": (token(_other_signature), "token"),
    "no token": (token(lambda sas: ""), "SAS"),
    "token of a blob": (token(lambda sas: sas.replace("sr=c", "sr=b")), "sr=c"),
    "expired token": (_expired, "expired"),
    "token for https": (_https_only, "spr="),
    "no such container": (_no_such_container, "never-made does not exist"),
    "no such folder": (_no_such_folder, "no folder"),
    "http to another machine": (source("http://192.0.2.1/account/container"), "https"),
    "no mount point": (_no_mountpoint, "missing.*mkdir"),
    "mount point is a file": (_mountpoint_is_a_file, "not a directory"),
    "nobody listens": (_nobody_listens, "127.0.0.1:1"),
}


def assert_failed_in_one_line(
    done: subprocess.CompletedProcess[str], pattern: str, command: Command
) -> None:
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("blobfs: ")
    assert re.search(pattern, done.stderr), done.stderr
    assert not re.search(r"sig=(?!REDACTED)\w", done.stderr)
    assert command.processes() == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_in_one_line(mistake: str, command: Command, azurite: Azurite) -> None:
    spoil, pattern = MISTAKES[mistake]
    spoil(command, azurite)
    assert_failed_in_one_line(command.mount(), pattern, command)
    assert not command.is_mounted


def test_a_second_mount_in_the_same_place_is_refused(command: Command) -> None:
    assert command.mount().returncode == 0
    before = command.processes()
    done = command.mount()
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "umount" in done.stderr
    assert command.processes() == before
    assert len(fstypes_at(command.mountpoint)) == 1


def test_the_foreground_fails_in_one_line_as_well(command: Command, azurite: Azurite) -> None:
    command.extra = ["foreground"]
    _token_of_another_container(command, azurite)
    assert_failed_in_one_line(command.mount(), "token", command)


# --- tokens that cannot do everything --------------------------------------------------------


def test_a_token_without_write_permission_mounts_read_only_and_says_so(
    command: Command, azurite: Azurite
) -> None:
    assert command.mount().returncode == 0
    (command.mountpoint / "file").write_text("stored")
    command.unmount()
    command.sas = azurite.sas(command.source.rpartition("/")[2], "rl")
    done = command.mount()
    assert done.returncode == 0
    assert re.fullmatch("blobfs: mounted read-only: .* lacks w.*\n", done.stderr)
    assert (command.mountpoint / "file").read_text() == "stored"
    for change in (
        lambda path: path.write_text("x"),
        lambda path: path.chmod(0o600),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("other")),
        lambda path: path.with_name("dir").mkdir(),
        lambda path: os.utime(path),
        lambda path: os.setxattr(path, "user.a", b"x"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change(command.mountpoint / "file")


def test_a_mount_of_a_folder_shows_that_folder_alone(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("outside", b"")
    azurite.sdk(container).upload_blob("a/b c/inside", b"")
    with mounted(azurite, container, tmp_path, source_suffix="/a/b%20c") as mount:
        assert os.listdir(mount.path) == ["inside"]
        (mount.path / "new").write_text("x")
        names = set(azurite.sdk(container).list_blob_names())
        assert names == {"outside", "a/b c/inside", "a/b c/new"}
