"""The command line: `blobfs VERB …`, and `mount.blobfs` as mount(8) calls it."""

import argparse
import sys
from collections.abc import Sequence

from blobfs import __version__, sas
from blobfs.cli import (
    doctor,
    keys,
    mounting,
    recover,
    status,
    system,
    tokens,
    unmounting,
    upkeep,
)
from blobfs.errors import BlobfsError, UsageError
from blobfs.hardening import harden
from blobfs.mount import EXIT_FAILURE, EXIT_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """The `blobfs` command; its exit status."""
    parser, verbs = _parser()
    arguments = _arguments(argv)
    # `blobfs SOURCE MOUNTPOINT` is `blobfs mount SOURCE MOUNTPOINT`.
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        arguments.insert(0, "mount")
    return _reporting(parser.parse_args(arguments))


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """`mount.blobfs` and `mount.fuse.blobfs`: the arguments are those that mount(8) passes."""
    chosen = mounting.helper_parser().parse_args(_arguments(argv))
    return _reporting(chosen)


def umount_helper(argv: Sequence[str] | None = None) -> int:
    """`umount.blobfs` and `umount.fuse.blobfs`: the arguments are those that umount(8) passes."""
    chosen = unmounting.helper_parser().parse_args(_arguments(argv))
    return _reporting(chosen)


def _arguments(argv: Sequence[str] | None) -> list[str]:
    """What the command line says, of a process that is then ours to harden; or `argv`."""
    if argv is not None:
        return list(argv)
    harden()
    return sys.argv[1:]


def _reporting(chosen: argparse.Namespace) -> int:
    try:
        status: int = chosen.run(chosen)
    except BlobfsError as exc:
        print(f"blobfs: {sas.redact(str(exc))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(exc, UsageError) else EXIT_FAILURE
    except BrokenPipeError:
        return EXIT_USAGE
    return status


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 14  # the verbs, whose indentation argparse does not count


def command_parser() -> argparse.ArgumentParser:
    """The parser of the `blobfs` command."""
    return _parser()[0]


def _parser() -> tuple[argparse.ArgumentParser, frozenset[str]]:
    parser = argparse.ArgumentParser(
        prog="blobfs",
        description="Mount an Azure Blob container as a file system that encrypts on the client.",
        epilog="blobfs SOURCE MOUNTPOINT -o OPTIONS is short for blobfs mount.",
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"blobfs {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (mounting, status, doctor, upkeep, recover, keys, tokens, system):
        module.add(verbs)
    parser.set_defaults(program=parser)  # for what is generated from it
    return parser, frozenset(verbs.choices)
