"""The service's XML: listings, tags, block lists; and what is refused."""

import pytest

from blobfs.blobs.documents import (
    ListingParser,
    MalformedXML,
    block_list_document,
    parse_staged_blocks,
    parse_tags,
    tags_document,
)
from blobfs.blobs.model import BlobInfo, ContentHeaders, Page, parse_date

ENTRY = """
<Blob><Name>{name}</Name><Properties><Creation-Time>Thu, 01 Jan 1970 00:00:01 GMT</Creation-Time>
<Last-Modified>Fri, 22 Nov 2024 06:36:00 GMT</Last-Modified><Etag>0x8DD0ABC</Etag>
<Content-Length>123</Content-Length><Content-Type>text/plain</Content-Type>
<Content-Encoding>gzip</Content-Encoding><Content-Language>de</Content-Language>
<Content-CRC64/><Content-MD5>bWQ1</Content-MD5><Cache-Control>no-cache</Cache-Control>
<Content-Disposition>inline</Content-Disposition><BlobType>BlockBlob</BlobType>
<AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred>
<LeaseStatus>unlocked</LeaseStatus><LeaseState>available</LeaseState>
<ArchiveStatus>rehydrate-pending-to-hot</ArchiveStatus><TagCount>2</TagCount>
<CopyId>id</CopyId><CopyStatus>success</CopyStatus></Properties>
<Metadata><MixedCase>{value}</MixedCase><empty/></Metadata><OrMetadata/></Blob>"""


def listing(blobs: str, marker: str = "") -> bytes:
    return (
        f'\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="c">'
        f"<Prefix>p</Prefix><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker>"
        "</EnumerationResults>"
    ).encode()


def parse_listing(document: bytes, step: int = 100) -> Page:
    """As it would come from the network: in pieces that end anywhere."""
    parser = ListingParser()
    parser.begin()(b"<EnumerationResults><Blobs>")  # an attempt that was cut
    feed = parser.begin()
    for start in range(0, len(document), step):
        feed(document[start : start + step])
    return parser.close()


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_it_does_not_matter_where_a_listing_is_cut_into_pieces(step: int) -> None:
    blobs = "<BlobPrefix><Name>a/</Name></BlobPrefix>" + ENTRY.format(name="ü &amp; b", value="v")
    document = listing(blobs * 3, "next")
    assert parse_listing(document, step) == parse_listing(document, 64)


@pytest.mark.parametrize(
    "document",
    [
        b"<EnumerationResults/>",
        b"<EnumerationResults><NextMarker/></EnumerationResults>",
        b"<EnumerationResults><Blobs/></EnumerationResults>",
        b"<html><body>Log in</body></html>",
        listing(ENTRY.format(name="a", value="v"))[:-40],
    ],
    ids=["nothing", "no blobs", "no marker", "html", "cut"],
)
def test_what_is_no_listing_is_no_empty_directory(document: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse_listing(document)


def test_a_listing_tells_all_that_is_known_of_a_blob() -> None:
    page = parse_listing(listing(ENTRY.format(name="a &amp; b/ü", value="&lt;v&gt;"), "next!"))
    assert page.next_marker == "next!"
    assert page.blobs == [
        BlobInfo(
            name="a & b/ü",
            etag="0x8DD0ABC",
            size=123,
            last_modified_ns=1_732_257_360_000_000_000,
            blob_type="BlockBlob",
            headers=ContentHeaders("text/plain", "no-cache", "gzip", "de", "inline", "bWQ1"),
            metadata={"MixedCase": "<v>", "empty": ""},
            tier="Hot",
            tier_inferred=True,
            tag_count=2,
            lease_state="available",
            copy_id="id",
            copy_status="success",
        )
    ]


def test_prefixes_and_blobs_are_told_apart() -> None:
    blobs = "<BlobPrefix><Name>a/</Name></BlobPrefix><Blob><Name>b</Name></Blob>"
    page = parse_listing(listing(blobs))
    assert page.prefixes == ["a/"]
    assert [blob.name for blob in page.blobs] == ["b"]
    assert page.next_marker == ""


def test_an_entry_may_lack_everything_but_its_name() -> None:
    page = parse_listing(listing("<Blob><Name>a</Name></Blob>"))
    assert page.blobs == [BlobInfo("a", etag="", size=0, last_modified_ns=0)]


def test_encoded_names_are_decoded_and_others_are_not() -> None:
    names = '<Blob><Name Encoded="true">a%EF%BF%BE%2520</Name></Blob><Blob><Name>a%20</Name></Blob>'
    prefix = '<BlobPrefix><Name Encoded="true">%EF%BF%BF/</Name></BlobPrefix>'
    page = parse_listing(listing(names + prefix))
    assert [blob.name for blob in page.blobs] == ["a\ufffe%20", "a%20"]
    assert page.prefixes == ["\uffff/"]


def test_an_empty_page_may_have_a_successor() -> None:
    page = parse_listing(listing("", "more"))
    assert (page.blobs, page.prefixes, page.next_marker) == ([], [], "more")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>no</html>",
        b"<EnumerationResults><Blobs>",
        listing("<Blob><Properties/></Blob>"),
        listing("<Blob><Name/></Blob>"),
        listing('<Blob><Name Encoded="true">%FF</Name></Blob>'),
        listing(ENTRY.format(name="a", value="v").replace("123", "many")),
        listing(ENTRY.format(name="a", value="v").replace("Fri, 22 Nov", "Friday, 22-Nov")),
        listing(ENTRY.format(name="a" * 65537, value="v")),
        listing("<unbound:Blob/>"),
    ],
)
def test_what_is_no_listing_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_listing(document)


