"""Shared access signatures: read, judge, explain, redact and make container SAS tokens. Pure.

    token     reading a token from what people paste
    judge     whether a mount can work with it
    rights    what its letters allow, and what a mount does with each
    describe  what it says, for people
    redact    taking signatures and account keys out of text
    create    making tokens with an account key
    words     times and rights as messages show them

blobfs is authorised by a SAS alone. The token is appended to every URL byte for byte as it was
given, since any re-encoding or reordering can invalidate it; what is parsed here only serves to
say why the service would refuse it.
"""

from blobfs.sas.create import DEFAULT_VERSION, HEADERS, create
from blobfs.sas.describe import abilities, changes, describe
from blobfs.sas.judge import check, clock_note, untimely, writable
from blobfs.sas.redact import redact
from blobfs.sas.rights import ABILITIES, PERMISSIONS, lacking, letters_of
from blobfs.sas.token import Sas, parse, split_url
from blobfs.sas.words import span, stamp

__all__ = [
    "ABILITIES",
    "DEFAULT_VERSION",
    "HEADERS",
    "PERMISSIONS",
    "Sas",
    "abilities",
    "changes",
    "check",
    "clock_note",
    "create",
    "describe",
    "lacking",
    "letters_of",
    "parse",
    "redact",
    "span",
    "split_url",
    "stamp",
    "untimely",
    "writable",
]
