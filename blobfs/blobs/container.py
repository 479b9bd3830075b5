"""One container: what can be asked of it, and whose write it was when that is in doubt.

A write whose answer was lost is sent again, and the second answer may then be that the condition
does not hold any more, because the first one was applied. So a conflict after an attempt in doubt
is settled by looking: a blob with the very metadata that was sent is ours, since the wrapped CEK
in the metadata of an encrypted blob belongs to one commit.

Every method is cancel-safe in that nothing is left running; whether a cancelled write was applied
is unknown. All raise the ServiceErrors of `failures`; ETags have no quotes, sizes are in stored
bytes, and a name or metadata that Azure cannot hold is Rejected before anything is sent.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, Unpack
from urllib.parse import urlsplit

import trio

from blobfs.blobs import documents, operations, wire
from blobfs.blobs.checks import check_page, has, info_of, is_in_doubt
from blobfs.blobs.checksum import content_md5
from blobfs.blobs.client import Client
from blobfs.blobs.messages import Answer, Particulars, Renew, Request
from blobfs.blobs.model import BlobInfo, ContentHeaders, Page, Version
from blobfs.blobs.operations import Operation
from blobfs.blobs.transport import Sink
from blobfs.blobs.wire import Buffer
from blobfs.errors import ConditionFailed, NotFound, ServiceError, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

# A copy within a container is done at once as a rule, so the first look is early.
_FIRST_POLL = 0.1
_LONGEST_POLL = 2.0
_ABORT_TIMEOUT = 5.0


class Container:
    """`url` is the container's, without a query; `token` gives the SAS, as it goes over the wire
    and without a leading `?`, for each request anew.

    `renew` is called with a token that the service refused (TokenRefused); the request is sent
    again when it returns True. It may wait, and has to end before the caller's deadline.
    """

    def __init__(
        self, client: Client, url: str, token: Callable[[], str], renew: Renew | None = None
    ) -> None:
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path.rstrip("/")
        self.url = self._origin + self._path
        self._client = client
        self._token = token
        self._renew = renew

    def __repr__(self) -> str:
        return f"Container({self.url!r})"

    async def probe(self) -> None:
        """Whether the container is there and the token may list it: raises when not."""
        await self.list("", max_results=1)

    async def list(
        self,
        prefix: str,
        *,
        delimiter: str = "/",
        marker: str = "",
        max_results: int = 5000,
        include: str = "metadata",
    ) -> Page:
        """One page of the blobs below `prefix`, with their metadata; flat when `delimiter` is "".

        `marker` is the last page's `next_marker`. The order is the service's. `include` may ask
        for snapshots (not with a delimiter) and blobs of uncommitted blocks alone. What is no page
        of this listing, or not the one of this marker, is asked for again.
        """
        parser = documents.ListingParser()
        found: list[Page] = []

        def verify(answer: Answer) -> None:
            found[:] = [check_page(parser.close(), prefix, marker)]

        ask: dict[str, str | int] = {"restype": "container", "comp": "list", "include": include}
        ask |= {
            "maxresults": max_results,
            "delimiter": delimiter,
            "prefix": prefix,
            "marker": marker,
        }
        answer = await self._ask(
            operations.LIST_BLOBS,
            prefix,
            path=self._path,
            parameters=ask,
            verify=verify,
            feed=parser.begin,
        )
        answer.check()
        return found[0]

    async def head(self, name: str, *, if_match: str | None = None) -> BlobInfo:
        return await self._read(
            operations.GET_PROPERTIES,
            name,
            lambda answer: info_of(answer, if_match),
            headers=wire.conditions(if_match),
        )

    async def get(
        self, name: str, start: int, stop: int, *, if_match: str | None = None
    ) -> tuple[BlobInfo, Buffer]:
        """The bytes from `start` up to `stop`, fewer only where the blob ends, and their version.

        Anything else that comes (a cut body, another range) is asked for again. Raises
        ConditionFailed when the blob is not `if_match`.
        """
        if not 0 <= start < stop:
            raise ValueError(f"not a range: {start}-{stop}")
        found: list[BlobInfo] = []

        def verify(answer: Answer) -> None:
            info = info_of(answer, if_match)
            found[:] = [replace(info, size=answer.total_size(start, stop))]

        answer = await self._ask(
            operations.GET_BLOB,
            name,
            headers={"Range": f"bytes={start}-{stop - 1}", **wire.conditions(if_match)},
            longest=stop - start,
            verify=verify,
        )
        if answer.status == 416:
            return await self._get_beyond_end(name, start, if_match), b""
        answer.check()
        return found[0], answer.body

    async def pour(self, name: str, sink: Sink, *, if_match: str) -> None:
        """As `get`, for the bytes that the sink lacks, which go into it as they come: of a cut
        body only the rest is asked for again. Raises what the sink raises, too."""

        def verify(answer: Answer) -> None:
            info_of(answer, if_match)
            answer.total_size(sink.start, sink.stop)

        answer = await self._ask(
            operations.GET_BLOB,
            name,
            headers=wire.conditions(if_match),
            longest=sink.stop - sink.start,
            verify=verify,
            sink=sink,
        )
        if answer.status != 416:
            answer.check()

    async def _get_beyond_end(self, name: str, start: int, if_match: str | None) -> BlobInfo:
        info = await self.head(name, if_match=if_match)
        if info.size > start:
            raise ConditionFailed(f"{name!r} was replaced while it was being read")
        return info

    async def put(
        self,
        name: str,
        body: Buffer | Sequence[Buffer],
        *,
        metadata: Mapping[str, str],
        headers: ContentHeaders,
        tags: Mapping[str, str] | None = None,
        tier: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Version:
        """Make or replace a block blob; everything not given is cleared, but the tier is kept.

        The buffers must not change until this returns. Tags need the permission `t`. Raises
        AlreadyExists under `if_none_match`, ConditionFailed under `if_match`.
        """
        views = wire.views(body)
        return await self._commit(
            operations.PUT_BLOB,
            name,
            headers={
                "x-ms-blob-type": "BlockBlob",
                **wire.stored_with(metadata, headers, tags, tier),
                **wire.conditions(if_match, if_none_match),
            },
            body=views,
            is_ours=has(metadata, sum(view.nbytes for view in views)),
        )

    async def put_block(self, name: str, block_id: str, body: Buffer | Sequence[Buffer]) -> None:
        """Stage a block, unseen until a Put Block List names it. `block_id` is Base64, of the same
        length for all blocks of a blob; the body must not be empty."""
        answer = await self._ask(
            operations.PUT_BLOCK,
            name,
            parameters={"comp": "block", "blockid": block_id},
            body=wire.views(body),
        )
        answer.check()

    async def put_block_from(
        self, name: str, block_id: str, source: str, start: int, stop: int, *, source_etag: str
    ) -> None:
        """Stage a block of another blob's bytes, from `start` up to `stop`, at the service.

        Raises ConditionFailed for a source that is not `source_etag`.
        """
        answer = await self._ask(
            operations.PUT_BLOCK_FROM_URL,
            name,
            parameters={"comp": "block", "blockid": block_id},
            copy_source=self._target(source),
            headers={
                "x-ms-source-range": f"bytes={start}-{stop - 1}",
                "x-ms-source-if-match": f'"{source_etag}"',
            },
        )
        answer.check()

    async def staged_blocks(self, name: str) -> dict[str, int]:
        """Id and stored bytes of each block that was staged and is not committed."""
        return await self._read(
            operations.GET_BLOCK_LIST,
            name,
            lambda answer: documents.parse_staged_blocks(answer.body),
            parameters={"comp": "blocklist", "blocklisttype": "uncommitted"},
        )

    async def put_block_list(
        self,
        name: str,
        block_ids: Sequence[str],
        *,
        metadata: Mapping[str, str],
        headers: ContentHeaders,
        tags: Mapping[str, str] | None = None,
        tier: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Version:
        """Commit staged blocks, in this order, as the blob's body; in everything else as `put`."""
        return await self._commit(
            operations.PUT_BLOCK_LIST,
            name,
            parameters={"comp": "blocklist"},
            headers={
                **wire.stored_with(metadata, headers, tags, tier),
                **wire.conditions(if_match, if_none_match),
            },
            body=wire.views(documents.block_list_document(block_ids)),
            is_ours=has(metadata),
        )

    async def set_metadata(
        self, name: str, metadata: Mapping[str, str], *, if_match: str
    ) -> Version:
        """Replace all metadata; whoever calls this answers for every key that is not in it."""
        return await self._commit(
            operations.SET_METADATA,
            name,
            parameters={"comp": "metadata"},
            headers={**wire.metadata_headers(metadata), **wire.conditions(if_match)},
            is_ours=has(metadata),
        )

    async def set_headers(
        self, name: str, headers: ContentHeaders, *, metadata: Mapping[str, str], if_match: str
    ) -> Version:
        """Replace all content headers, Content-MD5 among them. `metadata` is what the blob has:
        with these headers it marks the version that this makes."""
        sent = wire.content_headers(headers)
        md5 = {"x-ms-blob-content-md5": headers.content_md5} if headers.content_md5 else {}
        return await self._commit(
            operations.SET_PROPERTIES,
            name,
            parameters={"comp": "properties"},
            headers={**sent, **md5, **wire.conditions(if_match)},
            is_ours=lambda info: has(metadata)(info) and wire.content_headers(info.headers) == sent,
        )

    async def get_tags(self, name: str) -> dict[str, str]:
        return await self._read(
            operations.GET_TAGS,
            name,
            lambda answer: documents.parse_tags(answer.body),
            parameters={"comp": "tags"},
        )

    async def set_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Replace all tags. The blob's ETag stays."""
        answer = await self._ask(
            operations.SET_TAGS,
            name,
            parameters={"comp": "tags"},
            headers={"Content-Type": "application/xml"},
            body=wire.views(documents.tags_document(tags)),
        )
        answer.check()

    async def copy(
        self,
        source: str,
        target: str,
        *,
        source_etag: str,
        metadata: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        tier: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Version:
        """Copy a blob within the container, at the service; returns when the copy is complete.

        Keeps content headers, all metadata when `metadata` is None, and no tags. Conditions are on
        the target; ConditionFailed is raised for a source that is not `source_etag` too. A copy
        that is cancelled or fails while pending is aborted: of a target that was there before that
        leaves an empty blob with the copy's metadata.
        """
        metadata_fields = {} if metadata is None else wire.metadata_headers(metadata)
        answer = await self._ask(
            operations.COPY_BLOB,
            target,
            copy_source=self._target(source),
            headers={
                "x-ms-source-if-match": f'"{source_etag}"',
                **metadata_fields,
                **wire.tags_header(tags),
                **wire.tier_header(tier),
                **wire.conditions(if_match, if_none_match),
            },
            verify=Answer.version,
        )
        if is_in_doubt(answer):
            there = await self._settle_copy(answer, source, source_etag, metadata)
            status, copy_id, version = there.copy_status, there.copy_id, there.version
        else:
            fields, version = answer.check().fields, answer.version()
            status, copy_id = fields.get("x-ms-copy-status", ""), fields.get("x-ms-copy-id", "")
        if status in ("", "success"):
            return version
        return await self._finish_copy(target, copy_id, is_new=if_none_match)

    async def _settle_copy(
        self,
        answer: Answer,
        source: str,
        source_etag: str,
        metadata: Mapping[str, str] | None,
    ) -> BlobInfo:
        """As `_settle`, for a target that may still be receiving its contents."""
        original = await self.head(source, if_match=source_etag)
        is_ours = has(original.metadata if metadata is None else metadata)
        try:
            info = await self.head(answer.request.name)
        except NotFound:
            raise answer.error() from None
        if not is_ours(info) or (info.copy_status != "pending" and info.size != original.size):
            raise answer.error()
        return info

    async def _finish_copy(self, target: str, copy_id: str, *, is_new: bool) -> Version:
        wait = _FIRST_POLL
        try:
            while True:
                await trio.sleep(wait)
                wait = min(2 * wait, _LONGEST_POLL)
                info = await self.head(target)
                if info.copy_id != copy_id:
                    raise ConditionFailed(f"{target!r} was replaced while it was being copied to")
                if info.copy_status == "success":
                    return info.version
                if info.copy_status != "pending":
                    raise Unavailable(f"the copy to {target!r} ended as {info.copy_status!r}")
        except BaseException:
            with trio.move_on_after(_ABORT_TIMEOUT, shield=True):
                await self._abort_copy(target, copy_id, is_new=is_new)
            raise

    async def _abort_copy(self, target: str, copy_id: str, *, is_new: bool) -> None:
        """Abort it, and delete what it leaves of a blob that was not there before."""
        try:
            answer = await self._ask(
                operations.ABORT_COPY,
                target,
                parameters={"comp": "copy", "copyid": copy_id},
                headers={"x-ms-copy-action": "abort"},
            )
            # 409: the copy is over already.
            if answer.status != 409:
                answer.check()
            if is_new:
                left = await self.head(target)
                if left.copy_id == copy_id and left.copy_status in ("aborted", "failed"):
                    await self.delete(target, if_match=left.etag)
        except ServiceError as exc:
            log.warning("a pending copy may go on, or have left an empty %r: %s", target, exc)

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Raises NotFound when the blob was not there before, HasSnapshots when it is kept."""
        answer = await self._ask(operations.DELETE_BLOB, name, headers=wire.conditions(if_match))
        if answer.doubtful and answer.status in (404, 412) and await self._is_gone(name):
            return
        answer.check()

    async def _is_gone(self, name: str) -> bool:
        try:  # not to be told from a 412: Azurite gives that for a condition on a missing blob
            await self.head(name)
        except NotFound:
            return True
        return False

    async def _commit(
        self,
        operation: Operation,
        name: str,
        *,
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str],
        body: Sequence[memoryview] = (),
        is_ours: Callable[[BlobInfo], bool],
    ) -> Version:
        answer = await self._ask(
            operation,
            name,
            parameters=parameters,
            headers=headers,
            body=body,
            verify=Answer.version,
        )
        if is_in_doubt(answer):
            return await self._settle(answer, is_ours)
        return answer.check().version()

    async def _settle(self, answer: Answer, is_ours: Callable[[BlobInfo], bool]) -> Version:
        """The version there when it is ours; else raises the conflict that `answer` tells of."""
        try:
            info = await self.head(answer.request.name)
        except NotFound:
            raise answer.error() from None
        if not is_ours(info):
            raise answer.error()
        return info.version

    def _target(self, name: str) -> str:
        return f"{self._path}/{wire.blob_path(name)}"

    async def _read(
        self,
        operation: Operation,
        name: str,
        parse: Callable[[Answer], T],
        *,
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """What a successful answer says. One that `parse` refuses (ValueError) is asked again."""
        found: list[T] = []

        def verify(answer: Answer) -> None:
            found[:] = [parse(answer)]

        answer = await self._ask(
            operation, name, parameters=parameters, headers=headers, verify=verify
        )
        answer.check()
        return found[0]

    async def _ask(
        self,
        operation: Operation,
        name: str,
        *,
        path: str = "",
        parameters: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Sequence[memoryview] = (),
        **particulars: Unpack[Particulars],
    ) -> Answer:
        """About the blob of this name, unless there is another `path`."""
        path, query = path or self._target(name), wire.query(parameters or {})
        request = Request(
            operation=operation,
            name=name,
            origin=self._origin,
            target=f"{path}?{query}" if query else path,
            token=self._token,
            renew=self._renew,
            headers={**(headers or {}), **await content_md5(body)},
            body=body,
            **particulars,
        )
        return await self._client.send(request)
