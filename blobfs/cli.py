"""The command line: `blobfs VERB …`, and `mount.blobfs` as mount(8) calls it."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blobfs import __version__, sas
from blobfs.access import read_sas_file
from blobfs.argv import hide_secrets
from blobfs.envelope import write_key_set
from blobfs.errors import KeyFileError, OptionError, SasError, UsageError
from blobfs.mount import EXIT_USAGE, mount
from blobfs.options import option_table, parse_mount
from blobfs.source import Source

VERBS = ("mount", "keys", "sas")


def main(argv: Sequence[str] | None = None) -> int:
    """The `blobfs` command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # `blobfs SOURCE MOUNTPOINT` is `blobfs mount SOURCE MOUNTPOINT`.
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        arguments.insert(0, "mount")
    chosen = _parser().parse_args(arguments)
    return _reporting(chosen)


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """`mount.blobfs` and `mount.fuse.blobfs`: the arguments are those that mount(8) passes."""
    chosen = _helper_parser().parse_args(sys.argv[1:] if argv is None else argv)
    return _reporting(chosen)


def _reporting(chosen: argparse.Namespace) -> int:
    try:
        status: int = chosen.run(chosen)
    except UsageError as exc:
        print(f"blobfs: {sas.redact(str(exc))}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        return EXIT_USAGE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blobfs",
        description="Mount an Azure Blob container as a file system that encrypts on the client.",
        epilog="blobfs SOURCE MOUNTPOINT -o OPTIONS is short for blobfs mount.",
    )
    parser.add_argument("--version", action="version", version=f"blobfs {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = verbs.add_parser(
        "mount",
        help="mount a container, or a folder in it",
        description="Mount a container, or a folder in it. Returns when the mount answers.",
        epilog=_options_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_mount_arguments(verb)

    keys = verbs.add_parser("keys", help="make keys", description="Make keys.")
    key_verbs = keys.add_subparsers(metavar="VERB", required=True)
    verb = key_verbs.add_parser(
        "generate",
        help="write a new key to a new file",
        description="Write a JSON Web Key Set with one new 256-bit key to a new file, mode 0600. "
        "Keep a copy in a safe place: without the key nobody can read what was stored.",
    )
    verb.add_argument("file", type=Path, metavar="FILE", help="refused if it exists")
    verb.set_defaults(run=_generate_keys)

    tokens = verbs.add_parser(
        "sas", help="make and explain SAS tokens", description="Make and explain SAS tokens."
    )
    sas_verbs = tokens.add_subparsers(metavar="VERB", required=True)
    _add_sas_create(sas_verbs.add_parser("create", help="make a SAS token for a container"))
    verb = sas_verbs.add_parser(
        "show",
        help="explain a SAS token",
        description="Say what a SAS token allows, on what and until when. The signature is not "
        "shown. With no file, or -, the token is read from standard input.",
    )
    verb.add_argument("file", nargs="?", default="-", metavar="FILE", help="file with the token")
    verb.set_defaults(run=_show_sas)
    return parser


def _add_mount_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]"
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see below"
    )
    parser.add_argument("-r", "--read-only", action="store_true", help="the same as -o ro")
    parser.add_argument("-w", "--rw", action="store_true", help="the same as -o rw")
    parser.add_argument(
        "-f", "--fake", action="store_true", help="check source, options and token, do not mount"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is mounted where")
    parser.set_defaults(run=_mount, sloppy=False)


def _helper_parser() -> argparse.ArgumentParser:
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
    return parser


def _options_help() -> str:
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in option_table().splitlines()
        if line.startswith("| `")
    ]
    lines = ["options for -o, separated by commas (defaults in brackets):"]
    for name, default, text in rows:
        shown = re.sub(r"(\w+), no\1", r"[no]\1", name)
        lines.append(f"  {shown:<22} {text}" + (f" ({default})" if default else ""))
    lines += [
        "  and what mount(8) and fstab know: _netdev, noauto, nofail, user, x-*, noatime, …",
        "",
        "exit status: 0 mounted, 1 something given is wrong, 32 the mount failed",
    ]
    return "\n".join(lines)


def _mount(chosen: argparse.Namespace) -> int:
    hide_secrets()
    texts = list(chosen.options)
    if chosen.read_only:
        texts.append("ro")
    if chosen.rw:
        texts.append("rw")
    namespace = getattr(chosen, "N", None)
    if namespace:
        _enter_namespace(namespace)
    options = parse_mount(
        chosen.source, chosen.mountpoint, texts, now=datetime.now(UTC), sloppy=chosen.sloppy
    )
    if chosen.verbose:
        print(f"blobfs: {options.source.display} on {options.mountpoint}", file=sys.stderr)
    return 0 if chosen.fake else mount(options)


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


def _generate_keys(chosen: argparse.Namespace) -> int:
    key_id = write_key_set(chosen.file)
    print(f"{chosen.file}: new key {key_id}. Keep a copy: it cannot be made again.")
    return 0


def _add_sas_create(verb: argparse.ArgumentParser) -> None:
    verb.description = (
        "Print a service SAS for a container, made with the account's key. The key is read from "
        "a file or standard input, never from the command line."
    )
    verb.add_argument(
        "container",
        metavar="CONTAINER_URL",
        help="https://ACCOUNT.blob.core.windows.net/CONTAINER",
    )
    verb.add_argument(
        "--account-key-file",
        required=True,
        metavar="FILE",
        help="file with the account key; - for standard input",
    )
    verb.add_argument(
        "--permissions",
        default="rcwdl",
        metavar="LETTERS",
        help="of racwdxyltfmeopi (default: %(default)s; add t to keep tags)",
    )
    verb.add_argument("--hours", type=float, default=8, help="until it expires (default: 8)")
    verb.add_argument("--start", metavar="TIME", help="not valid before (ISO 8601, UTC)")
    verb.add_argument("--expiry", metavar="TIME", help="instead of --hours (ISO 8601, UTC)")
    verb.add_argument("--protocol", default="", help="https, or https,http")
    verb.add_argument("--ip", default="", metavar="A[-B]", help="address or range that may use it")
    verb.add_argument("--policy", default="", metavar="NAME", help="stored access policy (si)")
    verb.add_argument("--sv", default=sas.DEFAULT_VERSION, metavar="DATE", help="service version")
    verb.add_argument("--scope", default="", metavar="NAME", help="encryption scope (ses)")
    verb.set_defaults(run=_create_sas)


def _create_sas(chosen: argparse.Namespace) -> int:
    source = Source.parse(chosen.container)
    if not source.container or source.prefix:
        raise SasError("name a container: https://ACCOUNT.blob.core.windows.net/CONTAINER")
    key = _read(chosen.account_key_file).strip()
    expiry = _moment(chosen.expiry) or datetime.now(UTC) + timedelta(hours=chosen.hours)
    token = sas.create(
        source.account,
        key,
        source.container,
        permissions=chosen.permissions,
        expiry=None if chosen.policy and not chosen.expiry else expiry,
        start=_moment(chosen.start),
        protocol=chosen.protocol,
        ip=chosen.ip,
        identifier=chosen.policy,
        version=chosen.sv,
        encryption_scope=chosen.scope,
    )
    print(token)
    return 0


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SasError(f"{text!r} is no time: write 2026-12-31T18:00:00Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise KeyFileError(f"{file}: {reason}") from None


def _show_sas(chosen: argparse.Namespace) -> int:
    text = sys.stdin.read() if chosen.file == "-" else read_sas_file(Path(chosen.file))
    for field, meaning in sas.describe(sas.parse(text), datetime.now(UTC)):
        print(f"{field:<4} {meaning}")
    return 0
