"""The service's XML documents: listings, tags, block lists and errors.

No DTD is accepted, so an answer can define no entities: neither expansion bombs nor external
references. UTF-8 is the only encoding accepted, as it is the only one that the service uses: in
another one a DTD would not be seen.
"""

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape

from blobfs.blobs.model import Page, info_from_listing


class MalformedXML(ValueError):
    """The document is not XML, has a DTD, or is not of the kind expected."""


def _refuse_dtd(*doctype: object) -> None:
    raise MalformedXML("a document of the service has no DTD")


class _Tree(ElementTree.TreeBuilder):
    doctype = staticmethod(_refuse_dtd)


def _check_encoding(piece: bytes) -> None:
    # Expat goes by a byte order mark even when told the encoding; in UTF-16 every "<" has a NUL.
    if b"\0" in piece:
        raise MalformedXML("a document of the service is in UTF-8")


def _parse(text: bytes, root: str) -> ElementTree.Element:
    _check_encoding(text)
    parser = ElementTree.XMLParser(target=_Tree(), encoding="utf-8")
    try:
        parser.feed(text)
        element: ElementTree.Element = parser.close()
    except ElementTree.ParseError as exc:
        raise MalformedXML(str(exc)) from exc
    if element.tag != root:
        raise MalformedXML(f"expected <{root}>, got <{element.tag}>")
    return element


def _texts(element: ElementTree.Element | None) -> dict[str, str]:
    return {} if element is None else {child.tag: child.text or "" for child in element}


def _name(entry: str, text: str, is_encoded: bool) -> str:
    if not text:
        raise MalformedXML(f"<{entry}> without a name")
    # Names that XML 1.0 cannot hold (U+FFFE, say) come percent-encoded and marked so.
    return unquote(text, errors="strict") if is_encoded else text


_ROOT, _SECTION, _ENTRY, _PART, _VALUE = range(1, 6)
"""Depths: EnumerationResults/Blobs/Blob/Metadata/key."""

_LONGEST_TEXT = 64 * 1024
"""Characters: all metadata of a blob has 8 KiB, and a name 1,024 characters before encoding."""


class _Listing:
    """Makes each blob when its element ends: without the tree of a whole page, the peak of listing
    100,000 blobs is 15 MiB lower and a third of the CPU is saved. A target of ElementTree's would
    take half as long again as these handlers of Expat's."""

    def __init__(self) -> None:
        self._page = Page([], [], "")
        self._depth = 0
        self._sections: set[str] = set()
        self._section = ""
        self._part: dict[str, str] = {}
        self._text = ""
        self._is_open = False  # text belongs to an element before its first child alone
        self._begin()

    def _begin(self) -> None:
        self._name = ""
        self._is_encoded = False
        self._snapshot = ""
        self._properties: dict[str, str] = {}
        self._metadata: dict[str, str] = {}

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth = depth = self._depth + 1
        self._is_open = True
        self._text = ""
        if depth == _VALUE:
            return
        if depth == _ROOT and tag != "EnumerationResults":
            raise MalformedXML(f"expected <EnumerationResults>, got <{tag}>")
        if depth == _SECTION:
            self._section = tag
            self._sections.add(tag)
        elif depth == _ENTRY:
            self._begin()
        elif depth == _PART:
            self._part = {"Properties": self._properties, "Metadata": self._metadata}.get(tag, {})
            if tag == "Name":
                self._is_encoded = attributes.get("Encoded") == "true"

    def data(self, text: str) -> None:
        if self._is_open:
            self._text += text
            if len(self._text) > _LONGEST_TEXT:
                raise MalformedXML("a text that is longer than any of a listing")

    def end(self, tag: str) -> None:
        depth, self._depth = self._depth, self._depth - 1
        self._is_open = False
        text, self._text = self._text, ""
        if depth == _VALUE:
            self._part[tag] = text
        elif depth == _PART:
            if tag == "Name":
                self._name = text
            elif tag == "Snapshot":
                self._snapshot = text
        elif depth == _ENTRY and self._section == "Blobs":
            self._add(tag)
        elif depth == _SECTION and tag == "NextMarker":
            self._page.next_marker = text

    def _add(self, entry: str) -> None:
        if entry == "BlobPrefix":
            self._page.prefixes.append(_name(entry, self._name, self._is_encoded))
        elif entry == "Blob":
            name = _name(entry, self._name, self._is_encoded)
            info = info_from_listing(name, self._properties, self._metadata)
            info.snapshot = self._snapshot
            self._page.blobs.append(info)

    def page(self) -> Page:
        if not self._sections >= {"Blobs", "NextMarker"}:
            raise MalformedXML("a listing has <Blobs> and a <NextMarker>, be they empty")
        return self._page


class ListingParser:
    """Makes a page of what List Blobs answers, as that comes."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> Callable[[bytes], None]:
        """Forget what came before; what takes the pieces. Raises ValueError for no listing."""
        self._listing = listing = _Listing()
        # A separator makes Expat check namespaces, of which the service has none.
        self._parser = parser = expat.ParserCreate("utf-8", namespace_separator="}")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse_dtd
        parser.StartElementHandler = listing.start
        parser.EndElementHandler = listing.end
        parser.CharacterDataHandler = listing.data
        return self._feed

    def _feed(self, piece: bytes) -> None:
        _check_encoding(piece)
        self._parse(piece, False)

    def _parse(self, piece: bytes, is_last: bool) -> None:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as exc:
            raise MalformedXML(str(exc)) from exc

    def close(self) -> Page:
        """The page, in the service's order. Raises ValueError when it has not come whole."""
        self._parse(b"", True)
        return self._listing.page()


def parse_tags(document: bytes) -> dict[str, str]:
    """The tags that Get Blob Tags answered. Raises ValueError for anything else."""
    tags = (_texts(tag) for tag in _parse(document, "Tags").iterfind("TagSet/Tag"))
    return {tag.get("Key", ""): tag.get("Value", "") for tag in tags}


def parse_staged_blocks(document: bytes) -> dict[str, int]:
    """Name and bytes of the uncommitted blocks that Get Block List answered. Raises ValueError."""
    blocks = _parse(document, "BlockList").iterfind("UncommittedBlocks/Block")
    return {
        _name(block.tag, block.findtext("Name") or "", is_encoded=False): int(
            block.findtext("Size") or ""
        )
        for block in blocks
    }


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
