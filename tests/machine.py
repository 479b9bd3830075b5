"""A machine of a test's own: this one's files under an overlay, in namespaces of its own, with a
systemd of its own if asked for.

    with machine(tmp_path, systemd=True) as m:
        m.run("systemctl", "start", "mnt-data.automount")

With `root`, another folder's files instead of this machine's, and nothing of the project.

What is changed there, in /etc and /sbin too, is gone with it. Its /dev, /run, /tmp, /var/tmp and
/var/log are empty at first: a systemd that shared /tmp would empty this machine's. It has this
machine's network, the project and `tmp_path`. Whatever happens, no process and no mount stays.
"""

import os
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.mounts import ROOT, let_users_mount

START_LIMIT_S = 60
COMMAND_LIMIT_S = 60
WAIT_LIMIT_S = 30

# No systemd-tmpfiles, sysctl, remount-fs or udev among them: only the units that are listed run.
_UNITS = (
    *("basic.target", "sysinit.target", "shutdown.target", "umount.target", "final.target"),
    *("local-fs-pre.target", "local-fs.target", "sockets.target", "timers.target", "paths.target"),
    *("remote-fs-pre.target", "remote-fs.target", "network.target", "network-online.target"),
    *("slices.target", "multi-user.target", "halt.target", "time-set.target"),
    *("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"),
)
_TARGET = """
[Unit]
Description=The machine of a test
Requires=basic.target systemd-journald.service
After=basic.target systemd-journald.service
AllowIsolate=yes
"""
# isolated by a test instead of a shutdown, which ends with systemd-shutdown for the whole machine
_POWER_OFF = """
[Unit]
Description=All units stopped, as before the power is switched off
DefaultDependencies=no
Requires=umount.target final.target shutdown.target
After=umount.target final.target shutdown.target
AllowIsolate=yes
"""

