"""Taking signatures and account keys out of text."""

import re

# Quotes, equals signs and ampersands as they come in URLs, JSON, reprs, and percent-encoded
# once or more, as in a copy source inside another URL. There is no word boundary in front of
# `sig`, since `%3Fsig%3D` has none: better too much redacted than too little.
_QUOTE = r"""(?:b?\\*["']|\\u002[27]|%(?:25)*2[27])"""
_SPACE = r"(?:\s|%(?:25)*20)*"
# A blank belongs to one `_SPACE` only: were two side by side, many blanks would take for ever.
_BRACKET = rf"(?:(?:\[|%(?:25)*5b){_SPACE})?"
_COLON = rf"{_QUOTE}{_SPACE}(?:[:,]|%(?:25)*(?:3a|2c)){_SPACE}{_BRACKET}{_QUOTE}"
_EQUALS = rf"(?:(?:=|\\u003d|%(?:25)*3d)(?:{_QUOTE})?|{_COLON}|>)"
_VALUE = r"(?:[A-Za-z0-9+/=_~.-]|\\/|\\u00(?:2b|2f|3d)|%(?!(?:25)*(?:26|22|27)))+"
_SECRET = re.compile(rf"(?P<name>(?:sig|accountkey){_EQUALS}){_VALUE}", re.IGNORECASE)
# How the service quotes the signature in the body of a 403.
_ECHO = re.compile(r"(?P<name>signature found in the HTTP request ')[^']+", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` with every SAS signature and account key in it replaced by REDACTED. Idempotent."""
    for pattern in (_SECRET, _ECHO):
        text = pattern.sub(r"\g<name>REDACTED", text)
    return text
