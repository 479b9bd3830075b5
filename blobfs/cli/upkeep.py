"""`blobfs rekey`, `blobfs reencrypt` and `blobfs verify`: work on stored data without a mount."""

import argparse
import logging
from collections.abc import Awaitable, Callable

import trio

from blobfs import logs
from blobfs.cli.verbs import Verbs, add_source_arguments
from blobfs.envelope import Protocol
from blobfs.errors import BlobfsError, OptionError, SasError, root_cause
from blobfs.mount import EXIT_FAILURE
from blobfs.options import MountOptions, parse_source
from blobfs.session import Session, open_session, parse_by_clock
from blobfs.upkeep import Json, Report, Table, reencrypt, rekey, verify

log = logging.getLogger(__name__)

EXIT_NOTICES = 3
"""Nothing is wrong, and something is worth a look."""

EXIT_LEFT = 4
"""Something is wrong, or is left to be done."""

_STATUS = "exit status: 0 nothing is left, 4 something is, 1 something given is wrong, 32 failure"


def add(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "rekey",
        help="put what is stored under the current key",
        description="Wrap the content keys of all blobs under the current key (key_id=, else the "
        "first of the key file), so that an old key is not needed any more. Only metadata is "
        "written; mounts may be in use. May be interrupted and run again.",
        epilog=_STATUS,
    )
    _add_common(verb)
    _add_dry_run(verb)
    verb.add_argument("--from", dest="only", default="", metavar="KID", help="only from this key")
    verb.set_defaults(run=_rekey)

    verb = verbs.add_parser(
        "reencrypt",
        help="store what is stored in another protocol or region size",
        description="Rewrite every file that is not stored as protocol= and region_size= say, or "
        "has no seal. Each is read back and compared before it replaces the original; "
        "attributes, metadata, headers, tags and tier are kept. May be interrupted and run again.",
        epilog=_STATUS,
    )
    _add_common(verb)
    _add_dry_run(verb)
    verb.add_argument(
        "--protocol", choices=["2.0", "2.1"], help="the same as -o protocol= (default: 2.1)"
    )
    verb.add_argument("--region-size", metavar="N", help="the same as -o region_size=")
    verb.add_argument(
        "--include-plain", action="store_true", help="encrypt what is not encrypted, too"
    )
    verb.set_defaults(run=_reencrypt)

    verb = verbs.add_parser(
        "verify",
        help="check what is stored",
        description="Check every blob's metadata, key, seal and size, and say what lies about that "
        "should not. Nothing is changed, but by --remove-hidden. Errors are what a mount with "
        "these options refuses or cannot read, notices what is worth a look.",
        epilog="exit status: 0 all is well, 3 notices only, 4 errors or not all was looked at, "
        "1 something given is wrong, 32 failure",
    )
    _add_common(verb)
    verb.add_argument("--deep", action="store_true", help="read and check every byte")
    verb.add_argument("--json", action="store_true", help="report as JSON, not as a table")
    verb.add_argument(
        "--remove-hidden",
        action="store_true",
        help="delete what killed mounts have left of files unlinked or replaced while open, and "
        "what failed renames have kept; only while no mount is in use",
    )
    verb.set_defaults(run=_verify)


def _add_common(verb: argparse.ArgumentParser) -> None:
    add_source_arguments(verb)
    verb.add_argument(
        "--prefix", default="", metavar="P", help="only names below SOURCE that begin so"
    )


def _add_dry_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--dry-run", action="store_true", help="change nothing, say what there is to do"
    )


def _rekey(chosen: argparse.Namespace) -> int:
    options = _options(chosen, needed="w")

    async def work(session: Session, report: Report) -> int:
        done = await rekey(
            session,
            report,
            prefix=chosen.prefix,
            only=chosen.only,
            dry_run=chosen.dry_run,
        )
        return 0 if done else EXIT_LEFT

    return _run(options, Report("rekey"), work)


def _reencrypt(chosen: argparse.Namespace) -> int:
    more = [f"protocol={chosen.protocol}"] if chosen.protocol else []
    if chosen.region_size:
        more.append(f"region_size={chosen.region_size}")
    options = _options(chosen, *more, needed="rwdl")
    if options.protocol == Protocol.V1_0:
        raise OptionError("reencrypt writes protocol 2.0 or 2.1: leave protocol=1.0 out")

    async def work(session: Session, report: Report) -> int:
        done = await reencrypt(
            session,
            report,
            prefix=chosen.prefix,
            include_plain=chosen.include_plain,
            dry_run=chosen.dry_run,
        )
        return 0 if done else EXIT_LEFT

    return _run(options, Report("reencrypt"), work)


def _verify(chosen: argparse.Namespace) -> int:
    options = _options(chosen, needed="d" if chosen.remove_hidden else "")

    async def work(session: Session, report: Report) -> int:
        form = Json(report) if chosen.json else Table(report)
        summary = await verify(
            session,
            report,
            form,
            prefix=chosen.prefix,
            deep=chosen.deep,
            remove_hidden=chosen.remove_hidden,
        )
        if summary.errors or not summary.complete:
            return EXIT_LEFT
        return EXIT_NOTICES if summary.notices else 0

    return _run(options, Report("verify"), work)


def _options(chosen: argparse.Namespace, *more: str, needed: str) -> MountOptions:
    """Raises OptionError, or SasError when a token has not the letters `needed`."""
    texts = [*chosen.options, *more]
    options = parse_by_clock(lambda now: parse_source(chosen.source, texts, now=now))
    for access in options.accesses:
        allowed = access.sas.permissions
        missing = "" if allowed is None else "".join(c for c in needed if c not in allowed)
        if missing:
            raise SasError(f"the SAS token for {access.source.container} lacks {missing}")
    if options.read_only and "w" in needed:
        raise OptionError("with ro nothing can be changed: leave it out")
    try:
        logs.configure(options.log_level, options.log_file, foreground=True)
    except OSError as exc:
        raise OptionError(f"cannot write the log_file {options.log_file}: {exc.strerror}") from None
    return options


def _run(
    options: MountOptions, report: Report, work: Callable[[Session, Report], Awaitable[int]]
) -> int:
    async def session() -> int:
        async with open_session(options) as opened:
            return await work(opened, report)

    for note in options.notes:
        report.note(f"blobfs: {note}")
    try:
        return trio.run(session)
    except BaseException as exc:
        cause = root_cause(exc)
        if isinstance(cause, KeyboardInterrupt):
            return EXIT_LEFT
        if isinstance(cause, BlobfsError | BrokenPipeError):
            raise cause from None
        log.critical("a bug in blobfs", exc_info=exc)
        return EXIT_FAILURE
    finally:
        report.close()
