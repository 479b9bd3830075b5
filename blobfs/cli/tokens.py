"""`blobfs sas`: making and explaining SAS tokens."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blobfs import sas
from blobfs.access import read_sas_file
from blobfs.cli.verbs import Verbs
from blobfs.errors import KeyFileError, SasError
from blobfs.source import Source


def add(verbs: Verbs) -> None:
    tokens = verbs.add_parser(
        "sas", help="make and explain SAS tokens", description="Make and explain SAS tokens."
    )
    sas_verbs = tokens.add_subparsers(metavar="VERB", required=True)
    _add_create(sas_verbs.add_parser("create", help="make a SAS token for a container"))
    verb = sas_verbs.add_parser(
        "show",
        help="explain a SAS token",
        description="Say what a SAS token allows, on what and until when. The signature is not "
        "shown. With no file, or -, the token is read from standard input.",
    )
    verb.add_argument("file", nargs="?", default="-", metavar="FILE", help="file with the token")
    verb.set_defaults(run=_show)


def _add_create(verb: argparse.ArgumentParser) -> None:
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
    verb.set_defaults(run=_create)


def _create(chosen: argparse.Namespace) -> int:
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


def _show(chosen: argparse.Namespace) -> int:
    text = sys.stdin.read() if chosen.file == "-" else read_sas_file(Path(chosen.file))
    for field, meaning in sas.describe(sas.parse(text), datetime.now(UTC)):
        print(f"{field:<4} {meaning}")
    return 0
