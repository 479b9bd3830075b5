"""What the modules of verbs share."""

import argparse
from collections.abc import Callable
from typing import Protocol


class Verbs(Protocol):
    """What argparse's `add_subparsers` gives, of a type that it keeps to itself."""

    add_parser: Callable[..., argparse.ArgumentParser]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE and -o, as `blobfs mount` takes them; see `options.parse_source`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]"
    )
    add_options(parser, "as for blobfs mount: at least sas_file= and key_file=")


def add_options(parser: argparse.ArgumentParser, explanation: str) -> None:
    """-o alone, as `blobfs mount` takes it."""
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help=explanation,
    )
