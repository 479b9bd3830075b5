"""Blob metadata as POSIX attributes: what is read, what is written, what is left alone."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs.attributes import (
    Attributes,
    Defaults,
    Kind,
    PackedAttributes,
    kind_of,
    put_key,
    read_attributes,
    value_of,
    write_attributes,
)

DEFAULTS = Defaults(file_mode=0o640, dir_mode=0o750, uid=11, gid=22)
LAST_MODIFIED = 1_700_000_000_000_000_000

_TIMES = st.integers(-(2**63), 2**63 - 1)
_IDS = st.integers(0, 2**32 - 2)
_KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)

attributes = st.builds(
    Attributes,
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=_IDS,
    gid=_IDS,
    mtime_ns=_TIMES,
    atime_ns=_TIMES,
    ctime_ns=_TIMES,
)
POSIX_SPELLINGS = [
    *("modtime", "mtime", "permissions", "posix_owner", "posix_group", "owner", "group"),
    *("Modtime", "PERMISSIONS", "Owner", "hdi_isfolder", "Hdi_IsFolder", "is_symlink"),
    *("posix_atime", "posix_ctime", "posix_rdev"),
]
foreign_metadata = st.dictionaries(
    _KEYS | st.sampled_from(POSIX_SPELLINGS),
    st.text("0123456789-+:.TZtrue ", max_size=25),
    max_size=8,
).filter(lambda metadata: len({key.lower() for key in metadata}) == len(metadata))


def read(metadata: dict[str, str], kind: Kind = Kind.FILE) -> Attributes:
    return read_attributes(metadata, kind, LAST_MODIFIED, DEFAULTS)


# Reading


@pytest.mark.parametrize(
    ("kind", "mode"), [(Kind.FILE, 0o640), (Kind.DIRECTORY, 0o750), (Kind.SYMLINK, 0o777)]
)
def test_a_blob_without_attributes_has_the_defaults(kind: Kind, mode: int) -> None:
    times = [LAST_MODIFIED] * 3
    assert read({}, kind) == Attributes(kind, mode, 11, 22, *times)


def test_azcopy_attributes() -> None:
    found = read(
        {
            "modtime": "1234567890123456789",
            "permissions": str(stat.S_IFREG | 0o4751),
            "posix_owner": "1000",
            "posix_group": "1001",
            "posix_atime": "5",
            "posix_ctime": "7",
        }
    )
    assert found == Attributes(Kind.FILE, 0o4751, 1000, 1001, 1234567890123456789, 5, 7)


def test_azcopy_attributes_in_the_style_of_lustre() -> None:
    found = read(
        {
            "modtime": "2023-05-06 07:08:09 +0200",
            "permissions": "0751",
            "owner": "1000",
            "group": "1001",
        }
    )
    assert (found.mode, found.uid, found.gid) == (0o751, 1000, 1001)
    assert found.mtime_ns == 1_683_349_689_000_000_000


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2023-05-06T07:08:09Z", 1_683_356_889_000_000_000),
        ("2023-05-06T07:08:09.5Z", 1_683_356_889_500_000_000),
        ("2023-05-06T07:08:09.123456789+02:00", 1_683_349_689_123_456_789),
        ("1969-12-31T23:59:59.999999999Z", -1),
    ],
)
def test_rclone_modification_time(text: str, nanoseconds: int) -> None:
    assert read({"mtime": text}).mtime_ns == nanoseconds


def test_azcopy_time_outranks_that_of_rclone() -> None:
    assert read({"mtime": "2023-05-06T07:08:09Z", "modtime": "5"}).mtime_ns == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("modtime", text) for text in ("", "x", "1.5", "0x10", "9" * 30, "٣", "1_000", " 5")],
        ("modtime", "2023-02-30 00:00:00 +0000"),
        ("mtime", "2023-02-30T00:00:00Z"),
        ("mtime", "yesterday"),
        *[("permissions", text) for text in ("", "rw-r--r--", "-1", "0999", "99999999999")],
        *[("posix_owner", text) for text in ("", "root", "-1", str(2**32 - 1), "1e3")],
        *[("posix_group", text) for text in ("", "root", "-1", str(2**32 - 1), "1e3")],
        ("posix_atime", "x"),
        ("posix_ctime", "x"),
        ("posix_rdev", "-5"),
    ],
)
def test_a_malformed_value_counts_as_absent(key: str, value: str) -> None:
    assert read({key: value}) == read({})


@given(foreign_metadata, st.sampled_from(Kind))
def test_no_metadata_is_fatal(metadata: dict[str, str], kind: Kind) -> None:
    found = read(metadata, kind)
    assert 0 <= found.mode <= 0o7777
    assert 0 <= found.uid < 2**32 - 1
    assert 0 <= found.gid < 2**32 - 1
    assert -(2**63) <= found.mtime_ns < 2**63


@pytest.mark.parametrize(
    ("metadata", "size", "kind"),
    [
        ({}, 0, Kind.FILE),
        ({"hdi_isfolder": "true"}, 0, Kind.DIRECTORY),
        ({"Hdi_IsFolder": "true"}, 0, Kind.DIRECTORY),
        ({"hdi_isfolder": "false"}, 0, Kind.FILE),
        ({"hdi_isfolder": "true"}, 5, Kind.FILE),
        ({"is_symlink": "true"}, 40, Kind.SYMLINK),
        ({"is_symlink": "true", "is_char_dev": "true"}, 40, Kind.SYMLINK),
        ({"is_block_dev": "true", "is_char_dev": "true", "hdi_isfolder": "true"}, 0, Kind.BLOCK),
        ({"is_socket": "true", "hdi_isfolder": "true"}, 0, Kind.SOCKET),
        ({"is_fifo": "true"}, 0, Kind.FIFO),
        ({"is_fifo": "true"}, 9, Kind.FILE),
    ],
)
def test_the_type_of_a_blob(metadata: dict[str, str], size: int, kind: Kind) -> None:
    assert kind_of(metadata, size) is kind


# Kept


@given(attributes, st.sampled_from([0, -1, 10**9, 2**64, -(2**64), 253_402_300_799 * 10**9]))
def test_what_is_packed_is_unpacked_the_same_whatever_the_service_says(
    attrs: Attributes, modified: int
) -> None:
    attrs.ctime_ns = modified
    assert PackedAttributes.of(attrs).unpacked() == attrs


# Writing


@given(attributes, foreign_metadata)
def test_what_is_written_is_read_again(attrs: Attributes, metadata: dict[str, str]) -> None:
    written = write_attributes(metadata, attrs)
    body = 40 if attrs.kind in (Kind.FILE, Kind.SYMLINK) else 0
    assert kind_of(written, body) is attrs.kind
    if attrs.kind not in (Kind.BLOCK, Kind.CHARACTER):
        attrs.rdev = read(written).rdev
    assert read(written, attrs.kind) == attrs


@given(attributes, foreign_metadata)
def test_writing_keeps_unknown_keys_and_every_spelling(
    attrs: Attributes, metadata: dict[str, str]
) -> None:
    written = write_attributes(metadata, attrs)
    posix = {key.lower() for key in POSIX_SPELLINGS}
    assert {k: v for k, v in metadata.items() if k.lower() not in posix}.items() <= written.items()
    assert len({key.lower() for key in written}) == len(written)
    types = ("hdi_isfolder", "is_symlink")
    kept = {key for key in metadata if key.lower() not in types}
    assert kept <= written.keys()


@given(attributes, foreign_metadata)
def test_writing_twice_changes_nothing(attrs: Attributes, metadata: dict[str, str]) -> None:
    once = write_attributes(metadata, attrs)
    assert write_attributes(once, attrs) == once


def test_a_blob_in_the_style_of_lustre_stays_in_it() -> None:
    before = {"Owner": "1", "group": "2", "permissions": "0600"}
    written = write_attributes(before, Attributes(Kind.FILE, 0o755, 7, 8, 0, 0, 0))
    assert (written["Owner"], written["group"], written["permissions"]) == ("7", "8", "0755")
    assert "posix_owner" not in written


def test_the_mode_is_written_with_its_type() -> None:
    written = write_attributes({}, Attributes(Kind.DIRECTORY, 0o755, 0, 0, 0, 0, 0))
    assert written["permissions"] == str(0o40755)
    assert written["hdi_isfolder"] == "true"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (1_683_349_689_123_456_789, "2023-05-06T05:08:09.123456789Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-62_135_596_800 * 10**9, "0001-01-01T00:00:00.000000000Z"),
    ],
)
def test_a_time_of_rclone_is_kept_up_to_date(nanoseconds: int, text: str) -> None:
    attrs = Attributes(Kind.FILE, 0o644, 0, 0, nanoseconds, 0, 0)
    assert write_attributes({"mtime": "2001-01-01T00:00:00Z"}, attrs)["mtime"] == text
    assert "mtime" not in write_attributes({}, attrs)


# Keys


def test_keys_compare_case_insensitively_and_keep_their_case() -> None:
    metadata = {"ModTime": "1"}
    put_key(metadata, "modtime", "2")
    assert metadata == {"ModTime": "2"}
    assert value_of(metadata, "modtime") == "2"
    put_key(metadata, "MODTIME", None)
    assert metadata == {}
