"""The real thing: Azurite behind a transport that refuses what Azure would refuse."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import httpx
import pytest
import trio

from blobfs.blobs import BlobInfo, Client, Container, ContentHeaders, RetryPolicy, Version
from blobfs.errors import (
    AlreadyExists,
    ConditionFailed,
    Denied,
    HasSnapshots,
    Leased,
    NotFound,
    TokenRefused,
    Unavailable,
)
from tests.azurite import Azurite
from tests.strict import Loses, Strict

QUICK = RetryPolicy(attempts=3, first_delay=0.001)
# The bodies are not gzip, so anything that decodes them on the way fails the test.
HEADERS = ContentHeaders("text/x-test", "no-cache", "gzip", "de", 'inline; filename="x"')
CEK = {"encryptiondata": '{"WrappedContentKey": "unique"}', "MixedCase": "v"}

NAMES = [
    "plain",
    "a b",
    " lead/trail ",
    "100%",
    "a%20b",
    "a+b",
    "a#b?c",
    "a&b=c",
    "it's <b>",
    "~tilde",
    "ü/日本/🙂",
    "a//b",
    "/slash",
]


@asynccontextmanager
async def opened(
    azurite: Azurite,
    container: str,
    *,
    wrap: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] = Strict,
    **sas: object,
) -> AsyncIterator[Container]:
    token = azurite.sas(container, **sas)
    async with Client(transport=wrap(httpx.AsyncHTTPTransport()), retry=QUICK) as client:
        yield Container(client, azurite.url(container), lambda: token)


@asynccontextmanager
async def losing(
    azurite: Azurite,
    container: str,
    method: str,
    instead: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Container]:
    """A container behind a connection that breaks once: when the service has carried out the first
    request of `method` and before its answer arrives, or having done something else `instead`."""
    losses: list[Loses] = []

    def wrap(inner: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        losses.append(Loses(Strict(inner), method, instead))
        return losses[-1]

    async with opened(azurite, container, wrap=wrap) as box:
        yield box
    assert len(losses[0].lost) == 1
    assert losses[0].lost[0] < 300  # it had been applied


async def put(box: Container, name: str, body: bytes = b"body", **kw: object) -> Version:
    options: dict[str, object] = {"metadata": CEK, "headers": HEADERS, **kw}
    return await box.put(name, body, **options)  # type: ignore[arg-type]


async def forget_copy(box: Container, name: str) -> None:
    """Azurite keeps the URL of a copy's source, SAS and all, in its database for as long as the
    copy is there, and the `azurite` fixture looks for signatures in its files."""
    await box.delete(name)


def block_id(number: int) -> str:
    return base64.b64encode(f"block-{number:08d}".encode()).decode()


async def test_what_was_put_is_what_head_get_and_list_tell(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "dir/a", b"0123456789", tags={"k": "v"}, tier="Cool")
        info = await box.head("dir/a")
        got, data = await box.get("dir/a", 0, 10)
        [listed] = (await box.list("dir/")).blobs
    assert data == b"0123456789"
    for told in (info, got, listed):
        assert told.name == "dir/a"
        assert told.version == version
        assert told.size == 10
        assert told.blob_type == "BlockBlob"
        assert told.metadata == CEK
        assert told.headers.content_type == HEADERS.content_type
        assert told.headers.cache_control == HEADERS.cache_control
        assert told.headers.content_encoding == HEADERS.content_encoding
        assert told.headers.content_language == HEADERS.content_language
        assert told.headers.content_disposition == HEADERS.content_disposition
        assert told.tag_count == 1
        assert told.lease_state == "available"
    for told in (info, listed):
        assert (told.tier, told.tier_inferred) == ("Cool", False)
    assert not version.etag.startswith('"')


async def test_every_name_survives_the_round_trip(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        for number, name in enumerate(NAMES):
            await put(box, name, str(number).encode())
        page = await box.list("", delimiter="")
        assert sorted(blob.name for blob in page.blobs) == sorted(NAMES)
        for number, name in enumerate(NAMES):
            assert (await box.get(name, 0, 9))[1] == str(number).encode()
            assert [b.name for b in (await box.list(name, delimiter="")).blobs][:1] == [name]
            etag = (await box.head(name)).etag
            moved = await box.copy(name, name + "-copy", source_etag=etag)
            await box.delete(name, if_match=etag)
            assert (await box.head(name + "-copy")).version == moved
            await forget_copy(box, name + "-copy")
        assert (await box.list("", delimiter="")).blobs == []


async def test_a_listing_has_pages_and_prefixes(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        for name in ("d/1", "d/2", "d/sub/3", "e", "f/4"):
            await put(box, name)
        page = await box.list("")
        assert ([b.name for b in page.blobs], page.prefixes) == (["e"], ["d/", "f/"])
        below = await box.list("d/")
        assert ([b.name for b in below.blobs], below.prefixes) == (["d/1", "d/2"], ["d/sub/"])
        names: list[str] = []
        marker = ""
        while page.next_marker or not marker:
            page = await box.list("", delimiter="", marker=marker, max_results=2)
            assert len(page.blobs) <= 2
            names += [blob.name for blob in page.blobs]
            marker = page.next_marker or "last"
        assert names == ["d/1", "d/2", "d/sub/3", "e", "f/4"]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 10), (3, 7), (9, 10), (5, 100), (0, 100), (10, 11), (50, 60)]
)
async def test_a_range_ends_where_the_blob_ends(
    start: int, stop: int, azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a", b"0123456789")
        info, data = await box.get("a", start, stop, if_match=version.etag)
    assert data == b"0123456789"[start:stop]
    assert info.size == 10
    assert info.version == version


async def test_an_empty_blob_has_no_bytes_and_all_its_attributes(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a", b"")
        for start, stop in ((0, 1), (0, 100), (7, 8)):
            info, data = await box.get("a", start, stop)
            assert (info.size, info.version, info.metadata, data) == (0, version, CEK, b"")


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 1), (2, 1)])
async def test_what_is_no_range_is_refused(
    start: int, stop: int, azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        with pytest.raises(ValueError, match="not a range"):
            await box.get("a", start, stop)


async def test_staged_blocks_become_the_blob_in_the_order_of_the_list(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(box.put_block, "a", block_id(number), b"%d" % number * 1000)
        assert (await box.list("")).blobs == []
        version = await box.put_block_list(
            "a", [block_id(n) for n in (2, 0, 3, 1)], metadata=CEK, headers=HEADERS,
            tags={"k": "v"}, tier="Cool", if_none_match=True,
        )  # fmt: skip
        info, data = await box.get("a", 0, 4000)
        assert data == b"2" * 1000 + b"0" * 1000 + b"3" * 1000 + b"1" * 1000
        assert (info.version, info.metadata, info.tag_count) == (version, CEK, 1)
        assert info.headers.content_type == HEADERS.content_type


async def test_blocks_of_another_blob_are_staged_at_the_service_and_seen_after_the_commit(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        source = await box.put("source", b"0123456789", metadata={}, headers=HEADERS)
        for number, (start, stop) in enumerate(((7, 10), (0, 2))):
            await box.put_block_from(
                "a", block_id(number), "source", start, stop, source_etag=source.etag
            )
        assert await box.staged_blocks("a") == {block_id(0): 3, block_id(1): 2}
        await box.put_block_list("a", [block_id(0), block_id(1)], metadata=CEK, headers=HEADERS)
        assert (await box.get("a", 0, 100))[1] == b"78901"
        assert await box.staged_blocks("a") == {}
        with pytest.raises(ConditionFailed):
            await box.put_block_from("a", block_id(0), "source", 0, 1, source_etag="0x1")
        assert (await box.head("a")).copy_id == ""  # so no token is kept with it


async def test_snapshots_and_blobs_of_staged_blocks_are_listed_when_asked_for(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        await box.put("a", b"x", metadata={}, headers=HEADERS)
        azurite.sdk(container).get_blob_client("a").create_snapshot()
        await box.put_block("b", block_id(0), b"x")
        assert [info.name for info in (await box.list("")).blobs] == ["a"]
        more = await box.list("", delimiter="", include="metadata,snapshots,uncommittedblobs")
        assert sorted((info.name, bool(info.snapshot)) for info in more.blobs) == [
            ("a", False),
            ("a", True),
            ("b", False),
        ]


async def test_a_large_body_comes_back_as_it_was(azurite: Azurite, container: str) -> None:
    body = bytes(range(256)) * (5 << 12)
    async with opened(azurite, container) as box:
        await put(box, "a", body)
        assert (await box.get("a", 0, len(body)))[1] == body


async def test_conditions_hold(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        first = await put(box, "a", if_none_match=True)
        with pytest.raises(AlreadyExists):
            await put(box, "a", if_none_match=True)
        second = await put(box, "a", b"new", if_match=first.etag)
        stale = {"if_match": first.etag}
        await box.put_block("a", block_id(0), b"x")
        for call in (
            put(box, "a", **stale),
            box.put_block_list("a", [block_id(0)], metadata=CEK, headers=HEADERS, **stale),
            box.set_metadata("a", CEK, **stale),
            box.set_headers("a", HEADERS, metadata={}, **stale),
            box.delete("a", **stale),
            box.get("a", 0, 1, **stale),
            box.get("a", 7, 9, **stale),
            box.head("a", **stale),
            box.copy("a", "b", source_etag=first.etag),
            box.copy("a", "b", source_etag=first.etag, if_none_match=True),
        ):
            with pytest.raises(ConditionFailed):
                await call
        assert (await box.get("a", 0, 9, if_match=second.etag))[1] == b"new"
        await put(box, "b")
        with pytest.raises(AlreadyExists):
            await box.copy("a", "b", source_etag=second.etag, if_none_match=True)
        with pytest.raises(AlreadyExists):
            await box.put_block_list(
                "a", [block_id(0)], metadata=CEK, headers=HEADERS, if_none_match=True
            )


async def test_metadata_and_headers_are_replaced_whole_and_apart(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a")
        version = await box.set_metadata("a", {"Other": "v"}, if_match=version.etag)
        info = await box.head("a")
        assert (info.version, info.metadata) == (version, {"Other": "v"})
        assert info.headers.content_type == HEADERS.content_type
        md5 = base64.b64encode(bytes(16)).decode()
        headers = ContentHeaders("text/plain", content_md5=md5)
        version = await box.set_headers("a", headers, metadata={}, if_match=version.etag)
        info = await box.head("a")
        assert (info.version, info.metadata, info.headers) == (version, {"Other": "v"}, headers)
        version = await box.set_headers("a", ContentHeaders(), metadata={}, if_match=version.etag)
        assert (await box.head("a")).headers == ContentHeaders("application/octet-stream")


async def test_tags_are_replaced_whole_and_leave_the_version(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a", tags={"a b": "c=d/e:f", "x": "1"})
        assert await box.get_tags("a") == {"a b": "c=d/e:f", "x": "1"}
        await box.set_tags("a", {"y": "2"})
        assert await box.get_tags("a") == {"y": "2"}
        assert (await box.head("a")).etag == version.etag


async def test_a_copy_keeps_metadata_and_headers_or_has_what_it_is_given(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        source = await put(box, "a", b"contents")
        kept = await box.copy("a", "b", source_etag=source.etag, tags={"k": "v"}, tier="Cool")
        info, data = await box.get("b", 0, 99)
        assert data == b"contents"
        assert (info.version, info.metadata, info.tag_count) == (kept, CEK, 1)
        assert info.headers.cache_control == HEADERS.cache_control
        assert (await box.head("b")).tier == "Cool"
        other = {**CEK, "modtime": "1"}
        await box.copy("a", "b", source_etag=source.etag, metadata=other, if_match=kept.etag)
        assert (await box.head("b")).metadata == other
        await forget_copy(box, "b")


async def test_what_is_not_there_is_not_found(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        for call in (
            box.head("a"),
            box.get("a", 0, 1),
            box.delete("a"),
            box.get_tags("a"),
            box.copy("a", "b", source_etag="0x1"),
        ):
            with pytest.raises(NotFound):
                await call


async def test_the_probe_tells_a_good_token_from_each_bad_one(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container, permissions="l") as box:
        await box.probe()
    async with opened(azurite, container, permissions="r") as box:
        with pytest.raises(Denied, match="needs l") as denied:
            await box.probe()
        assert not isinstance(denied.value, TokenRefused)
    async with opened(azurite, container, expiry=timedelta(seconds=-60)) as box:
        with pytest.raises(TokenRefused):
            await box.probe()
    token = azurite.sas(container)
    async with Client(retry=QUICK) as client:
        other = azurite.new_container()
        with pytest.raises(TokenRefused):
            await Container(client, azurite.url(other), lambda: token).probe()
        gone = azurite.sas("no-such-container")
        with pytest.raises(NotFound):
            await Container(client, azurite.url("no-such-container"), lambda: gone).probe()
        with pytest.raises(Unavailable, match="ConnectError"):
            await Container(client, "http://127.0.0.1:1/a/box", lambda: token).probe()


async def test_a_token_allows_only_what_its_letters_say(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a")
    async with opened(azurite, container, permissions="rl") as box:
        for call, letter in (
            (put(box, "a"), "w"),
            (box.put_block("a", block_id(0), b"x"), "w"),
            (box.set_metadata("a", CEK, if_match=version.etag), "w"),
            (box.delete("a"), "d"),
            (box.get_tags("a"), "t"),
        ):
            with pytest.raises(Denied, match=rf"needs {letter}\b"):
                await call
    async with opened(azurite, container, permissions="rwl") as box:
        with pytest.raises(Denied, match="t for tags"):
            await put(box, "a", tags={"k": "v"})


async def test_a_lease_and_snapshots_protect_a_blob(azurite: Azurite, container: str) -> None:
    sdk = azurite.sdk(container)
    async with opened(azurite, container) as box:
        await put(box, "a")
        lease = sdk.get_blob_client("a").acquire_lease()
        for call in (put(box, "a"), box.delete("a")):
            with pytest.raises(Leased):
                await call
        lease.release()
        sdk.get_blob_client("a").create_snapshot()
        with pytest.raises(HasSnapshots, match="SnapshotsPresent"):
            await box.delete("a")


# A write is applied, its answer is lost, and the retry meets what the first attempt made.


async def check_is_ours(box: Container, version: Version, body: bytes = b"body") -> BlobInfo:
    info, data = await box.get("a", 0, 99)
    assert info.version == version
    assert data == body
    return info


async def test_a_creation_whose_answer_was_lost_is_ours(azurite: Azurite, container: str) -> None:
    async with losing(azurite, container, "PUT") as box:
        await check_is_ours(box, await put(box, "a", if_none_match=True))


async def test_a_replacement_whose_answer_was_lost_is_ours(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        old = await put(box, "a", b"old", metadata={"encryptiondata": "old"})
    async with losing(azurite, container, "PUT") as box:
        await check_is_ours(box, await put(box, "a", if_match=old.etag))


@pytest.mark.parametrize("create", [True, False])
async def test_a_block_list_whose_answer_was_lost_is_ours(
    create: bool, azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        old = None if create else await put(box, "a", b"old", metadata={"encryptiondata": "old"})
        await box.put_block("a", block_id(0), b"body")
    async with losing(azurite, container, "PUT") as box:
        version = await box.put_block_list(
            "a", [block_id(0)], metadata=CEK, headers=HEADERS,
            if_match=old and old.etag, if_none_match=create,
        )  # fmt: skip
        await check_is_ours(box, version)


async def test_an_unconditional_block_list_can_be_sent_twice(
    azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        await box.put_block("a", block_id(0), b"body")
    async with losing(azurite, container, "PUT") as box:
        version = await box.put_block_list("a", [block_id(0)], metadata=CEK, headers=HEADERS)
        await check_is_ours(box, version)


async def test_metadata_whose_answer_was_lost_is_ours(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        old = await put(box, "a")
    async with losing(azurite, container, "PUT") as box:
        metadata = {**CEK, "modtime": "1"}
        version = await box.set_metadata("a", metadata, if_match=old.etag)
        assert (await check_is_ours(box, version)).metadata == metadata


@pytest.mark.parametrize("metadata", [None, {**CEK, "modtime": "1"}])
async def test_a_copy_whose_answer_was_lost_is_ours(
    metadata: dict[str, str] | None, azurite: Azurite, container: str
) -> None:
    async with opened(azurite, container) as box:
        source = await put(box, "source")
    async with losing(azurite, container, "PUT") as box:
        version = await box.copy(
            "source", "a", source_etag=source.etag, metadata=metadata, if_none_match=True
        )
        assert (await check_is_ours(box, version)).metadata == (metadata or CEK)
        await forget_copy(box, "a")


async def test_a_deletion_whose_answer_was_lost_is_done(azurite: Azurite, container: str) -> None:
    async with opened(azurite, container) as box:
        version = await put(box, "a")
    async with losing(azurite, container, "DELETE") as box:
        await box.delete("a", if_match=version.etag)
        with pytest.raises(NotFound):
            await box.head("a")


@pytest.mark.parametrize("metadata", [{"encryptiondata": "theirs"}, {}])
async def test_another_writers_blob_is_not_taken_for_ours(
    metadata: dict[str, str], azurite: Azurite, container: str
) -> None:
    sdk = azurite.sdk(container)

    async def others_create() -> None:
        sdk.upload_blob("a", b"theirs", metadata=metadata)

    async with losing(azurite, container, "PUT", others_create) as box:
        with pytest.raises(AlreadyExists):
            await put(box, "a", if_none_match=True)
    assert sdk.download_blob("a").readall() == b"theirs"


async def test_a_blob_without_metadata_bears_no_mark_of_its_writer(
    azurite: Azurite, container: str
) -> None:
    async with losing(azurite, container, "PUT") as box:
        with pytest.raises(AlreadyExists):
            await put(box, "a", metadata={}, if_none_match=True)


async def test_another_writers_replacement_is_a_conflict(azurite: Azurite, container: str) -> None:
    sdk = azurite.sdk(container)
    async with opened(azurite, container) as box:
        old = await put(box, "a", metadata={"encryptiondata": "old"})

    async def others_replace() -> None:
        sdk.upload_blob("a", b"theirs", metadata={"encryptiondata": "theirs"}, overwrite=True)

    async def replace(box: Container) -> object:
        return await put(box, "a", if_match=old.etag)

    async def set_metadata(box: Container) -> object:
        return await box.set_metadata("a", CEK, if_match=old.etag)

    async def delete(box: Container) -> object:
        return await box.delete("a", if_match=old.etag)

    for method, write in (("PUT", replace), ("PUT", set_metadata), ("DELETE", delete)):
        async with losing(azurite, container, method, others_replace) as box:
            with pytest.raises(ConditionFailed):
                await write(box)
    assert sdk.download_blob("a").readall() == b"theirs"


async def test_a_blob_that_others_deleted_meanwhile_is_a_conflict(
    azurite: Azurite, container: str
) -> None:
    sdk = azurite.sdk(container)
    async with opened(azurite, container) as box:
        old = await put(box, "a")

    async def others_delete() -> None:
        sdk.delete_blob("a")

    async with losing(azurite, container, "PUT", others_delete) as box:
        with pytest.raises((ConditionFailed, NotFound)):
            await put(box, "a", if_match=old.etag)


async def test_cancelling_at_any_moment_leaves_the_client_usable(
    azurite: Azurite, container: str
) -> None:
    body = bytes(300_000)
    async with opened(azurite, container) as box:
        await put(box, "a", body)
        for milliseconds in range(0, 20, 2):
            with trio.move_on_after(milliseconds / 1000):
                await box.get("a", 0, len(body))
            with trio.move_on_after(milliseconds / 1000):
                await put(box, "b", body)
        assert (await box.get("a", 0, len(body)))[1] == body
