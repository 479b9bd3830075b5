"""The way to the service through the proxies that the environment names."""

import urllib.request

import httpx

from blobfs.blobs.transport import SocketTransport
from blobfs.blobs.trust import tls
from blobfs.errors import OptionError


def proxy_of(scheme: str, host: str) -> str:
    """The URL of the proxy for requests to `host`, or "".

    Plain http is for this machine's own addresses, and a proxy would be sent the URL as it is,
    with the token: it never has one.
    """
    if scheme != "https" or urllib.request.proxy_bypass(host):
        return ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


class ThroughProxies(httpx.AsyncBaseTransport):
    """httpx's transport for hosts behind a proxy; `direct` for all others."""

    def __init__(self, direct: SocketTransport, connections: int, keepalive: float) -> None:
        self._direct = direct
        self._limits = httpx.Limits(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=keepalive,
        )
        self._proxied: dict[str, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = proxy_of(request.url.scheme, request.url.host)
        if not proxy:
            return await self._direct.handle_async_request(request)
        if proxy not in self._proxied:
            self._proxied[proxy] = self._through(proxy)
        return await self._proxied[proxy].handle_async_request(request)

    def _through(self, proxy: str) -> httpx.AsyncHTTPTransport:
        try:
            named = httpx.Proxy(proxy)
            if named.url.scheme == "https":
                named.ssl_context = tls()  # else of the authorities that httpx brings along
            return httpx.AsyncHTTPTransport(verify=tls(), limits=self._limits, proxy=named)
        except (ImportError, ValueError, httpx.InvalidURL):  # socks, or no URL
            # Not `from`: their text has the proxy's password.
            raise OptionError(
                "the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: "
                "write http://HOST:PORT"
            ) from None

    async def aclose(self) -> None:
        await self._direct.aclose()
        for transport in self._proxied.values():
            await transport.aclose()
