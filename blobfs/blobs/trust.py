"""Whom a request may be sent to, and why it was not sent."""

import functools
import re
import ssl

import httpx

from blobfs.blobs.retry import RETRIED_STATUSES

# What OpenSSL calls a server without TLS 1.2 and its ciphers, or without TLS. Other failures of a
# handshake may pass.
_NO_TLS_1_2 = frozenset(
    {
        "NO_CIPHERS_AVAILABLE",
        "RECORD_LAYER_FAILURE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)

_CONNECT_REFUSED = re.compile(r"(\d{3}) ")


@functools.cache  # loading the system's certificates takes 50 ms
def tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def refusal(failed: httpx.TransportError) -> str:
    """Why there is no connection to the service, if that is for somebody to set right; "" for
    what may be otherwise the next time."""
    if isinstance(failed, httpx.ProxyError):
        said = _CONNECT_REFUSED.match(str(failed))
        final = said is not None and int(said[1]) not in RETRIED_STATUSES
        return f"the proxy refuses: {failed}" if final else ""
    exc: BaseException | None = failed if isinstance(failed, httpx.ConnectError) else None
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the server's certificate is refused: {exc.verify_message.rstrip('.')}"
        if isinstance(exc, ssl.SSLError) and exc.reason in _NO_TLS_1_2:
            return f"the server does not speak TLS 1.2: {exc.reason}"
        exc = exc.__cause__ or exc.__context__
    return ""
