"""`blobfs keys`: making keys."""

import argparse
from pathlib import Path

from blobfs.cli.verbs import Verbs
from blobfs.envelope import write_key_set


def add(verbs: Verbs) -> None:
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


def _generate_keys(chosen: argparse.Namespace) -> int:
    key_id = write_key_set(chosen.file)
    print(f"{chosen.file}: new key {key_id}. Keep a copy: it cannot be made again.")
    return 0
