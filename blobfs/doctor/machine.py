"""What every mount needs of this machine."""

import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blobfs import __version__
from blobfs.doctor.findings import Findings

LIBRARIES = (
    *("pyfuse3", "trio", "httpx", "cryptography", "cachetools", "jwcrypto"),
    *("prometheus-client", "h11", "tqdm"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look; `search` is the PATH for programs."""

    uid: int
    search: str
    dev_fuse: Path = Path("/dev/fuse")
    fuse_conf: Path = Path("/etc/fuse.conf")
    apparmor_enabled: Path = Path("/sys/module/apparmor/parameters/enabled")
    apparmor_profiles: Path = Path("/etc/apparmor.d")
    libraries: tuple[str, ...] = LIBRARIES

    @property
    def is_root(self) -> bool:
        return self.uid == 0


def examine_machine(machine: Machine, findings: Findings, *, allow_other: bool) -> None:
    """`allow_other` is whether the mount is to let other users in."""
    checks: tuple[tuple[str, Callable[[], None]], ...] = (
        ("/dev/fuse", lambda: _device(machine, findings)),
        ("fusermount3", lambda: _fusermount(machine, findings)),
        ("fuse.conf", lambda: _fuse_conf(machine, findings, allow_other)),
        ("AppArmor", lambda: _apparmor(machine, findings)),
        ("versions", lambda: _versions(machine, findings)),
    )
    for name, check in checks:
        findings.begin(name)
        check()


def _device(machine: Machine, findings: Findings) -> None:
    path = machine.dev_fuse
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        problem = f"{path}: {exc.strerror}"
        advice = "modprobe fuse; in a container: start it with --device /dev/fuse"
        if exc.errno in (errno.EACCES, errno.EPERM):
            advice = f"as root: chmod 666 {path}, as udev does where it runs"
        findings.wrong("/dev/fuse", problem, advice)
    else:
        if stat.S_ISCHR(path.stat().st_mode):
            findings.ok("/dev/fuse", "can be opened")
        else:
            findings.wrong("/dev/fuse", f"{path} is no device", f"rm {path}; modprobe fuse")


def _fusermount(machine: Machine, findings: Findings) -> None:
    # Root mounts without it, so for root it is good to have.
    complain = findings.warn if machine.is_root else findings.wrong
    program = shutil.which("fusermount3", path=machine.search)
    if program is None:
        complain(
            "fusermount3",
            "is not installed: users who are not root can neither mount nor unmount",
            "apt-get install fuse3",
        )
        return
    status = os.stat(program)
    if status.st_uid != 0 or not status.st_mode & stat.S_ISUID:
        complain(
            "fusermount3",
            f"{program} is not setuid root: users who are not root cannot mount",
            f"as root: chown root {program} && chmod 4755 {program}",
        )
        return
    findings.ok("fusermount3", f"{program}, setuid root")


def _fuse_conf(machine: Machine, findings: Findings, allow_other: bool) -> None:
    try:
        lines = [line.strip() for line in machine.fuse_conf.read_text().splitlines()]
    except OSError:
        lines = []
    if machine.is_root:
        findings.ok("fuse.conf", "root may use allow_other in any case")
    elif "user_allow_other" in lines:
        findings.ok("fuse.conf", "user_allow_other is set, so this user may use allow_other")
    elif allow_other:
        findings.wrong(
            "fuse.conf",
            f"user_allow_other is not set in {machine.fuse_conf}: allow_other is refused",
            f"as root: echo user_allow_other >>{machine.fuse_conf}",
        )
    else:
        findings.ok("fuse.conf", "user_allow_other is not set, and allow_other not asked for")


def _apparmor(machine: Machine, findings: Findings) -> None:
    try:
        enabled = machine.apparmor_enabled.read_text().strip() == "Y"
    except OSError:
        enabled = False
    profiles = machine.apparmor_profiles
    confined = (profiles / "fusermount3").exists() and not (
        profiles / "disable/fusermount3"
    ).exists()
    local = profiles / "local/fusermount3"
    if not enabled or not confined:
        findings.ok("AppArmor", "does not confine fusermount3")
    elif machine.is_root:
        findings.ok("AppArmor", "confines fusermount3, which root's mounts do not need")
    elif local.exists() and "mount" in local.read_text(errors="replace"):
        findings.ok("AppArmor", f"confines fusermount3; {local} has rules of this machine")
    else:
        findings.warn(
            "AppArmor",
            "lets fusermount3 mount in some places only: $HOME, /mnt, /media, /tmp",
            f"mount there, or as root add to {local}: mount fstype=fuse.blobfs "
            "options=(nosuid,nodev) -> /YOUR/PLACE/**/, umount /YOUR/PLACE/**/, "
            "then apparmor_parser -r /etc/apparmor.d/fusermount3",
        )


def _versions(machine: Machine, findings: Findings) -> None:
    versions = {"blobfs": __version__, "Python": platform.python_version()}
    versions |= {"Linux": platform.release(), "libfuse": _libfuse()}
    missing = []
    for library in machine.libraries:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            missing.append(library)
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        advice = "install blobfs again: pip install --force-reinstall blobfs"
        findings.wrong("versions", f"{', '.join(missing)}: not installed; {text}", advice)
    else:
        findings.ok("versions", text)


def _libfuse() -> str:
    """The version of the library that pyfuse3 is linked with, as it says itself."""
    spec = importlib.util.find_spec("pyfuse3")
    try:
        version = ctypes.CDLL(str(spec and spec.origin)).fuse_pkgversion
    except (OSError, AttributeError):
        return "unknown"
    version.restype = ctypes.c_char_p
    return bytes(version()).decode()
