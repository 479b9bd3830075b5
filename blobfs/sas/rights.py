"""What the letters of a SAS allow, and what a mount does with each of them.

Fields and letters: Microsoft, "Create a service SAS" and "Create a user delegation SAS".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

PERMISSIONS = {
    "r": "read blobs, their properties and metadata; source of a copy",
    "a": "append to append blobs",
    "c": "create new blobs",
    "w": "write blobs, metadata, properties and tier; lease",
    "d": "delete blobs",
    "x": "delete blob versions",
    "y": "permanently delete soft-deleted versions and snapshots",
    "l": "list blobs",
    "t": "read and write tags",
    "f": "find blobs by tags",
    "m": "move files and directories (hierarchical namespace)",
    "e": "read system properties and ACLs (hierarchical namespace)",
    "o": "change the owner (hierarchical namespace)",
    "p": "change permissions and ACLs (hierarchical namespace)",
    "i": "set immutability policies and legal holds",
}
"""Permission letter -> what it allows, in the order that the service demands in `sp`."""


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that a mount does, the letters that it takes, and what there is without them."""

    what: str
    letters: str
    otherwise: str


ABILITIES = (
    Ability("list directories", "l", "no mount"),
    Ability("read files and attributes", "r", "no mount"),
    Ability("make and write files, change attributes", "w", "the mount is read-only"),
    Ability("delete files and directories, rename", "wd", "they fail with EACCES"),
    Ability("keep and change index tags", "t", "a file that is rewritten loses its tags"),
)
"""A mount uses no other letter; `c` and `a` add nothing to `w`."""

_SP = re.compile(r"(?:^|&)sp=([^&]*)")


def letters_of(query: str) -> frozenset[str] | None:
    """The letters in the token; None when only its stored access policy has them."""
    found = _SP.search(query)
    return frozenset(unquote(found[1])) if found else None


def lacking(ways: Sequence[str], granted: frozenset[str] | None) -> str:
    """The letters that keep a token with these rights from something that one of `ways` allows.

    "" when the rights are unknown, or enough. Where ways lack equally many letters, all of them.
    """
    if granted is None:
        return ""
    missing = ["".join(letter for letter in way if letter not in granted) for way in ways]
    least = min((len(letters) for letters in missing if letters), default=0)
    return " or ".join(letters for letters in missing if letters and len(letters) == least)
