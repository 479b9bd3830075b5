"""`blobfs sas`: making and explaining SAS tokens."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from blobfs import sas
from blobfs.access import read_sas_file, token_for
from blobfs.blobs import Client, Container
from blobfs.cli.verbs import Verbs
from blobfs.errors import KeyFileError, SasError, ServiceError, Unavailable
from blobfs.probing import granted
from blobfs.source import Source

PROBE_TIME = 30.0
"""Seconds that the service has for all answers to `blobfs sas show --probe`."""


def add(verbs: Verbs) -> None:
    tokens = verbs.add_parser(
        "sas", help="make and explain SAS tokens", description="Make and explain SAS tokens."
    )
    sas_verbs = tokens.add_subparsers(metavar="VERB", required=True)
    _add_create(sas_verbs.add_parser("create", help="make a SAS token for a container"))
    verb = sas_verbs.add_parser(
        "show",
        help="explain a SAS token",
        description="Say what a SAS token allows, on what and until when, and what a mount can do "
        "with it. The signature is not shown. With no file, or -, the token is read from standard "
        "input.",
    )
    verb.add_argument("file", nargs="?", default="-", metavar="FILE", help="file with the token")
    verb.add_argument(
        "--probe",
        metavar="SOURCE",
        help="ask the service what the token may do there, by requests that change nothing: the "
        "way to know the rights of a stored access policy",
    )
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
    for field, header in sas.HEADERS.items():
        verb.add_argument(
            f"--{header.lower()}",
            dest=field,
            default="",
            metavar="TEXT",
            help=f"the {header} of responses ({field})",
        )
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
        headers={field: getattr(chosen, field) for field in sas.HEADERS if getattr(chosen, field)},
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
    token = sas.parse(text)
    rights, skew, refusal = token.permissions, 0.0, None
    if chosen.probe:
        source = Source.parse(chosen.probe)
        rights, skew, refusal = trio.run(_probe, source, token_for(source, text))
    now = datetime.now(UTC) + timedelta(seconds=skew)
    for field, meaning in sas.describe(token, now):
        print(f"{field:<4} {meaning}")
    if note := sas.clock_note(skew):
        print(f"\n{note}: the times above are by the service's")
    if refusal is not None:
        raise refusal
    try:
        sas.check(
            token,
            now=now,
            scheme=min(token.protocols),
            prefix="/".join("d" * (token.directory_depth or 0)),
            read_only=True,
        )
    except SasError as exc:
        print(f"\na mount cannot use it: {exc}")
        return 0
    print("\na mount with it can")
    for what, verdict in sas.abilities(rights):
        print(f"  {what:<40} {verdict}")
    return 0


async def _probe(
    source: Source, token: sas.Sas
) -> tuple[frozenset[str] | None, float, ServiceError | None]:
    """The rights that the service grants, by how many seconds its clock is ahead, and why it does
    not answer to that, if it does not."""
    async with Client() as client:
        container = Container(client, source.container_url, lambda: token.query)
        rights, refusal = None, None
        try:
            with trio.fail_after(PROBE_TIME):
                rights = await granted(container, source.prefix)
        except ServiceError as exc:
            refusal = exc
        except trio.TooSlowError:
            refusal = Unavailable(f"{container.url} gave no answer within {PROBE_TIME:g} s")
        return rights, client.clock_skew or 0.0, refusal
