"""Looking for secrets in whatever form they may have got to where they must not be.

    found_in(data, {"the key": key})  →  {"the key"}

A secret is searched for by its first 15 bytes and by the 15 after these, so that one that was cut
is found as well; 15 bytes are 20 characters of base64 wherever they stand in it.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import unquote_to_bytes

_PIECE = 15
_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")
_MOST_ENCODINGS = 3  # of a URL in a URL in a URL
_ESCAPED = re.compile(rb"\\(?:x([0-9a-f]{2})|u00([0-9a-f]{2})|([nrt0])|(.))", re.IGNORECASE)
_CONTROLS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"0": b"\0"}


def found_in(data: bytes, secrets: Mapping[str, bytes]) -> set[str]:
    """The names of the secrets that are there."""
    views = {kind: _views(data, kind) for kind in _NEEDLES}
    return {
        name
        for name, secret in secrets.items()
        if any(
            needle in view
            for kind, needles in _NEEDLES.items()
            for piece in (secret[:_PIECE], secret[_PIECE : 2 * _PIECE])
            for needle in needles(piece)
            for view in views[kind]
        )
    }


def _as_bytes(piece: bytes) -> list[bytes]:
    return [piece]


def _in_base64(piece: bytes) -> list[bytes]:
    """Of the bytes, of their own base64 and of their hexadecimal form, as parts of more."""
    inner = (piece, b64encode(piece), piece.hex().encode())
    return [b64encode(piece), *(form for text in inner for form in _aligned(text))]


def _aligned(text: bytes) -> Iterator[bytes]:
    for before in range(3):
        encoded = b64encode(bytes(before) + text).rstrip(b"=")
        yield encoded[4 if before else 0 : -2]


def _in_hexadecimal(piece: bytes) -> list[bytes]:
    return [piece.hex().encode()]


def _in_numbers(piece: bytes) -> list[bytes]:
    return [",".join(map(str, piece)).encode()]


_NEEDLES: dict[str, Callable[[bytes], list[bytes]]] = {
    "bytes": _as_bytes,
    "base64": _in_base64,
    "hexadecimal": _in_hexadecimal,
    "numbers": _in_numbers,
}


def _views(data: bytes, kind: str) -> set[bytes]:
    """`data`, and what it becomes when its encodings are taken off, as that form is written."""
    views = {data}
    for _ in range(_MOST_ENCODINGS):
        data = unquote_to_bytes(data)
        views.add(data)
    views |= {_ESCAPED.sub(_unescaped, view) for view in views}
    if kind == "base64":
        return {view.translate(_URL_ALPHABET) for view in views}
    if kind == "hexadecimal":
        return {view.lower() for view in views}
    if kind == "numbers":
        return {b"".join(view.split()) for view in views}
    return views


def _unescaped(found: re.Match[bytes]) -> bytes:
    two, four, control, other = found.groups()
    if two or four:
        return bytes.fromhex((two or four).decode())
    return _CONTROLS[control.lower()] if control else bytes(other)
