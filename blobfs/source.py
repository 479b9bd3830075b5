"""Where a mount comes from: the URL of a container, or of a folder in it."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from blobfs.errors import OptionError, PosixError
from blobfs.names import check_blob_name, is_storable
from blobfs.sas import Sas, redact, split_url

EXAMPLE = "https://ACCOUNT.blob.core.windows.net/CONTAINER"

_CONTAINER = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*|\$(?:root|web|logs)")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Source:
    """A container, or a folder in it. `container` is "" when the URL names the account only.

    `prefix` is decoded, without slashes at its ends, "" for the whole container. `endpoint` is
    the service's URL without a slash at its end. `display` is the URL as it was given, without
    query: mount(8) compares it with the line in fstab to see what is mounted.
    """

    scheme: str
    netloc: str
    account: str
    container: str
    prefix: str
    endpoint: str
    display: str

    @property
    def container_url(self) -> str:
        return f"{self.endpoint}/{quote(self.container, safe='$')}"

    @classmethod
    def parse(cls, url: str) -> "Source":
        """The source at `url`, which has no query. Raises OptionError."""
        if re.match(r"[^/]*//[^/]*@", url):
            raise OptionError("the source has a user name or password in it: remove it")
        shown = repr(redact(url))
        # urlsplit would drop some of the first, and the kernel could not be told the others.
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", url):
            raise OptionError(f"the source {shown} has a control character or is not UTF-8")
        if "#" in url or "?" in url:
            raise OptionError(f"the source {shown} has a # or ? in it: write %23 or %3F")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise OptionError(f"the source {shown} is not a URL: write {EXAMPLE}") from None
        if parts.scheme not in ("http", "https") or not re.fullmatch(r"[a-z0-9._:-]+", host):
            raise OptionError(f"the source {shown} is not an http(s) URL: write {EXAMPLE}")
        if ".dfs." in host:
            raise OptionError(f"the source {shown} is a Data Lake endpoint: write .blob. for .dfs.")
        address = _ip_address(host)
        if parts.scheme == "http" and not _is_loopback(host, address):
            raise OptionError(
                f"the source {shown} would send the SAS token over the network in the clear: "
                "write https (http is for loopback addresses only)"
            )
        # Emulators on a bare address have no room for the account in the host name.
        path = parts.path.strip("/")
        segments = path.split("/") if path else []
        path_style = host == "localhost" or address is not None
        if path_style and not segments:
            raise OptionError(f"the source {shown} lacks the account: write …/ACCOUNT/CONTAINER")
        account = segments.pop(0) if path_style else host.partition(".")[0]
        netloc = f"[{host}]" if ":" in host else host
        if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
            netloc += f":{port}"
        container = unquote(segments[0]) if segments else ""
        if container and not _CONTAINER.fullmatch(container):
            raise OptionError(
                f"{container!r} is not a container name: 3 to 63 lower-case letters and digits, "
                "with single hyphens between them"
            )
        base = f"{parts.scheme}://{netloc}"
        return cls(
            scheme=parts.scheme,
            netloc=netloc,
            account=account,
            container=container,
            prefix=_decode_prefix("/".join(segments[1:])),
            endpoint=f"{base}/{account}" if path_style else base,
            display=url,
        )


def _decode_prefix(text: str) -> str:
    if _BAD_PERCENT.search(text):
        raise OptionError(f"the folder {text!r} has a bare % in it: write %25")
    try:
        prefix = unquote(text, errors="strict").strip("/")
    except UnicodeDecodeError:
        raise OptionError(f"the folder {text!r} does not decode as UTF-8") from None
    if prefix and not all(segment and is_storable(segment) for segment in prefix.split("/")):
        raise OptionError(
            f"{prefix!r} is not a folder that Azure can hold: no part may be empty, end in a dot, "
            "or have a backslash or control character in it"
        )
    try:
        check_blob_name(prefix)
    except PosixError as exc:
        raise OptionError(f"the folder's name is too long: {exc}") from None
    return prefix


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if address is not None:
        return address.is_loopback
    return host == "localhost" or host.endswith(".localhost")  # RFC 6761, section 6.3


def split_source(text: str) -> tuple[Source, Sas | None]:
    """The source and the SAS in its query, if it has one. Raises OptionError or SasError."""
    if "://" not in text:
        shown = repr(redact(text))
        raise OptionError(f"the source {shown} is not a URL: write {EXAMPLE}")
    url, token = split_url(text)
    return Source.parse(url), token
