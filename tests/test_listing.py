"""A directory shows the same entries however the service cuts its blobs into pages."""

from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blobfs.attributes import Kind
from blobfs.blobs import BlobInfo, Page
from blobfs.fs.listing import Entry, Listing, Scanner
from blobfs.names import HIDDEN_PREFIX, check_blob_name, is_showable, marked

FOLDER = {"hdi_isfolder": "true"}

# Neighbours in the order of names, slashes at every place, and characters on both sides of "/".
SEGMENTS = ["a", "a-b", "a.b", "a0", "b", "é", "\uff21", "\U0001f600", ".", "..", "", "x" * 256]
NAMES = [
    *(segment for segment in SEGMENTS if segment),
    *(f"{segment}/" for segment in SEGMENTS),
    *(f"{segment}/b" for segment in SEGMENTS),
    *("a//b", "a-b/c/d", HIDDEN_PREFIX + "1", "a/" + HIDDEN_PREFIX + "1", "b\\c", "a" * 255),
]


def blob(name: str, *, folder: bool = False) -> BlobInfo:
    return BlobInfo(name, f"etag of {name}", 0, 0, metadata=dict(FOLDER) if folder else {})


blobs = st.dictionaries(st.sampled_from(NAMES), st.booleans(), max_size=12).map(
    lambda folders: {name: blob(name, folder=folder) for name, folder in folders.items()}
)
orders = st.sampled_from(["utf-8", "utf-16-be"])


def listed(blobs: dict[str, BlobInfo], prefix: str, size: int, order: str) -> Iterator[Page]:
    """The pages of List Blobs with the delimiter "/", `size` results each.

    Blobs and prefixes are sorted together, by bytes or by UTF-16 units.
    """
    results: dict[str, BlobInfo | None] = {}
    for name, info in blobs.items():
        if name.startswith(prefix):
            head, slash, _ = name[len(prefix) :].partition("/")
            results[prefix + head + slash] = None if slash else info
    # A blob that is named like a prefix is part of it, but for the prefix that is listed itself.
    if prefix and prefix in blobs:
        results[prefix] = blobs[prefix]
    names = sorted(results, key=lambda name: name.encode(order))
    if not names:
        yield Page([], [], "")
    for start in range(0, len(names), size):
        part = names[start : start + size]
        found = [(name, results[name]) for name in part]
        yield Page(
            [info for _, info in found if info is not None],
            [name for name, info in found if info is None],
            "more" if start + size < len(names) else "",
        )


def scanned(pages: Iterator[Page], prefix: str = "") -> tuple[dict[str, Entry], Scanner]:
    scanner = Scanner(prefix)
    entries: dict[str, Entry] = {}
    for page in pages:
        for name, entry in scanner.feed(page):
            assert name not in entries, f"{name!r} was delivered twice"
            entries[name] = entry
    return entries, scanner


def expected(blobs: dict[str, BlobInfo]) -> tuple[dict[str, Entry], set[str]]:
    """What a directory shows of its blobs, and the names that it cannot show."""
    entries: dict[str, Entry] = {}
    unshowable: set[str] = set()
    for name in blobs:
        head, slash, _ = name.partition("/")
        if head.startswith(HIDDEN_PREFIX):
            continue
        if head in ("", ".", "..") or len(head.encode()) > 255:
            unshowable.add(head + slash)
        elif slash:
            marker = blobs.get(head)
            is_marker = marker is not None and bool(marker.metadata)
            entries[head] = Entry.of(Kind.DIRECTORY, marker if is_marker else None)
            if marker is not None and not is_marker:
                unshowable.add(head)
        elif head not in entries:
            kind = Kind.DIRECTORY if blobs[head].metadata else Kind.FILE
            entries[head] = Entry.of(kind, blobs[head])
    return entries, unshowable


@given(blobs, orders)
def test_every_paging_shows_the_same_entries(blobs: dict[str, BlobInfo], order: str) -> None:
    entries, unshowable = expected(blobs)
    for size in range(1, len(blobs) + 2):
        found, scanner = scanned(listed(blobs, "", size, order))
        assert found == entries, f"{size} results a page"
        assert set(scanner.unshowable) == unshowable, f"{size} results a page"


