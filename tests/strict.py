"""Transports for the tests of the Blob client: scripted answers, lost answers, and Azure's rules
where Azurite has none (so that a request which only Azurite would take fails a test)."""

import base64
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

LAST_MODIFIED = "Fri, 22 Nov 2024 06:36:00 GMT"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")


def _addressed(request: httpx.Request) -> tuple[str, dict[str, str]]:
    """The path and the parameters of a request."""
    path, _, query = request.url.raw_path.decode().partition("?")
    return path, {name: values[0] for name, values in parse_qs(query).items()}


class Chunks(httpx.AsyncByteStream):
    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


def answer(status: int = 200, body: bytes = b"", **fields: str) -> httpx.Response:
    """As the service would answer; `fields` are headers with `_` for `-`."""
    headers = {
        "Content-Length": str(len(body)),
        "x-ms-request-id": "request-1",
        "ETag": '"0x1"',
        "Last-Modified": LAST_MODIFIED,
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    return httpx.Response(status, headers=headers, stream=Chunks(body))


def error(
    status: int, code: str, message: str = "", detail: str = "", **fields: str
) -> httpx.Response:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>"
    body += f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail></Error>"
    return answer(status, body.encode(), x_ms_error_code=code, **fields)


class Script(httpx.AsyncBaseTransport):
    """Answers with the given steps in turn: a response, an exception, or what a function gives."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if callable(step):
            step = await step()
        assert isinstance(step, httpx.Response)
        return step


class Loses(httpx.AsyncBaseTransport):
    """Loses the answer to the first request of `method` that `inner` has carried out; or, given
    `instead`, does that instead of passing the request on."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        method: str,
        instead: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._inner = inner
        self._method = method
        self._instead = instead
        self.lost: list[int] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != self._method or self.lost:
            return await self._inner.handle_async_request(request)
        if self._instead:
            await self._instead()
            self.lost.append(0)
        else:
            response = await self._inner.handle_async_request(request)
            await response.aread()
            await response.aclose()
            self.lost.append(response.status_code)
        raise httpx.ReadError("the connection was cut")

    async def aclose(self) -> None:
        await self._inner.aclose()


class StagedBlocks:
    """Which blocks Azure does not have any more: those of a name of which the blob was stored anew,
    or deleted, since."""

    def __init__(self) -> None:
        self._of: defaultdict[str, set[str]] = defaultdict(set)
        self._gone: set[str] = set()

    def are_gone(self, block_ids: set[str]) -> bool:
        return not self._gone.isdisjoint(block_ids)

    def staged(self, path: str, block_id: str) -> None:
        self._of[path].add(block_id)

    def replaced(self, path: str, committed: set[str]) -> None:
        self._gone |= self._of[path] - committed
        self._of[path] = committed


class Strict(httpx.AsyncBaseTransport):
    """Refuses, as Azure does, what Azurite lets pass (azure.md 6.3); all else goes to `inner`.

    `blocks` are those of all that go to the same service.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, blocks: StagedBlocks | None = None) -> None:
        self._inner = inner
        self._id_lengths: dict[str, int] = {}
        self._blocks = blocks or StagedBlocks()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            await request.aread()
            return refusal
        path, parameters = _addressed(request)
        committed = set()
        if parameters.get("comp") == "blocklist" and request.method == "PUT":
            document = (await request.aread()).decode()
            committed = set(re.findall("<Latest>(.+?)</Latest>", document))
            if self._blocks.are_gone(committed):
                return error(400, "InvalidBlockList")
        response = await self._inner.handle_async_request(request)
        if response.is_success:
            if parameters.get("comp") == "block":
                self._blocks.staged(path, parameters["blockid"])
            elif request.method in ("PUT", "DELETE") and (committed or "comp" not in parameters):
                self._blocks.replaced(path, committed)
        if self._is_beyond_end(request, response):
            await response.aclose()
            return error(416, "InvalidRange")
        return response

    def _refusal(self, request: httpx.Request) -> httpx.Response | None:
        path, parameters = _addressed(request)
        headers = request.headers
        if "sig" not in parameters:
            return error(401, "NoAuthenticationInformation")
        if not {"x-ms-version", "x-ms-client-request-id", "user-agent"} <= headers.keys():
            return error(400, "MissingRequiredHeader")
        if request.method == "PUT" and "content-length" not in headers:
            return error(411, "MissingContentLengthHeader")
        if not {".", ".."}.isdisjoint(unquote(path).split("/")):
            return error(400, "InvalidUri")
        for name in ("if-match", "x-ms-source-if-match"):
            if not re.fullmatch(r'"[^"]+"|\*', headers.get(name, "*")):
                return error(400, "InvalidHeaderValue", name)
        if not re.fullmatch(r"bytes=\d+-\d+", headers.get("range", "bytes=0-0")):
            return error(400, "InvalidHeaderValue", "range")
        if "x-ms-tags" in headers and "t" not in parameters["sp"]:
            return error(403, "AuthorizationPermissionMismatch")
        return (
            self._bad_metadata(request)
            or self._bad_copy_source(request)
            or self._bad_block(request, path, parameters)
        )

    def _bad_metadata(self, request: httpx.Request) -> httpx.Response | None:
        metadata = [
            (name[len(b"x-ms-meta-") :], value)
            for name, value in request.headers.raw
            if name.lower().startswith(b"x-ms-meta-")
        ]
        if len({name.lower() for name, _ in metadata}) != len(metadata):
            return error(400, "InvalidMetadata")
        for name, value in metadata:
            if not name.decode().isidentifier() or not value.isascii():
                return error(400, "InvalidMetadata")
        if sum(len(name) + len(value) for name, value in metadata) > 8192:
            return error(400, "MetadataTooLarge")
        return None

    def _bad_copy_source(self, request: httpx.Request) -> httpx.Response | None:
        source = request.headers.get("x-ms-copy-source")
        if source is None:
            return None
        token = parse_qs(urlsplit(source).query)
        if "sig" not in token or "r" not in token["sp"][0]:
            return error(403, "CannotVerifyCopySource")
        return None

    def _bad_block(
        self, request: httpx.Request, path: str, parameters: dict[str, str]
    ) -> httpx.Response | None:
        if parameters.get("comp") != "block":
            return None
        is_empty = request.headers["content-length"] == "0"
        if is_empty != ("x-ms-copy-source" in request.headers):  # Put Block From URL has no body
            return error(400, "InvalidHeaderValue", "Content-Length")
        length = len(base64.b64decode(parameters["blockid"], validate=True))
        if length > 64 or self._id_lengths.setdefault(path, length) != length:
            return error(400, "InvalidBlobOrBlock")
        return None

    def _is_beyond_end(self, request: httpx.Request, response: httpx.Response) -> bool:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if "range" not in request.headers or response.status_code not in (200, 206):
            return False
        total = int(found[3]) if found else int(response.headers["content-length"])
        return int(request.headers["range"].removeprefix("bytes=").split("-")[0]) >= total
