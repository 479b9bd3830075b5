"""`blobfs recover`: what failed closes left in the spool directory."""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import trio

from blobfs.cli.verbs import Verbs, add_options
from blobfs.envelope import Protocol
from blobfs.errors import (
    BlobfsError,
    OptionError,
    RecoveryError,
    ServiceError,
    UsageError,
    root_cause,
)
from blobfs.mount import EXIT_FAILURE, EXIT_USAGE
from blobfs.options import MountOptions, parse_source, split_options
from blobfs.recovering import Recovery, discard
from blobfs.recovery import RecoveryFile, read_description, recovery_files
from blobfs.sas import redact
from blobfs.session import open_session, parse_by_clock
from blobfs.source import Source
from blobfs.values import default_spool_dir
from blobfs.writer import WritePolicy

_OPTIONS_HELP = "as for blobfs mount: sas_file= (or another way to give the token) and key_file="


def add(verbs: Verbs) -> None:
    recover = verbs.add_parser(
        "recover",
        help="list, store or discard what failed closes left",
        description="What could not be stored when a file was closed lies, encrypted, in recovery "
        "files in the spool directory. List them, store them, or discard them.",
    )
    recover.add_argument(
        "--spool-dir",
        type=Path,
        default=default_spool_dir(),
        metavar="DIR",
        help="where they are: the spool_dir of the mount (default: %(default)s)",
    )
    recover_verbs = recover.add_subparsers(metavar="VERB", required=True)
    verb = recover_verbs.add_parser(
        "list",
        help="say what there is",
        description="One line for each file. With -o sas_file=…,key_file=… also what has become of "
        "the name since.",
    )
    _add_files(verb)
    add_options(verb, _OPTIONS_HELP)
    verb.set_defaults(run=_list)
    verb = recover_verbs.add_parser(
        "upload",
        help="store them",
        description="Store files under their names, in the containers that they were written for; "
        "beside the name when there is another version by now. A file is removed when the service "
        "has its content.",
    )
    _add_files(verb)
    add_options(verb, _OPTIONS_HELP)
    verb.add_argument("--all", action="store_true", help="all files in the spool directory")
    verb.add_argument(
        "--overwrite", action="store_true", help="replace the version that others made since"
    )
    verb.add_argument(
        "--accept-holes",
        action="store_true",
        help="store zeros for what is not known any more, rather than refuse",
    )
    verb.set_defaults(run=_upload)
    verb = recover_verbs.add_parser(
        "discard", help="remove them", description="Remove files; what they hold is lost."
    )
    _add_files(verb)
    verb.add_argument("--all", action="store_true", help="all files in the spool directory")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    verb.set_defaults(run=_discard)


def _add_files(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "files", nargs="*", metavar="FILE", help="a path, or a name in the spool directory"
    )


def _named(chosen: argparse.Namespace) -> list[Path]:
    """The files that the command is about. Raises OptionError when it names none."""
    if chosen.all == bool(chosen.files):
        raise OptionError("name the recovery files, or give --all")
    return _paths(chosen)


def _paths(chosen: argparse.Namespace) -> list[Path]:
    if not chosen.files:
        return recovery_files(chosen.spool_dir)
    return [Path(name) if os.sep in name else chosen.spool_dir / name for name in chosen.files]


def _list(chosen: argparse.Namespace) -> int:
    paths = _paths(chosen)
    if not paths:
        print(f"no recovery files in {chosen.spool_dir}")
    for path in paths:
        try:
            file = read_description(path)
        except RecoveryError as exc:
            print(exc)
            continue
        state = f", {_state(file, chosen.options)}" if chosen.options else ""
        print(f"{path.name}: {_line(file)}{state}")
    return 0


def _line(file: RecoveryFile) -> str:
    gaps = sum(size for _, size in file.unknown)
    whole = f"complete but for {gaps} bytes of the version below" if gaps else "complete"
    where = f"{file.container_url}/{file.name}"
    return f"{where!r}, {file.plain_size} bytes, {file.created}, {file.reason}, {whole}"


def _state(file: RecoveryFile, options: list[str]) -> str:
    try:
        return _in_session(file, options, lambda recovery: recovery.state(file))
    except ServiceError as exc:
        return f"and the service says: {redact(str(exc))}"


def _upload(chosen: argparse.Namespace) -> int:
    return _each(
        _named(chosen),
        lambda path: _in_session(
            read_description(path),
            chosen.options,
            lambda recovery: recovery.upload(
                path, overwrite=chosen.overwrite, accept_holes=chosen.accept_holes
            ),
        ),
    )


def _discard(chosen: argparse.Namespace) -> int:
    paths = _named(chosen)
    if not chosen.yes and not _agreed(paths):
        raise OptionError("nothing was discarded: give --yes, or answer yes on a terminal")

    def remove(path: Path) -> str:
        discard(path)
        return "discarded"

    return _each(paths, remove)


def _agreed(paths: list[Path]) -> bool:
    if not sys.stdin.isatty():
        return False
    for path in paths:
        print(path)
    return input(f"Discard {len(paths)} recovery files for good? [yes/no] ").strip() == "yes"


def _each(paths: list[Path], work: Callable[[Path], str]) -> int:
    """Say of each file what was done, or why not; one that fails keeps no other from its turn."""
    status = 0
    for path in paths:
        try:
            print(f"{path.name}: {work(path)}", flush=True)
        except Exception as exc:
            cause = root_cause(exc)
            if not isinstance(cause, BlobfsError | OSError):
                raise
            print(f"blobfs: {path.name}: {redact(str(cause))}", file=sys.stderr)
            failure = EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILURE
            status = max(status, failure)
    return status


def _in_session(
    file: RecoveryFile, options: list[str], work: Callable[[Recovery], Awaitable[str]]
) -> str:
    """What `work` returns, in the container that the file was written for."""
    parsed = parse_by_clock(lambda now: parse_source(_source(file, options), options, now=now))
    return trio.run(_run, file, parsed, work)


def _source(file: RecoveryFile, options: list[str]) -> str:
    """The file's own container; its folder, since the token may be for no more than that; or, with
    a sas_dir, the account."""
    if any(name == "sas_dir" for text in options for name, _ in split_options(text)):
        return f"{Source.parse(file.container_url).endpoint}/"
    folder = file.name.rpartition("/")[0]
    return f"{file.container_url}/{quote(folder)}" if folder else file.container_url


async def _run(
    file: RecoveryFile, options: MountOptions, work: Callable[[Recovery], Awaitable[str]]
) -> str:
    async with open_session(options) as session:
        for place in session.places:
            if place.container.url == file.container_url:
                policy = WritePolicy(Protocol(options.protocol), options.region_size)
                recovery = Recovery(
                    place.container, session.keyring, policy, timeout=options.timeout
                )
                return await work(recovery)
    raise RecoveryError(f"there is no token for {file.container_url}")
