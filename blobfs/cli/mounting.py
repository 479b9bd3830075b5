"""`blobfs mount`, and `mount.blobfs` as mount(8) calls it."""

import argparse
import os
import re
import subprocess
import sys
from contextlib import suppress
from itertools import chain
from pathlib import Path

from blobfs.cli.verbs import Verbs, add_options
from blobfs.errors import OptionError
from blobfs.mount import EXIT_FAILURE, mount
from blobfs.mountinfo import note_network
from blobfs.options import option_rows, parse_mount, split_options
from blobfs.remounting import remount
from blobfs.session import parse_by_clock


def add(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "mount",
        help="mount a container, or a folder in it",
        description="Mount a container, or a folder in it. Returns when the mount answers.",
        epilog=_options_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_mount_arguments(verb)


def helper_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mount.blobfs",
        description="Mount an Azure Blob container. Called by mount(8).",
        epilog=_options_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_mount_arguments(parser)
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-n", action="store_true", help="accepted: there is no mtab to write")
    parser.add_argument("-t", metavar="TYPE", help="accepted: the type is fuse.blobfs")
    parser.add_argument("-N", metavar="NAMESPACE", help="mount in this mount namespace (a path)")
    parser.set_defaults(noted=True)  # umount(8) will look for a helper, too
    return parser


def _add_mount_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]"
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    add_options(parser, "see below")
    parser.add_argument("-r", "--read-only", action="store_true", help="the same as -o ro")
    parser.add_argument("-w", "--rw", action="store_true", help="the same as -o rw")
    parser.add_argument(
        "-f", "--fake", action="store_true", help="check source, options and token, do not mount"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is mounted where")
    parser.set_defaults(run=_mount, sloppy=False, noted=False)


def _options_help() -> str:
    lines = ["options for -o, separated by commas (defaults in brackets):"]
    for name, default, text in option_rows():
        shown = re.sub(r"(\w+), no\1", r"[no]\1", name)
        lines.append(f"  {shown:<22} {text}" + (f" ({default})" if default else ""))
    lines += [
        "  and what mount(8) and fstab know: _netdev, noauto, nofail, user, x-*, noatime, …",
        "",
        "exit status: 0 mounted, 1 something given is wrong, 32 the mount failed",
    ]
    return "\n".join(lines)


def _mount(chosen: argparse.Namespace) -> int:
    texts = list(chosen.options)
    if chosen.read_only:
        texts.append("ro")
    if chosen.rw:
        texts.append("rw")
    namespace = getattr(chosen, "N", None)
    if namespace:
        _enter_namespace(namespace)
    names = [name for name, _ in chain.from_iterable(map(split_options, texts))]
    if "remount" in names:
        return 0 if chosen.fake else _remount(Path(chosen.mountpoint).absolute(), names)
    options = parse_by_clock(
        lambda now: parse_mount(
            chosen.source, chosen.mountpoint, texts, now=now, sloppy=chosen.sloppy
        )
    )
    if chosen.verbose:
        print(f"blobfs: {options.source.display} on {options.mountpoint}", file=sys.stderr)
    if chosen.fake:
        return 0
    status = mount(options)
    if status == 0 and chosen.noted and not options.foreground and os.geteuid() == 0:
        with suppress(subprocess.TimeoutExpired):
            note_network(options.source.display, options.mountpoint)
    return status


def _remount(mountpoint: Path, names: list[str]) -> int:
    try:
        remount(mountpoint, names)
    except OSError as exc:
        print(f"blobfs: cannot remount {mountpoint}: {exc.strerror}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _enter_namespace(path: str) -> None:
    """Raises OptionError when this process may not enter it, or Python is older than 3.12."""
    setns = getattr(os, "setns", None)
    if setns is None:
        raise OptionError("-N needs Python 3.12; use: nsenter --mount=… mount …")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(descriptor, os.CLONE_NEWNS)  # type: ignore[attr-defined]  # Python 3.12
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise OptionError(f"-N {path}: {exc.strerror}") from None
