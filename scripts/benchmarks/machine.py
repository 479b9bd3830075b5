"""Processes: started so that none outlives us, and what the kernel counts of them."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# TERM when we are killed: a mount's daemon then unmounts, nginx ends its workers.
DIE_WITH_US = ("setpriv", "--pdeathsig", "TERM")

END_LIMIT_S = 20

_TICK = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """A workload's command ended with a status other than 0, or not in time."""


class NotInTime(CommandFailed):
    pass


class Usage(NamedTuple):
    cpu_s: float
    peak_bytes: int


def usage(pid: int) -> Usage:
    """CPU time since the start, and the most memory held at once, of a process and its threads."""
    # the name, in parentheses, may hold blanks
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage((int(stat[11]) + int(stat[12])) / _TICK, 1024 * _status(pid, "VmHWM"))


def resident_bytes(pid: int) -> int:
    return 1024 * _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise LookupError(f"process {pid} has no {field}")


def loopback_bytes() -> int:
    """Bytes that have crossed the loopback interface of our network namespace."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise LookupError("there is no loopback interface")


def end(process: subprocess.Popen[bytes]) -> None:
    """TERM, then KILL; returns when it has ended."""
    process.terminate()
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path], log: Path, **kw: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A service of ours, in a session of its own: Ctrl-C is for us, and we end it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*DIE_WITH_US, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **kw,  # type: ignore[call-overload]
        )
    try:
        yield process
    finally:
        end(process)


class Commands:
    """The commands of a workload. `reap()` waits a while for those that were given up.

    One that is stuck in a mount ends only after the mount has, so giving up does not wait.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._given_up: list[subprocess.Popen[str]] = []

    def run(self, *argv: str | Path, cwd: Path | None = None) -> str:
        """The standard output of one command. Raises CommandFailed."""
        return self.run_all([list(argv)], cwd)[0]

    def run_all(
        self, commands: Sequence[Sequence[str | Path]], cwd: Path | None = None
    ) -> list[str]:
        """The same for several at once."""
        deadline = time.monotonic() + self._limit_s
        processes: list[subprocess.Popen[str]] = []
        try:
            processes.extend(self._start(argv, cwd) for argv in commands)
            return [self._finish(process, deadline) for process in processes]
        except BaseException:
            for process in processes:
                process.kill()
            self._given_up += processes
            raise

    def _start(self, argv: Sequence[str | Path], cwd: Path | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )

    def _finish(self, process: subprocess.Popen[str], deadline: float) -> str:
        program = str(process.args[0])  # type: ignore[index]
        try:
            stdout, stderr = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise NotInTime(f"{program}: not done after {self._limit_s:g} s") from None
        if process.returncode != 0:
            reason = (stderr.strip().splitlines() or [f"exit status {process.returncode}"])[0]
            raise CommandFailed(f"{program}: {reason}")
        return stdout

    def reap(self) -> None:
        for process in self._given_up:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=END_LIMIT_S)
        self._given_up.clear()


def description() -> dict[str, str]:
    """What the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((x.partition(":")[2] for x in info.splitlines() if x.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{model.strip() or platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