BOMB = "<!DOCTYPE d [<!ENTITY e 'boom'>]><EnumerationResults><Blobs/>&e;</EnumerationResults>"


@pytest.mark.parametrize(
    "document",
    [
        BOMB.encode(),
        ('<?xml version="1.0" encoding="utf-16"?>' + BOMB).encode("utf-16"),
        b"<?xml version='1.0' encoding='utf-7'?>" + BOMB.encode("utf-7"),
        b"<EnumerationResults>&e;</EnumerationResults>",
    ],
)
def test_a_document_cannot_define_entities(document: bytes) -> None:
    with pytest.raises(MalformedXML):
        parse_listing(document)


def test_a_page_of_5000_entries_is_parsed() -> None:
    entries = "".join(ENTRY.format(name=f"dir/{n}", value="x" * 1000) for n in range(5000))
    names = [blob.name for blob in parse_listing(listing(entries), 65536).blobs]
    assert names == [f"dir/{n}" for n in range(5000)]


def test_tags_survive_the_way_there_and_back() -> None:
    tags = {"a b": "1 < 2 & 3", "c": ""}
    assert parse_tags(tags_document(tags)) == tags
    assert parse_tags(b"<Tags><TagSet/></Tags>") == {}


def test_a_block_list_names_its_blocks_in_order() -> None:
    assert block_list_document(["QQ==", "Qg=="]).endswith(
        b"<BlockList><Latest>QQ==</Latest><Latest>Qg==</Latest></BlockList>"
    )


@pytest.mark.parametrize(
    "text",
    [
        "2024-11-22T06:36:00Z",
        "Fri, 22 Nov 2024 06:36:00 CET",
        "Fri, 22 Xyz 2024 06:36:00 GMT",
        "Fri, 99 Nov 2024 06:36:00 GMT",
        "yesterday",
    ],
)
def test_what_is_no_http_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_date(text)


def test_a_snapshot_in_a_listing_tells_its_time() -> None:
    entry = ENTRY.format(name="a", value="v")
    snapshot = entry.replace("</Name>", "</Name><Snapshot>2024-11-22T06:36:00.1Z</Snapshot>", 1)
    snapshots = [info.snapshot for info in parse_listing(listing(snapshot + entry)).blobs]
    assert snapshots == ["2024-11-22T06:36:00.1Z", ""]


def test_staged_blocks_are_told_with_their_sizes_and_without_committed_ones() -> None:
    block = "<Block><Name>{}</Name><Size>{}</Size></Block>"
    document = (
        f"<BlockList><CommittedBlocks>{block.format('QQ==', 1)}</CommittedBlocks>"
        f"<UncommittedBlocks>{block.format('Qg==', 20)}{block.format('Qw==', 300)}"
        "</UncommittedBlocks></BlockList>"
    )
    assert parse_staged_blocks(document.encode()) == {"Qg==": 20, "Qw==": 300}
    assert parse_staged_blocks(b"<BlockList/>") == {}
    with pytest.raises(ValueError, match="invalid literal"):
        parse_staged_blocks(document.replace("300", "").encode())
