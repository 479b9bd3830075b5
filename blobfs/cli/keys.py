"""`blobfs keys`: making keys, and telling what is in a key file."""

import argparse
from pathlib import Path

from blobfs.cli.verbs import Verbs
from blobfs.envelope import Kek, load_keys, write_key_set


def add(verbs: Verbs) -> None:
    keys = verbs.add_parser(
        "keys", help="make and list keys", description="Make keys, and list those of a key file."
    )
    key_verbs = keys.add_subparsers(metavar="VERB", required=True)
    verb = key_verbs.add_parser(
        "generate",
        help="write a new key to a new file",
        description="Write a JSON Web Key Set with one new 256-bit key to a new file, mode 0600. "
        "Keep a copy in a safe place: without the key nobody can read what was stored.",
    )
    verb.add_argument("file", type=Path, metavar="FILE", help="refused if it exists")
    verb.set_defaults(run=_generate_keys)
    verb = key_verbs.add_parser(
        "show",
        help="list the keys of key files",
        description="List the id, type, algorithm and use of each key, and nothing secret of it.",
    )
    verb.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="JSON Web Key Set, or RSA key in PEM"
    )
    verb.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="with the passphrase of a PEM key"
    )
    verb.set_defaults(run=_show_keys)


def _generate_keys(chosen: argparse.Namespace) -> int:
    key_id = write_key_set(chosen.file)
    print(f"{chosen.file}: new key {key_id}. Keep a copy: it cannot be made again.")
    return 0


def _show_keys(chosen: argparse.Namespace) -> int:
    for file in chosen.files:
        for key in load_keys(file, passphrase_file=chosen.passphrase_file):
            print(f"{file}: {key.key_id}  {_described(key)}")
    return 0


def _described(key: Kek) -> str:
    kind = "RSA" if key.algorithm.startswith("RSA") else "oct"
    use = "wraps and unwraps" if key.can_wrap and key.can_unwrap else "only unwraps"
    if not key.can_unwrap:
        use = "only wraps"
    return f"{kind} {key.bits}  {key.algorithm}  {use}"
