"""What `blobfs verify` finds, and the two forms in which it is told.

The JSON form is one object, written as the pass goes on; its schema is version 1:

    version    1
    source     the source as it was given
    findings   list of: severity ("error" or "notice"), finding (a name of `Kind`), container,
               name (of the blob; of the file, with "" as the container, for recovery files), detail
    summary    blobs, bytes (as stored), errors, notices: numbers; deep: whether bodies were read;
               complete: whether all was looked at; protocols, keys, findings: numbers by protocol
               ("plain" for none), key id and finding

Members may be added, none is removed or changes its meaning without another version.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Protocol

from blobfs.upkeep.report import Report, printable


class Kind(StrEnum):
    PLAINTEXT = "plaintext"  # not encrypted
    PROTOCOL = "protocol"  # 1.0, below min_protocol, or one that we do not know
    MALFORMED = "malformed"  # metadata that no writer makes
    UNKNOWN_KEY = "unknown-key"  # the key file lacks the key
    WRONG_KEY = "wrong-key"  # the key of that id is another one
    UNSEALED = "unsealed"  # encrypted, without blobfs's seal
    TRUNCATED = "truncated"  # shorter or longer than was sealed, or than the format has
    TAMPERED = "tampered"  # fails authentication
    UNREADABLE = "unreadable"  # the service does not give it out
    CONFLICT = "conflict"  # what a mount kept aside of two writers
    HIDDEN = "hidden"  # of a file unlinked while open: in use, or left by a crash
    REENCRYPT = "reencrypt"  # left by a killed reencrypt: run that again
    UNCOMMITTED = "uncommitted"  # blocks without a blob: being written, or never finished
    RECOVERY = "recovery"  # a file with what a failed close could not store


@dataclass(frozen=True, slots=True)
class Finding:
    severity: str
    finding: Kind
    container: str
    name: str
    detail: str


@dataclass
class Summary:
    blobs: int = 0
    bytes: int = 0
    errors: int = 0
    notices: int = 0
    deep: bool = False
    complete: bool = False
    protocols: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    def count(self, finding: Finding) -> None:
        self.findings[finding.finding] += 1
        if finding.severity == "error":
            self.errors += 1
        else:
            self.notices += 1


class Form(Protocol):
    """How findings are told: `begin`, each `add` as it is found, `end`."""

    def begin(self, source: str) -> None: ...
    def add(self, finding: Finding) -> None: ...
    def end(self, summary: Summary) -> None: ...


class Table:
    def __init__(self, report: Report) -> None:
        self._say = report.say

    def begin(self, source: str) -> None:
        pass

    def add(self, finding: Finding) -> None:
        where = f"{finding.container}/{finding.name}" if finding.container else finding.name
        self._say(
            f"{finding.severity:<7} {finding.finding:<12} {printable(where)}: {finding.detail}"
        )

    def end(self, summary: Summary) -> None:
        depth = "all bytes read" if summary.deep else "metadata, keys, seals and sizes"
        self._say(f"{summary.blobs:,} blobs, {summary.bytes / 2**20:,.1f} MiB stored: {depth}")
        for title, numbers in (("protocol", summary.protocols), ("key", summary.keys)):
            for name, number in sorted(numbers.items()):
                self._say(f"{title} {printable(name)}: {number:,}")
        self._say(f"{summary.errors:,} errors, {summary.notices:,} notices")
        if not summary.complete:
            self._say("not all blobs were looked at")


class Json:
    def __init__(self, report: Report) -> None:
        self._say = report.say
        self._first = True

    def begin(self, source: str) -> None:
        self._say(f'{{"version": 1, "source": {json.dumps(source)}, "findings": [')

    def add(self, finding: Finding) -> None:
        self._say(("" if self._first else ",") + json.dumps(asdict(finding)))
        self._first = False

    def end(self, summary: Summary) -> None:
        self._say(f'], "summary": {json.dumps(vars(summary))}}}')
