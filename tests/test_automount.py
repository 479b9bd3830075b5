"""autofs, with a systemd of the tests' own: what `blobfs units` writes, used as an administrator
uses it. The kernel's autofs is the real one."""

import re
import sys
from collections.abc import Iterator

import pytest

from tests.azurite import Azurite
from tests.installed import MNT, Installed, installed
from tests.test_fstab import DIRTY

pytestmark = pytest.mark.mount

# A program that has written and not closed: nothing of it is stored until its end.
UNFINISHED = f"exec 5>{MNT}/unfinished; printf dirty >&5; sleep 1000"


@pytest.fixture(scope="module")
def shared(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with installed(azurite, tmp_path_factory.mktemp("automount"), systemd=True) as made:
        units = ["--write", "/etc/systemd/system", "--idle", "1s"]
        made.machine.run("blobfs", "units", made.source, MNT, "-o", made.options, *units)
        made.machine.run("systemctl", "daemon-reload")
        yield made


@pytest.fixture
def here(shared: Installed) -> Iterator[Installed]:
    """The automount waits, nothing is mounted."""
    shared.machine.run("systemctl", "reset-failed")
    shared.machine.run("systemctl", "start", "mnt-x.automount")
    yield shared
    shared.set_token(shared.azurite.sas(shared.container))
    shared.machine.run("systemctl", "stop", "mnt-x.mount", "mnt-x.automount")
    assert shared.machine.fstypes_at(MNT) == []
    assert shared.daemons == []


def wait_until_idle(here: Installed) -> None:
    here.machine.wait_for("unmounted as it is idle", lambda: not here.is_mounted)
    here.machine.wait_for("no daemon", lambda: here.daemons == [])


def status(here: Installed) -> str:
    return here.machine.run("systemctl", "status", "mnt-x.mount", check=False).stdout


def test_the_first_access_mounts_and_idle_time_unmounts_and_so_on(here: Installed) -> None:
    for round in ("first", "second"):
        assert here.machine.fstypes_at(MNT) == ["autofs"]
        here.machine.sh(f"echo {round} >{MNT}/file")
        assert here.machine.fstypes_at(MNT) == ["autofs", "fuse.blobfs"]
        wait_until_idle(here)
    assert here.machine.sh(f"cat {MNT}/file") == "second\n"


def test_idle_time_unmounts_when_pending_writes_are_stored(here: Installed) -> None:
    here.machine.run(sys.executable, "-c", DIRTY, f"{MNT}/mapped")
    here.machine.sh(f"echo new >{MNT}/late; chmod 640 {MNT}/late")
    wait_until_idle(here)
    assert {"mapped", "late"} <= here.blobs()
    late = here.azurite.sdk(here.container).get_blob_client("late").get_blob_properties()
    assert int(late.metadata["permissions"]) & 0o777 == 0o640
    assert here.machine.run("head", "-c", "5", f"{MNT}/mapped").stdout == "dirty"


def test_an_expired_token_fails_the_access_and_says_why(here: Installed) -> None:
    here.expire_token()
    refused = here.machine.run("ls", MNT, check=False)
    assert "No such device" in refused.stderr
    assert re.search("blobfs: the SAS token expired at .*: get a new one", status(here))
    assert here.machine.run("systemctl", "is-active", "mnt-x.automount").stdout == "active\n"
    here.set_token(here.azurite.sas(here.container))
    here.machine.run("ls", MNT)


def test_an_expired_token_does_not_fail_the_boot(here: Installed) -> None:
    here.machine.run("systemctl", "enable", "mnt-x.automount")
    here.expire_token()
    here.machine.run("systemctl", "start", "remote-fs.target")
    here.machine.run("ls", MNT, check=False)
    assert here.machine.run("systemctl", "is-active", "remote-fs.target").stdout == "active\n"


def test_after_a_killed_daemon_the_next_access_mounts_again(here: Installed) -> None:
    here.machine.sh(f"echo stored >{MNT}/file")
    daemon = max(here.daemons)  # the other process is the keeper, which has started it
    here.machine.run("kill", "-KILL", str(daemon))
    here.machine.wait_for("the dead mount is taken away", lambda: not here.is_mounted)
    assert here.machine.sh(f"cat {MNT}/file") == "stored\n"
    assert daemon not in here.daemons


def test_a_stop_is_refused_while_a_file_is_open_and_loses_nothing(here: Installed) -> None:
    here.machine.run("systemd-run", "--unit=writer", "bash", "-c", UNFINISHED)
    here.machine.wait_for("written", lambda: "unfinished" in here.machine.sh(f"ls {MNT}"))
    stopped = here.machine.run("systemctl", "stop", "mnt-x.mount", check=False)
    assert "target is busy" in status(here), stopped
    assert here.is_mounted
    here.machine.run("systemctl", "stop", "writer")
    here.machine.run("systemctl", "stop", "mnt-x.mount")
    assert here.daemons == []
    assert here.machine.sh(f"cat {MNT}/unfinished") == "dirty"


def test_daemon_reload_leaves_the_mount_alone(here: Installed) -> None:
    here.machine.sh(f"echo before >{MNT}/file")
    before = here.daemons
    here.machine.run("systemctl", "daemon-reload")
    assert here.machine.sh(f"cat {MNT}/file") == "before\n"
    assert here.daemons == before
    wait_until_idle(here)
    assert here.machine.sh(f"cat {MNT}/file") == "before\n"


def test_it_is_unmounted_before_the_network_goes(here: Installed) -> None:
    after = here.machine.run("systemctl", "show", "-P", "After", "mnt-x.mount").stdout.split()
    assert {"network-online.target", "remote-fs-pre.target", "network.target"} <= set(after)
    conflicts = here.machine.run("systemctl", "show", "-P", "Conflicts", "mnt-x.mount").stdout
    assert "umount.target" in conflicts.split()


def test_a_shutdown_with_open_files_loses_nothing(here: Installed) -> None:
    here.machine.run("systemd-run", "--unit=writer", "bash", "-c", UNFINISHED)
    here.machine.wait_for("written", lambda: "unfinished" in here.machine.sh(f"ls {MNT}"))
    here.machine.run(sys.executable, "-c", DIRTY, f"{MNT}/mapped-at-the-end")
    here.machine.run("systemctl", "isolate", "test-off.target")
    here.machine.wait_for("unmounted", lambda: here.daemons == [])
    here.machine.run("systemctl", "isolate", "test.target")
    here.machine.run("systemctl", "start", "mnt-x.automount")
    assert here.machine.sh(f"cat {MNT}/unfinished") == "dirty"
    assert here.machine.run("head", "-c", "5", f"{MNT}/mapped-at-the-end").stdout == "dirty"


def test_the_line_for_fstab_does_the_same(here: Installed) -> None:
    here.machine.sh("mkdir -p /mnt/f")
    units = here.machine.run(
        "blobfs", "units", here.source, "/mnt/f", "-o", here.options, "--idle", "1s"
    ).stdout
    here.machine.sh("cat >/etc/fstab", stdin=units.splitlines()[-1] + "\n")
    here.machine.run("systemctl", "daemon-reload")
    here.machine.run("systemctl", "start", "mnt-f.automount")
    assert here.machine.fstypes_at("/mnt/f") == ["autofs"]
    here.machine.run("ls", "/mnt/f")
    assert here.machine.fstypes_at("/mnt/f") == ["autofs", "fuse.blobfs"]
    time_limit = here.machine.run("systemctl", "show", "-P", "TimeoutUSec", "mnt-f.mount").stdout
    assert time_limit == "15min\n"
    here.machine.wait_for("idle", lambda: here.machine.fstypes_at("/mnt/f") == ["autofs"])
    here.machine.run("systemctl", "stop", "mnt-f.automount")
    here.machine.sh(": >/etc/fstab; systemctl daemon-reload")


def test_letters_that_units_and_fstab_take_for_their_own(here: Installed) -> None:
    path, idle = '/mnt/50% off, "a" b\\c#ä', ["--idle", "1s"]
    here.machine.run("mkdir", "-p", path, "/etc/blobfs/a,b %i")
    here.machine.run("cp", "-p", "/etc/blobfs/data.keys", "/etc/blobfs/a,b %i/keys")
    options = 'sas_file=/etc/blobfs/data.sas,key_file="/etc/blobfs/a,b %i/keys"'
    written = here.machine.run(
        *("blobfs", "units", here.source, path, "-o", options, *idle),
        *("--write", "/etc/systemd/system"),
    ).stdout.splitlines()
    name = here.machine.run("systemd-escape", "--path", path).stdout.strip()
    mount, automount = f"{name}.mount", f"{name}.automount"
    assert written[:2] == [f"wrote /etc/systemd/system/{unit}" for unit in (mount, automount)]
    verified = here.machine.run("systemd-analyze", "verify", mount, automount)
    assert verified.stderr == ""
    here.machine.run("systemctl", "daemon-reload")
    here.machine.run("systemctl", "start", automount)
    here.machine.run("ls", path)
    here.machine.run("systemctl", "stop", automount)
    here.machine.run("systemctl", "stop", mount)
    here.machine.run("rm", f"/etc/systemd/system/{mount}", f"/etc/systemd/system/{automount}")
    here.machine.run("systemctl", "daemon-reload")

    here.machine.sh("cat >/etc/fstab", stdin=written[-1] + "\n")
    here.machine.run("mount", path)
    here.machine.run("umount", path)
    here.machine.sh(": >/etc/fstab; systemctl daemon-reload")
