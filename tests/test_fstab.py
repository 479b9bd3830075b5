"""mount(8), umount(8) and fstab, on a machine where `blobfs install` has run, as root and as a
user: each with an environment as poor as at boot."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.installed import MNT, Installed, installed

pytestmark = pytest.mark.mount

USER = 65534
HOME = "/home/somebody"

NO_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture(scope="module")
def shared(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with installed(azurite, tmp_path_factory.mktemp("fstab")) as made:
        made.machine.sh(
            f"mkdir -p {HOME}/mnt; cp -p /etc/blobfs/data.* {HOME}; chown -R {USER} {HOME}"
        )
        yield made


@pytest.fixture
def here(shared: Installed) -> Iterator[Installed]:
    """Nothing mounted, before and after, and no fstab."""
    yield shared
    shared.machine.sh(
        f": >/etc/fstab; for m in {MNT} {HOME}/mnt; do ! mountpoint -q $m || umount $m; done"
    )
    assert shared.daemons == []


def mount(here: Installed, *more: str) -> None:
    here.machine.run("mount", "-t", "blobfs", here.source, MNT, "-o", here.options, *more)


def fstab(here: Installed, options: str = "", mountpoint: str = MNT) -> None:
    line = f"{here.source} {mountpoint} blobfs {here.options}{options} 0 0\n"
    here.machine.sh("cat >>/etc/fstab", stdin=line)


# --- mount -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["blobfs", "fuse.blobfs"])
def test_mount_with_a_type(here: Installed, fstype: str) -> None:
    here.machine.run("mount", "-t", fstype, here.source, MNT, "-o", here.options)
    assert here.is_mounted
    assert here.machine.sh(f"echo stored >{MNT}/file; cat {MNT}/file") == "stored\n"


def test_mount_by_a_line_in_fstab(here: Installed) -> None:
    fstab(here, ",noauto")
    here.machine.run("mount", MNT)
    assert here.is_mounted


def test_mount_a_mounts_once(here: Installed) -> None:
    fstab(here, ",_netdev,nofail")
    here.machine.run("mount", "-a")
    here.machine.run("mount", "-a")
    assert here.machine.fstypes_at(MNT) == ["fuse.blobfs"]
    assert len(here.daemons) == 1


def test_mount_without_home_path_terminal_or_permissive_umask(here: Installed) -> None:
    fstab(here, ",_netdev")
    here.machine.run(
        "/bin/sh", "-c", "umask 0777; cd /; setsid /bin/mount -a </dev/null", env=NO_ENVIRONMENT
    )
    assert here.is_mounted
    here.machine.sh(f"echo stored >{MNT}/file")
    here.machine.run("/bin/umount", MNT, env=NO_ENVIRONMENT)
    assert here.daemons == []


def test_mount_on_a_read_only_root(here: Installed) -> None:
    fstab(here, ",spool_dir=/run/blobfs")
    here.machine.run(
        "unshare",
        "--mount",
        "sh",
        "-euc",
        f"mount -o remount,bind,ro /; ! touch /x; mount {MNT}; ls {MNT}; umount {MNT}",
    )
    assert here.daemons == []


def test_fake_and_verbose(here: Installed) -> None:
    fstab(here, ",noauto")
    done = here.machine.run("mount", "-f", "-v", MNT)
    assert f"blobfs: {here.source} on {MNT}\n" in done.stderr
    assert not here.is_mounted


def test_a_failure_is_one_line_and_an_exit_status(here: Installed) -> None:
    fstab(here, ",metadata_ttl=soon")
    done = here.machine.run("mount", MNT, check=False)
    assert done.returncode == 1
    assert re.fullmatch("blobfs: the option metadata_ttl='soon' is wrong: .*\n", done.stderr)


def test_the_read_ahead_is_raised_by_root(here: Installed) -> None:
    mount(here)
    device = here.machine.run("mountpoint", "-d", MNT).stdout.strip()
    assert here.machine.sh(f"cat /sys/class/bdi/{device}/read_ahead_kb") == "1024\n"


def test_a_mount_made_by_hand_is_known_to_need_the_network(here: Installed) -> None:
    mount(here)
    assert ",_netdev)" in here.machine.run("mount", "-t", "fuse.blobfs").stdout


def test_a_mount_point_with_blanks_and_other_letters(here: Installed) -> None:
    here.machine.run("mkdir", "-p", "/mnt/ä b")
    fstab(here, mountpoint="/mnt/ä\\040b")
    here.machine.run("mount", "/mnt/ä b")
    again = here.machine.run("mount", "/mnt/ä b", check=False)
    assert "has a blobfs mount already" in again.stderr
    here.machine.run("umount", "/mnt/ä b")
    assert here.machine.processes("/mnt/ä b") == []


# --- remount ---------------------------------------------------------------------------------


def test_remount_changes_what_the_kernel_enforces(here: Installed) -> None:
    fstab(here, ",_netdev")
    here.machine.run("mount", MNT)
    here.machine.run("mount", "-o", "remount,ro", MNT)
    refused = here.machine.run("touch", f"{MNT}/file", check=False)
    assert "Read-only file system" in refused.stderr
    here.machine.run("mount", "-o", "remount,rw,noexec", MNT)
    options = here.machine.run("findmnt", "-no", "OPTIONS", MNT).stdout.split(",")
    assert {"rw", "noexec", "nosuid", "nodev"} <= set(options)
    here.machine.run("touch", f"{MNT}/file")


def test_remount_read_only_is_refused_while_a_file_is_open_for_writing(here: Installed) -> None:
    mount(here)
    script = f"exec 5>{MNT}/file; mount -o remount,ro {MNT}"
    done = here.machine.run("bash", "-c", script, check=False)
    assert done.returncode == 32
    assert f"blobfs: cannot remount {MNT}: Device or resource busy\n" in done.stderr


def test_remount_needs_a_mount(here: Installed) -> None:
    done = here.machine.run("/sbin/mount.blobfs", here.source, MNT, "-o", "remount,ro", check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"blobfs: {MNT} has no blobfs mount to be changed\n",
    )


# --- umount ----------------------------------------------------------------------------------

# Written through a mapping and not synced, then closed: nothing of it is stored by close.
DIRTY = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.truncate(fd, 1 << 20)
memory = mmap.mmap(fd, 1 << 20)
os.close(fd)
memory[:] = b"dirty" + bytes((1 << 20) - 5)
"""


