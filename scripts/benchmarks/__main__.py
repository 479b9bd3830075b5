"""The command line of `scripts/bench`."""

import argparse
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from scripts.benchmarks import machine, peers
from scripts.benchmarks.picture import draw
from scripts.benchmarks.results import Result, misses, table, to_json
from scripts.benchmarks.runner import Runner, say
from scripts.benchmarks.services import ROOT
from scripts.benchmarks.sources import Scale
from scripts.benchmarks.workloads import WORKLOADS, Workload

HOME = ROOT / ".bench"

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.list:
        for workload in WORKLOADS:
            print(f"{workload.name:14} {workload.title(Scale(quick=arguments.quick))}")
        return 0
    chosen = _chosen(arguments.names)
    services = arguments.service or (
        ["azurite", "azurite+10ms", "ceiling"] if arguments.quick else list(_services(WORKLOADS))
    )
    for number in _ENDING:
        signal.signal(number, _end)
    HOME.mkdir(exist_ok=True)
    lock = (HOME / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("bench: another one is running, and each would measure the other")
    for left in HOME.glob("run-*"):  # of one that was killed
        shutil.rmtree(left)
    _enter_own_network()
    description = _description(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    work = Path(tempfile.mkdtemp(prefix="run-", dir=HOME))
    try:
        with Runner(
            work,
            Scale(quick=arguments.quick),
            rounds=arguments.rounds or (1 if arguments.quick else 5),
            budget_s=_budget_s(arguments),
            limit_s=60 if arguments.quick else 1800,
            mount_options=arguments.options,
        ) as runner:
            for workload in chosen:
                for service in workload.services:
                    if service not in services:
                        continue
                    say(f"{workload.name} on {service}")
                    results += runner.measure(workload, service)
                    (arguments.output / "results.json").write_text(to_json(description, results))
    finally:
        shutil.rmtree(work)
    print("  ".join(f"{key}: {value}" for key, value in description.items()))
    print(table(results))
    draw(
        description,
        results,
        [arguments.output / "results.svg", arguments.output / "results.png"],
    )
    missed = misses(results)
    if missed:
        print("\nGoals missed:", *missed, sep="\n  ")
    failed = [result for result in results if result.peer == "blobfs" and result.error]
    return 1 if failed else 0


def _budget_s(arguments: argparse.Namespace) -> float:
    """For the rounds of one workload on one service: more where more rounds were asked for."""
    if not arguments.quick:
        return 120
    return 5 if arguments.rounds is None else 15


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure blobfs beside rclone and, on a ceiling, curl. Prints a table and "
        "leaves results.json, results.svg and results.png in the output folder.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="workloads; all by default")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    parser.add_argument("--quick", action="store_true", help="all of them, small, within 5 minutes")
    parser.add_argument("--rounds", type=int, help="how often to measure, if time allows")
    parser.add_argument(
        "--service", action="append", choices=list(_services(WORKLOADS)), help="only on this one"
    )
    parser.add_argument(
        "--options",
        type=lambda text: text.split(","),
        default=[],
        help="mount blobfs with these, as after -o",
    )
    parser.add_argument("--output", type=Path, default=HOME, help="folder of the results")
    return parser


def _services(workloads: Sequence[Workload]) -> dict[str, None]:
    return dict.fromkeys(service for workload in workloads for service in workload.services)


def _chosen(names: list[str]) -> list[Workload]:
    known = {workload.name: workload for workload in WORKLOADS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"bench: no workload {unknown[0]!r}; scripts/bench --list shows them")
    return [workload for workload in WORKLOADS if not names or workload.name in names]


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, once: the next Ctrl-C would leave behind what the first has yet to end."""
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)
    say(f"ended by {signal.Signals(number).name}")
    raise KeyboardInterrupt


def _enter_own_network() -> None:
    """A network of our own that is loopback alone: nothing can leave the machine, and no other
    program's bytes are counted. Only root can have one; others count what everyone sends."""
    if os.geteuid() != 0:
        say("not root: bytes on Azurite as is are those of every program that uses loopback")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        up = struct.pack("16sh14x", b"lo", flags | IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, up)


def _description(arguments: argparse.Namespace) -> dict[str, str]:
    def first_line(*argv: str | Path) -> str:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).partition("\n")[0].strip()

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **machine.description(),
        "blobfs": first_line("git", "describe", "--always", "--dirty"),
        "options": ",".join(arguments.options) or "default",
        "rclone": first_line(peers.rclone(), "version").removeprefix("rclone "),
        "nginx": first_line("nginx", "-v").removeprefix("nginx version: "),
        "fio": first_line("fio", "--version"),
        "sizes": "quick" if arguments.quick else "full",
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