@given(blobs, orders, st.booleans())
def test_a_directory_shows_what_a_container_would(
    blobs: dict[str, BlobInfo], order: str, marked: bool
) -> None:
    prefix = "d é/"
    below = {
        prefix + name: blob(prefix + name, folder=bool(i.metadata)) for name, i in blobs.items()
    }
    around = {name: blob(name) for name in ("a", "d é", "d é-", "d é0", "z")}
    marker = {prefix: blob(prefix)} if marked else {}
    entries, _ = expected(blobs)
    for size in range(1, len(blobs) + 2):
        found, scanner = scanned(listed(below | around | marker, prefix, size, order), prefix)
        assert {name: entry.kind for name, entry in found.items()} == {
            name: entry.kind for name, entry in entries.items()
        }
        assert all(
            entry.info is None or entry.info.unpacked() == below[prefix + name]
            for name, entry in found.items()
        )
        assert scanner.own_marker is marker.get(prefix)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_a_file_in_the_place_of_a_directory_is_shadowed_and_said_once(size: int) -> None:
    blobs = {name: blob(name) for name in ("a", "a-b", "a.b", "a/b", "a/c")}
    found, scanner = scanned(listed(blobs, "", size, "utf-8"))
    assert {name: entry.kind for name, entry in found.items()} == {
        "a": Kind.DIRECTORY,
        "a-b": Kind.FILE,
        "a.b": Kind.FILE,
    }
    assert scanner.unshowable == ["a"]


@pytest.mark.parametrize("size", [1, 2, 10])
def test_a_marker_and_what_is_below_it_are_one_directory(size: int) -> None:
    blobs = {"a": blob("a", folder=True), "a-b": blob("a-b"), "a/b": blob("a/b")}
    found, scanner = scanned(listed(blobs, "", size, "utf-8"))
    assert found["a"] == Entry.of(Kind.DIRECTORY, blobs["a"])
    assert scanner.unshowable == []


def test_entries_are_delivered_as_soon_as_they_are_certain() -> None:
    """A directory of any size is read with the memory of a few pages."""
    blobs = {f"{number:03}": blob(f"{number:03}") for number in range(100)}
    scanner = Scanner("")
    for page in listed(blobs, "", 10, "utf-8"):
        assert len(list(scanner.feed(page))) >= 9


def test_an_empty_page_before_the_end_changes_nothing() -> None:
    pages = [Page([blob("a")], [], "1"), Page([], [], "2"), Page([], ["a/"], "")]
    found, _ = scanned(iter(pages))
    assert found == {"a": Entry.of(Kind.DIRECTORY, None)}


def test_a_listing_counts_its_directories() -> None:
    directory, file = Entry.of(Kind.DIRECTORY, None), Entry.of(Kind.FILE, blob("f"))
    listing = Listing({"d": directory, "f": file}, 0.0)
    assert listing.subdirectories == 1
    listing.set("f", directory)
    listing.set("new", directory)
    assert listing.subdirectories == 3
    listing.set("d", None)
    listing.set("gone", None)
    assert listing.subdirectories == 2
    assert set(listing.entries) == {"f", "new"}


CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
SHOWN = st.one_of(
    st.text(CHARACTERS, min_size=1, max_size=40),
    st.builds(lambda character, size: character * size, CHARACTERS, st.integers(1, 255)),
).filter(is_showable)


@given(st.lists(SHOWN, min_size=1, max_size=8))
def test_a_name_with_a_mark_is_shown_too_and_begins_with_what_there_is_room_for(
    segments: list[str],
) -> None:
    name, mark = "/".join(segments), ".mark-" + "x" * 34
    assume(utf16_units(name) <= 1024)
    result = marked(name, mark)
    directory, _, segment = result.rpartition("/")
    assert directory == "/".join(segments[:-1])
    assert segment.endswith(mark)
    assert segments[-1].startswith(segment.removesuffix(mark))
    assert is_showable(segment)
    if utf16_units(directory) < 1024 - len("/" + mark):
        check_blob_name(result)
    has_room = len((name + mark).encode()) <= 255
    assert result == name + mark or not has_room


def utf16_units(name: str) -> int:
    return len(name.encode("utf-16-le")) // 2
