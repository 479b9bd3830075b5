"""The service's XML documents: listings, tags, block lists and errors.

No DTD is accepted, so an answer can define no entities: neither expansion bombs nor external
references. UTF-8 is the only encoding accepted, as it is the only one that the service uses: in
another one a DTD would not be seen.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from blobfs.blobs.model import BlobInfo, Page, info_from_listing


class MalformedXML(ValueError):
    """The document is not XML, has a DTD, or is not of the kind expected."""


def _parse(document: bytes, root: str) -> ElementTree.Element:
    if b"<!DOCTYPE" in document:
        raise MalformedXML("a document of the service has no DTD")
    # Expat goes by a byte order mark even when told the encoding; in UTF-16 every "<" has a NUL.
    if b"\0" in document:
        raise MalformedXML("a document of the service is in UTF-8")
    try:
        element = ElementTree.fromstring(document, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as exc:
        raise MalformedXML(str(exc)) from exc
    if element.tag != root:
        raise MalformedXML(f"expected <{root}>, got <{element.tag}>")
    return element


def _texts(element: ElementTree.Element | None) -> dict[str, str]:
    return {} if element is None else {child.tag: child.text or "" for child in element}


def _name(entry: ElementTree.Element) -> str:
    name = entry.find("Name")
    if name is None or not name.text:
        raise MalformedXML(f"<{entry.tag}> without a name")
    # Names that XML 1.0 cannot hold (U+FFFE, say) come percent-encoded and marked so.
    return unquote(name.text, errors="strict") if name.get("Encoded") == "true" else name.text


def _blob(entry: ElementTree.Element) -> BlobInfo:
    info = info_from_listing(
        _name(entry), _texts(entry.find("Properties")), _texts(entry.find("Metadata"))
    )
    info.snapshot = entry.findtext("Snapshot") or ""
    return info


def parse_listing(document: bytes) -> Page:
    """The page that List Blobs answered, in its order. Raises ValueError for anything else."""
    root = _parse(document, "EnumerationResults")
    blobs: list[BlobInfo] = []
    prefixes: list[str] = []
    entries, next_marker = root.find("Blobs"), root.find("NextMarker")
    if entries is None or next_marker is None:
        raise MalformedXML("a listing has <Blobs> and a <NextMarker>, be they empty")
    for entry in entries:
        if entry.tag == "Blob":
            blobs.append(_blob(entry))
        elif entry.tag == "BlobPrefix":
            prefixes.append(_name(entry))
    return Page(blobs, prefixes, next_marker.text or "")


def parse_tags(document: bytes) -> dict[str, str]:
    """The tags that Get Blob Tags answered. Raises ValueError for anything else."""
    tags = (_texts(tag) for tag in _parse(document, "Tags").iterfind("TagSet/Tag"))
    return {tag.get("Key", ""): tag.get("Value", "") for tag in tags}


def parse_staged_blocks(document: bytes) -> dict[str, int]:
    """Name and bytes of the uncommitted blocks that Get Block List answered. Raises ValueError."""
    blocks = _parse(document, "BlockList").iterfind("UncommittedBlocks/Block")
    return {_name(block): int(block.findtext("Size") or "") for block in blocks}


def parse_error(document: bytes) -> dict[str, str]:
    """Code, Message and details of an error document. Raises ValueError for anything else."""
    return _texts(_parse(document, "Error"))


def tags_document(tags: Mapping[str, str]) -> bytes:
    items = "".join(
        f"<Tag><Key>{escape(key)}</Key><Value>{escape(value)}</Value></Tag>"
        for key, value in tags.items()
    )
    return _document(f"<Tags><TagSet>{items}</TagSet></Tags>")


def block_list_document(block_ids: Iterable[str]) -> bytes:
    """Each block is looked for among the staged ones first, then among the committed: a commit
    that is repeated because its answer was lost finds its blocks in the list it committed."""
    items = "".join(f"<Latest>{escape(block_id)}</Latest>" for block_id in block_ids)
    return _document(f"<BlockList>{items}</BlockList>")


def _document(content: str) -> bytes:
    return f'<?xml version="1.0" encoding="utf-8"?>{content}'.encode()
