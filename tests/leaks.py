"""Plaintext and tokens where they must not be."""

import re
import urllib.parse
from collections.abc import Collection, Iterable
from pathlib import Path

from tests.marker import PLAINTEXT_MARKER

_SIGNATURE = 44  # characters: 32 bytes as base64, of which the last is "="
LONGEST_LEAK = 3 * _SIGNATURE
"""Bytes of a signature that is percent-encoded throughout."""

# A signature is found by its end, from which the expressions look back: each byte is looked at
# once, however many signatures there are. One search for each takes minutes of a test run.
_ENDS = [
    re.compile(rb"=(?<=[A-Za-z0-9+/%]{43}=)"),
    re.compile(rb"%3D(?<=[A-Za-z0-9+/%]{43}%3D)"),
    re.compile(rb"%3d(?<=[A-Za-z0-9+/%]{43}%3d)"),
]

# The service keeps the URL that a copy was made from, SAS and all (Azure takes the signature out
# in some regions), and a copy's source must carry the SAS: see blobfs/SECURITY.md.
_COPY_SOURCE = re.compile(rb'"copySource":"[^"]*"')


def is_leak(content: bytes, signatures: Collection[str]) -> bool:
    """Whether the plaintext marker is in it, or one of these signatures in any spelling."""
    assert all(len(signature) == _SIGNATURE for signature in signatures)
    if PLAINTEXT_MARKER in content:
        return True
    if b"copySource" in content:
        content = _COPY_SOURCE.sub(b"", content)
    for end in _ENDS:
        for found in end.finditer(content):
            spelt = content[max(0, found.end() - LONGEST_LEAK) : found.end()]
            if urllib.parse.unquote_to_bytes(spelt)[-_SIGNATURE:].decode("latin-1") in signatures:
                return True
    return False


def find_leaks(paths: Iterable[Path], signatures: Collection[str]) -> list[str]:
    """Those of `paths` that are leaks; one that does not exist (any more) is none."""
    leaks = []
    for path in paths:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if is_leak(content, signatures):
            leaks.append(str(path))
    return leaks
