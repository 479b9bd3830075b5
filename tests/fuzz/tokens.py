"""What users paste: tokens, connection strings, URLs and options."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import unquote

from blobfs.errors import OptionError, SasError
from blobfs.options import check_options, split_options
from blobfs.sas import Sas, changes, check, describe, parse, redact, split_url
from blobfs.source import Source, split_source

_NOW = datetime(2030, 1, 1, tzinfo=UTC)


def sas(data: bytes) -> None:
    """What is accepted can be sent as it is, explained and judged, and shows its signature
    nowhere."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        token = parse(text)
    except SasError as exc:
        _keeps_signature(str(exc), text)
        return
    assert token.query.isascii()
    assert token.query.isprintable()
    assert parse(token.query) == token
    signature = _signature(token)
    rows = describe(token, _NOW)
    shown = json.dumps([repr(token), str(rows), redact(text), changes(token, token)])
    assert signature not in shown
    for scheme in ("https", "http"):
        with suppress(SasError):
            notes = check(token, now=_NOW, scheme=scheme, prefix="a/b", read_only=False)
            assert all(note.isprintable() for note in notes)


def _signature(token: Sas) -> str:
    fields = dict(piece.partition("=")[::2] for piece in token.query.split("&"))
    return fields["sig"]


def _keeps_signature(message: str, text: str) -> None:
    """No message quotes what could be the signature: 20 characters on end of what was given."""
    _, found, after = text.partition("sig=")
    signature = after.partition("&")[0]
    if found and len(signature) >= 20:
        assert signature[:20] not in message
        assert unquote(signature)[:20] not in message


def connection_string(data: bytes) -> None:
    """As a connection string, a SAS URL, or a plain source: what is accepted leads to one place,
    under which it is found again."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(SasError):
        url, token = split_url(text)
        assert token is None or parse(token.query) == token
        with suppress(OptionError):
            _check_source(Source.parse(url))
    with suppress(SasError, OptionError):
        source, _ = split_source(text)
        _check_source(source)


def _check_source(source: Source) -> None:
    assert source.scheme == "https" or source.endpoint.startswith("http://")
    assert "?" not in source.display
    if source.container:
        again = Source.parse(source.container_url)
        assert (again.endpoint, again.container, again.account) == (
            source.endpoint,
            source.container,
            source.account,
        )
        assert again.container_url == source.container_url
    segments = source.prefix.split("/") if source.prefix else []
    assert not {"", ".", ".."} & set(segments)


def options(data: bytes) -> None:
    """What is taken apart can be put together and comes apart as the same."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(OptionError):
        pairs = split_options(text)
        plain = [
            (name, value)
            for name, value in pairs
            if name != "sas" and '"' not in f"{name}{value}" and "\\" not in name + (value or "")
        ]
        joined = ",".join(
            name if value is None else f"{name}={value}".replace(",", "\\,")
            for name, value in plain
            if "," not in name
        )
        assert split_options(joined) == [pair for pair in plain if "," not in pair[0]]
    refusal = ""
    try:
        check_options([text])
    except OptionError as exc:
        refusal = str(exc)
    assert "\n" not in refusal