_SET_UP = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$STATE"
mkdir "$STATE/upper" "$STATE/work" "$STATE/root"
layers=lowerdir=$LOWER,upperdir=$STATE/upper,workdir=$STATE/work
mount -t overlay overlay -o "$layers" "$STATE/root"
cd "$STATE/root"
for dir in dev run tmp var/tmp var/log; do mount -t tmpfs -o mode=755 tmpfs $dir; done
chmod 1777 tmp var/tmp
for node in null zero full random urandom tty fuse autofs; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir dev/pts dev/shm
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
touch dev/console
mount --bind "$CONSOLE" dev/console
mount -t proc proc proc
mount --rbind /sys sys
if ((${#CGROUPS[@]})); then
    [[ -e /sys/fs/cgroup/cgroup.procs ]] || mount -t tmpfs tmpfs sys/fs/cgroup
    for hierarchy in "${!CGROUPS[@]}"; do
        mkdir -p "sys/fs/cgroup/$hierarchy"
        mount --bind "${CGROUPS[$hierarchy]}" "sys/fs/cgroup/$hierarchy"
    done
fi
for dir in "${CODE[@]}" "$TEST"; do
    mkdir -p ".$dir"
    mount --bind "$dir" ".$dir"
done
for dir in "${CODE[@]}"; do mount -o remount,bind,ro ".$dir"; done
mkdir old
pivot_root . old
cd /
umount -l old
rmdir old
: >/etc/fstab
# other users shall reach the interpreter, wherever it lies; what is shared is not changed
for dir in "${CODE[@]}" "$INTERPRETER"; do
    while [[ $dir != / ]]; do
        dir=$(dirname "$dir")
        chmod o+x "$dir" 2>/dev/null || true
    done
done
test ! -e /tmp/blobfs-marker || { echo "/tmp is the machine's own" >&2; exit 1; }
"""

_BOOT = r"""
mount --make-rshared /  # as systemd does where it is not in a container; LoadCredential= needs it
mkdir -p /run/systemd/system
for unit in $UNITS; do ln -s /lib/systemd/system/$unit /run/systemd/system/; done
mkdir /run/systemd/system/sockets.target.wants
ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket \
    /run/systemd/system/sockets.target.wants/
printf %s "$TARGET" >/run/systemd/system/test.target
printf %s "$POWER_OFF" >/run/systemd/system/test-off.target
# what is mounted already stays until the end
findmnt -rno TARGET | while read -r dir; do
    drop_in=/run/systemd/system/$(systemd-escape --path --suffix=mount "$(printf %b "$dir")").d
    mkdir -p "$drop_in"
    printf '[Unit]\nDefaultDependencies=no\nIgnoreOnIsolate=yes\n' >"$drop_in/stay.conf"
done
path=/etc/systemd/system:/run/systemd/system:/run/systemd/generator:/usr/local/lib/systemd/system
rm -rf /etc/systemd/system/*
exec env -i container=blobfs-test SYSTEMD_UNIT_PATH=$path \
    /lib/systemd/systemd --system --unit=test.target --log-target=console
"""

# As process 1 it takes in, and so reaps, what daemons leave behind.
_IDLE = r"""
exec setpriv --pdeathsig KILL bash -c 'echo up; while :; do sleep 1000 & wait; done'
"""


class Machine:
    """See the module. `pid` is that of its process 1, seen from here."""

    def __init__(self, tmp_path: Path, *, systemd: bool = False, root: Path | None = None) -> None:
        self._systemd = systemd
        self._root = root
        self._state = tmp_path / f"machine-{secrets.token_hex(4)}"
        self._state.mkdir()
        self.console = tmp_path / f"{self._state.name}.console"
        self._test = tmp_path
        self._cgroups: dict[str, Path] = {}
        self._process: subprocess.Popen[str] | None = None
        self.pid = 0

    def start(self) -> None:
        self._cgroups = dict(_new_cgroups()) if self._systemd else {}
        self.console.touch()
        let_users_mount()
        cgroups = " ".join(f"[{name}]={path}" for name, path in self._cgroups.items())
        script = f"CONSOLE={self.console}\nSTATE={self._state}\nTEST={self._test}\n"
        if self._root is None:
            script += f"LOWER=/\nCODE=({shlex.quote(str(ROOT))} {shlex.quote(sys.prefix)})\n"
            script += f"INTERPRETER={shlex.quote(sys.base_prefix)}/bin\n"
        else:
            script += f"LOWER={shlex.quote(str(self._root))}\nCODE=()\nINTERPRETER=/\n"
        script += f"declare -A CGROUPS=({cgroups})\n{_SET_UP}"
        if self._systemd:
            script += f"UNITS={shlex.quote(' '.join(_UNITS))}\nTARGET={shlex.quote(_TARGET)}\n"
            script += f"POWER_OFF={shlex.quote(_POWER_OFF)}\n{_BOOT}"
        else:
            script += _IDLE
        joins = "".join(f"echo $$ >{path}/cgroup.procs; " for path in self._cgroups.values())
        # fmt: off
        self._process = subprocess.Popen(
            [
                "setpriv", "--pdeathsig", "KILL", "bash", "-c", f'{joins}exec "$@"', "bash",
                "unshare", "--fork", "--kill-child=SIGKILL", "--pid", "--mount", "--uts", "--ipc",
                "--cgroup", "--mount-proc", "--propagation", "private", "bash", "-c", script,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )
        # fmt: on
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_LIMIT_S
        if not self._systemd:
            said = self._process.stdout.readline()
            assert said == "up\n", said + self._process.stdout.read()
        while True:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            if self._process.poll() is not None:
                said = self._process.stdout.read() + self.console.read_text()
                raise RuntimeError(f"no machine: {said}")
            if pids := children.read_text().split():
                self.pid = int(pids[0])
                if not self._systemd:
                    return
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return
            assert time.monotonic() < deadline, "systemd is not up"
            time.sleep(0.05)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        user: int | None = None,
        env: dict[str, str] | None = None,
        stdin: str = "",
        limit: int = COMMAND_LIMIT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end, for `limit` seconds at most, as root or `user`; `env`
        replaces the environment."""
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}"]
        if user is not None:
            as_user.append("--clear-groups")
        done = subprocess.run(
            # a time limit from inside: who is killed here leaves a child there
            [
                *self.enter(),
                "timeout",
                "-k",
                "5",
                str(limit),
                *as_user,
                *map(str, command),
            ],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)} if env is None else env,
            timeout=limit + 10,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command} ended with {done.returncode}: {done}")
        return done

    def enter(self) -> list[str]:
        """The words before a command that is to run there."""
        return ["/usr/bin/nsenter", "-t", str(self.pid), "-m", "-p", "-C", "-i", "-u"]

    def sh(self, script: str, **kwargs: object) -> str:
        """Run a shell script there; its standard output."""
        return self.run("bash", "-euc", script, **kwargs).stdout  # type: ignore[arg-type]

    def fstypes_at(self, path: Path | str) -> list[str]:
        """The file system types mounted there, lowest first."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        found = [line.partition(" - ") for line in lines]
        return [after.split()[0] for before, _, after in found if before.split()[4] == str(path)]

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Until `condition()` is true."""
        deadline = time.monotonic() + WAIT_LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_LIMIT_S} s: {what}"
            time.sleep(0.05)

    def processes(self, words: str) -> list[int]:
        """Those there with `words` in their command line, by their numbers there."""
        # by the environment, so that no command line of ours has them
        env = {**os.environ, "WORDS": words}
        found = self.run("sh", "-c", 'pgrep -f -- "$WORDS"', check=False, env=env).stdout.split()
        return [int(pid) for pid in found]

    def end(self) -> None:
        """Everything in it is killed: process 1 takes its namespace along."""
        if self._process is not None:
            if self.pid:
                with suppress(ProcessLookupError):
                    process = os.pidfd_open(self.pid)
                    os.kill(self.pid, signal.SIGKILL)
                    select.select([process], [], [], COMMAND_LIMIT_S)
                    os.close(process)
            self._process.kill()
            self._process.communicate()
        for cgroup in self._cgroups.values():
            below = [Path(path) for path, _, _ in os.walk(cgroup, topdown=False)]
            for path in below:
                path.rmdir()
        self._state.rmdir()
        self.console.unlink(missing_ok=True)


def _new_cgroups() -> Iterable[tuple[str, Path]]:
    """A cgroup in each hierarchy that a systemd may put its units into (cgroups(7)), by its name
    below /sys/fs/cgroup. A cpuset of version 1 cannot be joined as it is made; systemd has no use
    for it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in [controllers.removeprefix("name=")] if controllers else ["unified", "."]:
            hierarchy = Path("/sys/fs/cgroup", name)
            if name != "cpuset" and (hierarchy / "cgroup.procs").exists():
                new = hierarchy / path.lstrip("/") / f"blobfs-test-{secrets.token_hex(4)}"
                new.mkdir()
                yield name, new
                break


@contextmanager
def machine(
    tmp_path: Path, *, systemd: bool = False, root: Path | None = None
) -> Iterator[Machine]:
    made = Machine(tmp_path, systemd=systemd, root=root)
    try:
        made.start()
        yield made
    finally:
        made.end()