@pytest.mark.parametrize("by", ["hand", "fstab"])
def test_umount_returns_when_everything_is_stored(here: Installed, by: str) -> None:
    if by == "hand":
        mount(here)
    else:
        fstab(here, ",_netdev")
        here.machine.run("mount", MNT)
    name = f"dirty-{by}"
    here.machine.run(sys.executable, "-c", DIRTY, f"{MNT}/{name}")
    here.machine.sh(f"echo new >{MNT}/late-{by}; chmod 640 {MNT}/late-{by}")
    here.machine.run("umount", MNT)
    assert here.daemons == []
    assert {name, f"late-{by}"} <= here.blobs()
    late = here.azurite.sdk(here.container).get_blob_client(f"late-{by}").get_blob_properties()
    assert int(late.metadata["permissions"]) & 0o777 == 0o640
    mount(here)
    assert here.machine.run("head", "-c", "5", f"{MNT}/{name}").stdout == "dirty"


def test_umount_of_a_busy_mount_changes_nothing(here: Installed) -> None:
    mount(here)
    script = f"exec 5>{MNT}/open; echo stored >&5; umount {MNT}; echo $?; echo more >&5"
    done = here.machine.run("bash", "-c", script)
    assert (done.stdout, done.stderr) == ("32\n", f"umount: {MNT}: target is busy.\n")
    assert here.machine.sh(f"cat {MNT}/open") == "stored\nmore\n"


def test_a_lazy_umount_lets_open_files_be_finished(here: Installed) -> None:
    mount(here)
    script = f"exec 5>{MNT}/open; echo stored >&5; umount -l {MNT}; echo more >&5"
    here.machine.run("bash", "-c", script)
    here.machine.wait_for("the daemon ends", lambda: here.daemons == [])
    mount(here)
    assert here.machine.sh(f"cat {MNT}/open") == "stored\nmore\n"


def test_what_is_not_mounted_is_said(here: Installed) -> None:
    done = here.machine.run("/sbin/umount.fuse.blobfs", MNT, check=False)
    assert done.returncode == 1
    assert re.fullmatch(f"blobfs: {MNT} has no blobfs mount; see: .*\n", done.stderr)


def test_after_a_killed_daemon_mount_makes_the_mount_again(here: Installed) -> None:
    mount(here)
    here.machine.sh(f"echo stored >{MNT}/file")
    here.machine.run("kill", "-KILL", *map(str, here.daemons))
    here.machine.wait_for("it has ended", lambda: here.daemons == [])
    broken = here.machine.run("ls", MNT, check=False)
    assert re.search("not connected|connection abort", broken.stderr)
    mount(here)
    assert here.machine.fstypes_at(MNT) == ["fuse.blobfs"]
    assert here.machine.sh(f"cat {MNT}/file") == "stored\n"


# --- users -----------------------------------------------------------------------------------


def test_a_user_mounts_and_unmounts_what_fstab_lets_users(here: Installed) -> None:
    options = f"sas_file={HOME}/data.sas,key_file={HOME}/data.keys,spool_dir={HOME}/spool,user"
    line = f"{here.source} {HOME}/mnt blobfs {options},noauto 0 0\n"
    here.machine.sh("cat >/etc/fstab", stdin=line)
    poor = {"PATH": "/usr/bin:/bin"}
    here.machine.run("mount", f"{HOME}/mnt", user=USER, env=poor)
    here.machine.run("sh", "-c", f"echo stored >{HOME}/mnt/of-a-user", user=USER, env=poor)
    shown = here.machine.run("findmnt", "-no", "OPTIONS", f"{HOME}/mnt").stdout.split(",")
    assert {"nosuid", "nodev", "noexec", f"user_id={USER}"} <= set(shown)
    here.machine.run("umount", f"{HOME}/mnt", user=USER, env=poor)
    assert here.machine.processes(f"{HOME}/mnt") == []
    assert "of-a-user" in here.blobs()


def test_a_user_may_not_mount_what_fstab_does_not_let_users(here: Installed) -> None:
    fstab(here, ",noauto")
    refused = here.machine.run("mount", MNT, user=USER, check=False)
    assert refused.returncode != 0
    assert not here.is_mounted


def test_root_waits_for_the_daemon_of_a_user_too(here: Installed, tmp_path: Path) -> None:
    options = f"sas_file={HOME}/data.sas,key_file={HOME}/data.keys,spool_dir={HOME}/spool"
    blobfs = ["/usr/local/bin/blobfs", here.source, f"{HOME}/mnt", "-o", options]
    here.machine.run(*blobfs, user=USER, env={"PATH": "/usr/bin:/bin"})
    here.machine.run("/sbin/umount.fuse.blobfs", f"{HOME}/mnt")
    assert here.machine.processes(f"{HOME}/mnt") == []
