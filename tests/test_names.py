"""Names that blobs can have and directories cannot show, and the reverse; listings in any order,
by pages of any size, and while others change the directory."""

import ctypes
import errno
import http.client
import os
import re
import secrets
import stat
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests.azurite import Azurite
from tests.mounts import PLAINTEXT_MARKER, Mount, mounted
from tests.sdk import AesKek, download, encrypting, write_key_file

pytestmark = pytest.mark.mount

KEK = AesKek("local:names", secrets.token_bytes(32))

FOLDER = {"hdi_isfolder": "true"}
NFC, NFD = "caf\u00e9", "cafe\u0301"

# What lies in the container, and the metadata of those that are more than content.
BLOBS: dict[str, dict[str, str]] = {
    # a file that has the name of a directory, with names between `a` and `a/` in every order
    **dict.fromkeys(["a", "a b", "a!x", "a-b", "a.b", "a/b", "a/c", "a0", "ab", "a/b!", "a/b/c"]),
    "marked": FOLDER,
    **dict.fromkeys(["marked!", "marked-1", "marked/x"]),
    "empty": FOLDER,
    **dict.fromkeys(["slash/", "slash/x", "slash!", "slashonly/"]),
    "twice": FOLDER,
    **dict.fromkeys(["twice/", "twice/x"]),
    "deep/er/est": {},
    **dict.fromkeys(["//x", "/lead", "d//x", "d/y", "e//", "f//x"]),
    **dict.fromkeys([" first", "last ", " ", "two  blanks"]),
    **dict.fromkeys(
        ["100%", "%41", "q?x=1", "h#x", "p+x", "x&y;z", "<t>", "it's", 'say "x"', "a,b"]
    ),
    **dict.fromkeys(
        [NFC, NFD, "\u00df", "\U0001f600", "\U0001f600/\U00020000", "\u200b", "\ufffd"]
    ),
    **dict.fromkeys(["\uff5a/x", "\U0001f600z", "\ue000"]),  # UTF-16 and UTF-8 order these apart
    **dict.fromkeys(["dot.", "dots..", ".dot", "..dot"]),
    **dict.fromkeys(["n" * 255, "n" * 256, "\u00e9" * 127, "\u00e9" * 128, "n" * 1024]),
    **dict.fromkeys([".blobfs-hidden-1", ".blobfs-hidden-2/x", "hides/.blobfs-hidden-3"]),
}  # type: ignore[dict-item]

SHADOWED = {"a", "a/b", "\U0001f600"}
UNSHOWABLE = {"//x", "/lead", "d//x", "e//", "f//x", "n" * 256, "\u00e9" * 128, "n" * 1024}
SKIPPED_TOGETHER = {"//x", "/lead"}  # both are below "/", which is all that a listing tells
HIDDEN = {".blobfs-hidden-1", ".blobfs-hidden-2/x", "hides/.blobfs-hidden-3"}


def shown_tree() -> set[str]:
    """The paths that a mount of BLOBS shows; directories end in a slash."""
    paths = set()
    for name, metadata in BLOBS.items():
        segments = name.split("/")
        for depth in range(1, len(segments)):
            directory = "/".join(segments[:depth])
            if directory.startswith(".blobfs-hidden-") or "" in directory.split("/"):
                break
            paths.add(directory + "/")
        if name not in SHADOWED | UNSHOWABLE | HIDDEN and not name.endswith("/"):
            paths.add(name + "/" if metadata else name)
    return paths


def walk(root: Path) -> list[str]:
    """All paths below, by readdir alone, in the order and as often as they come."""
    paths = []
    pending = [""]
    while pending:
        directory = pending.pop()
        with os.scandir(root / directory) as entries:
            for entry in entries:
                is_directory = entry.is_dir(follow_symlinks=False)
                path = directory + entry.name + "/" * is_directory
                paths.append(path)
                if is_directory:
                    pending.append(path)
    return paths


def expect_shadow_and_unshowable(mount: Mount) -> None:
    mount.expect_log("WARNING .*cannot be shown")


def put_as_it_is(azurite: Azurite, container: str, name: str, body: bytes = b"") -> int:
    """Put Blob with the name in the URL untouched: the SDK's HTTP layer resolves `.` and `..`."""
    connection = http.client.HTTPConnection("127.0.0.1", azurite.port)
    path = f"/{azurite.account}/{container}/{urllib.parse.quote(name)}"
    try:
        connection.request(
            "PUT",
            f"{path}?{azurite.sas(container)}",
            body,
            {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2021-12-02"},
        )
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {code}]")) as failure:
        yield
    assert failure.value.errno == code


@pytest.fixture(scope="module")
def odd_container(azurite: Azurite) -> str:
    container = azurite.new_container()
    sdk = azurite.sdk(container)
    for name, metadata in BLOBS.items():
        if name.startswith("/") or "//" in name:
            assert put_as_it_is(azurite, container, name) == 201, name
        else:
            sdk.upload_blob(name, b"", metadata=metadata)
    assert set(sdk.list_blob_names()) == BLOBS.keys()
    return container


# --- what a listing shows --------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 2, 3, 4, 5, 6, 7, 5000])
def test_a_tree_of_odd_names_is_shown_whole_and_once_whatever_the_size_of_pages(
    page: int, azurite: Azurite, odd_container: str, tmp_path: Path
) -> None:
    with mounted(azurite, odd_container, tmp_path, f"list_page={page}", "ro") as mount:
        expect_shadow_and_unshowable(mount)
        found = walk(mount.path)
        assert sorted(found) == sorted(shown_tree())
        said = mount.log().count("cannot be shown")
        assert said == len(SHADOWED | UNSHOWABLE) - len(SKIPPED_TOGETHER) + 1


@pytest.mark.parametrize("page", [1, 5000])
def test_what_a_listing_shows_can_be_looked_up(
    page: int, azurite: Azurite, odd_container: str, tmp_path: Path
) -> None:
    with mounted(
        azurite, odd_container, tmp_path, f"list_page={page}", "metadata_ttl=0", "ro"
    ) as mount:
        expect_shadow_and_unshowable(mount)
        os.listdir(mount.path)
        for path in sorted(shown_tree()):
            is_directory = stat.S_ISDIR(os.lstat(mount.path / path).st_mode)
            assert is_directory == path.endswith("/"), path


# --- blobs that a directory cannot show --------------------------------------------------------


@pytest.fixture(scope="module")
def mount(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    directory = tmp_path_factory.mktemp("names")
    keys = write_key_file(directory / "keys.json", KEK)
    with mounted(
        azurite, azurite.new_container(), directory, "metadata_ttl=0", "list_page=7", key_file=keys
    ) as mount:
        yield mount


@pytest.fixture
def blobs(azurite: Azurite, mount: Mount) -> ContainerClient:
    return azurite.sdk(mount.source.rpartition("/")[2])


@pytest.fixture
def encrypted(azurite: Azurite, mount: Mount) -> ContainerClient:
    return encrypting(azurite, mount.source.rpartition("/")[2], KEK)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A directory's name for this test alone."""
    return str(request.function.__name__).removeprefix("test_")[:200]


def below(blobs: ContainerClient, prefix: str) -> list[str]:
    return sorted(blobs.list_blob_names(name_starts_with=prefix + "/"))


@pytest.mark.parametrize("dots", ["./x", "x/../y", "../x"], ids=["dot", "within", "two dots"])
def test_segments_of_dots_are_not_shown_and_not_removed(
    dots: str, azurite: Azurite, mount: Mount, blobs: ContainerClient, name: str
) -> None:
    container = mount.source.rpartition("/")[2]
    directory = f"{name} {dots.replace('/', ' ')}"
    assert put_as_it_is(azurite, container, f"{directory}/seen") == 201
    status = put_as_it_is(azurite, container, f"{directory}/{dots}")
    if f"{directory}/{dots}" not in below(blobs, directory):
        # The service resolved the dots, as Azure does, so there is no such blob to begin with.
        assert status in (201, 400)
        return
    mount.expect_log("WARNING .*cannot be shown")
    shown = walk(mount.path / directory)
    assert shown in (["seen"], ["seen", "x/"])
    os.unlink(mount.path / directory / "seen")
    with refused(errno.ENOTEMPTY):
        os.rmdir(mount.path / directory)


def test_a_directory_of_what_cannot_be_shown_is_empty_but_not_removed(
    azurite: Azurite, mount: Mount, blobs: ContainerClient, name: str
) -> None:
    mount.expect_log("WARNING .*cannot be shown")
    put_as_it_is(azurite, mount.source.rpartition("/")[2], f"{name}//x")
    blobs.upload_blob(f"{name}/{'n' * 256}", b"")
    before = below(blobs, name)
    assert os.listdir(mount.path / name) == []
    with refused(errno.ENOTEMPTY):
        os.rmdir(mount.path / name)
    assert below(blobs, name) == before


def test_what_cannot_be_shown_moves_with_its_directory(
    azurite: Azurite, mount: Mount, blobs: ContainerClient, name: str
) -> None:
    mount.expect_log("WARNING .*cannot be shown")
    put_as_it_is(azurite, mount.source.rpartition("/")[2], f"{name}//x")
    blobs.upload_blob(f"{name}/{'n' * 256}", b"")
    (mount.path / name / "file").write_bytes(PLAINTEXT_MARKER)
    os.rename(mount.path / name, mount.path / f"{name}2")
    assert below(blobs, name) == []
    assert below(blobs, f"{name}2") == [f"{name}2//x", f"{name}2/file", f"{name}2/{'n' * 256}"]
    assert (mount.path / f"{name}2/file").read_bytes() == PLAINTEXT_MARKER


def test_a_file_that_a_directory_hides_is_shown_when_the_directory_goes(
    mount: Mount, encrypted: ContainerClient, name: str
) -> None:
    mount.expect_log("WARNING .*cannot be shown")
    (mount.path / name).mkdir()
    encrypted.upload_blob(f"{name}/a", PLAINTEXT_MARKER)
    encrypted.upload_blob(f"{name}/a/b", b"below")
    hidden_by = mount.path / name / "a"
    assert hidden_by.is_dir()
    os.unlink(hidden_by / "b")
    assert hidden_by.read_bytes() == PLAINTEXT_MARKER


def test_a_directory_that_hides_a_file_is_renamed_without_it(
    mount: Mount, encrypted: ContainerClient, blobs: ContainerClient, name: str
) -> None:
    mount.expect_log("WARNING .*cannot be shown")
    (mount.path / name).mkdir()
    encrypted.upload_blob(f"{name}/a", PLAINTEXT_MARKER)
    encrypted.upload_blob(f"{name}/a/b", b"below")
    os.rename(mount.path / name / "a", mount.path / name / "c")
    assert (mount.path / name / "c/b").read_bytes() == b"below"
    assert (mount.path / name / "a").read_bytes() == PLAINTEXT_MARKER


def test_hidden_blobs_are_neither_shown_nor_found_nor_made(
    mount: Mount, blobs: ContainerClient, name: str
) -> None:
    hidden = ".blobfs-hidden-0123"
    blobs.upload_blob(f"{name}/{hidden}", b"")
    blobs.upload_blob(f"{name}/seen", b"")
    assert os.listdir(mount.path / name) == ["seen"]
    assert not os.path.lexists(mount.path / name / hidden)
    for make in (os.mkdir, os.mkfifo, Path.touch, lambda path: os.symlink("x", path)):
        with refused(errno.EINVAL):
            make(mount.path / name / hidden)
    with refused(errno.EINVAL):
        os.rename(mount.path / name / "seen", mount.path / name / hidden)
    with refused(errno.ENOENT):
        os.unlink(mount.path / name / hidden)
    assert below(blobs, name) == [f"{name}/{hidden}", f"{name}/seen"]


def test_a_name_that_ends_in_a_dot_is_read_and_removed_but_not_made(
    mount: Mount, encrypted: ContainerClient, name: str
) -> None:
    encrypted.upload_blob(f"{name}/dot.", PLAINTEXT_MARKER)
    (mount.path / name / "other").touch()
    assert (mount.path / name / "dot.").read_bytes() == PLAINTEXT_MARKER
    os.unlink(mount.path / name / "dot.")
    with refused(errno.EINVAL):
        (mount.path / name / "dot.").touch()
    assert os.listdir(mount.path / name) == ["other"]


def test_a_marker_with_a_slash_is_a_directory_that_can_be_used_and_removed(
    mount: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(f"{name}/", b"", metadata={"modtime": "1577934245000000001"})
    directory = mount.path / name
    assert os.listdir(directory) == []
    assert directory.stat().st_mtime_ns == 1577934245000000001
    (directory / "file").write_bytes(PLAINTEXT_MARKER)
    assert os.listdir(directory) == ["file"]
    os.rename(directory, f"{directory}2")
    assert not directory.exists()
    assert (mount.path / f"{name}2/file").read_bytes() == PLAINTEXT_MARKER
    os.unlink(mount.path / f"{name}2/file")
    os.rmdir(mount.path / f"{name}2")
    assert below(blobs, name) == below(blobs, f"{name}2") == []


# --- names that a mount makes ------------------------------------------------------------------

GOOD_NAMES = {
    "blanks": " a  b ",
    "percent": "100% %41 %2F",
    "query": "q?a=b&c#d+e",
    "markup": "<a href='x'>\"&amp;",
    "composed": NFC,
    "decomposed": NFD,
    "beyond the BMP": "\U0001f600\U00020000",
    "right to left": "\u05d0\u05d1\u0627",
    "255 bytes": "\u00e9" * 127 + "x",
    "a leading dot": "..x",
    "a replacement character": "\ufffd",
    "invisible": "\u200b\u2028\u00a0",
}


@pytest.mark.parametrize("kind", GOOD_NAMES)
def test_a_name_is_stored_as_it_is(
    kind: str, mount: Mount, encrypted: ContainerClient, blobs: ContainerClient, name: str
) -> None:
    odd = GOOD_NAMES[kind]
    directory = mount.path / f"{name} {kind}"
    directory.mkdir()
    (directory / odd).write_bytes(PLAINTEXT_MARKER)
    (directory / "d").mkdir()
    os.rename(directory / odd, directory / "d" / odd)
    assert os.listdir(directory / "d") == [odd]
    assert download(encrypted, f"{directory.name}/d/{odd}") == PLAINTEXT_MARKER
    os.rename(directory / "d", directory / odd)
    assert below(blobs, directory.name) == [
        f"{directory.name}/{odd}",
        f"{directory.name}/{odd}/{odd}",
    ]


def test_composed_and_decomposed_are_two_files(mount: Mount, name: str) -> None:
    (mount.path / name).mkdir()
    (mount.path / name / NFC).write_bytes(b"composed")
    (mount.path / name / NFD).write_bytes(b"decomposed")
    assert sorted(os.listdir(mount.path / name)) == sorted([NFC, NFD])
    assert (mount.path / name / NFC).read_bytes() == b"composed"


def nested(segments: list[str]) -> Iterator[str]:
    return ("/".join(segments[: depth + 1]) for depth in range(len(segments)))


@pytest.mark.parametrize(
    "segment",
    # Azure counts what UTF-16 counts: each of the second kind is two
    ["x" * 200, "\U0001f600" * 60],
    ids=["ASCII", "beyond the BMP"],
)
def test_a_path_of_1024_characters_is_the_longest(
    segment: str, azurite: Azurite, tmp_path: Path, container: str
) -> None:
    length = len(segment.encode("utf-16-le")) // 2
    depth = 1000 // (length + 1)
    directory = "/".join([segment] * depth)
    last = "y" * (1024 - depth * (length + 1))
    with mounted(azurite, container, tmp_path) as mount:
        os.makedirs(mount.path / directory)
        (mount.path / directory / last).write_bytes(PLAINTEXT_MARKER)
        with refused(errno.ENAMETOOLONG):
            (mount.path / directory / (last + "y")).touch()
        with refused(errno.ENAMETOOLONG):
            os.rename(mount.path / directory / last, mount.path / directory / (last + "y"))
        # A directory above may not get a longer name either: nothing is moved.
        with refused(errno.ENAMETOOLONG):
            os.rename(mount.path / segment, mount.path / (segment + "y"))
        assert os.listdir(mount.path) == [segment]
        assert (mount.path / directory / last).read_bytes() == PLAINTEXT_MARKER


def test_a_path_of_254_segments_is_the_deepest(
    azurite: Azurite, tmp_path: Path, container: str
) -> None:
    deepest = list(nested(["s"] * 253))[-1]
    azurite.sdk(container).upload_blob(f"{deepest}/marker", b"")
    with mounted(azurite, container, tmp_path) as mount:
        (mount.path / deepest / "file").write_bytes(PLAINTEXT_MARKER)
        os.mkdir(mount.path / deepest / "directory")
        with refused(errno.ENAMETOOLONG):
            (mount.path / deepest / "directory" / "file").touch()
        assert sorted(os.listdir(mount.path / deepest)) == ["directory", "file", "marker"]


# --- reading a directory while it changes ------------------------------------------------------


@pytest.fixture
def forty(mount: Mount, blobs: ContainerClient, name: str) -> Path:
    """A directory of forty files, six pages."""
    for number in range(40):
        blobs.upload_blob(f"{name}/{number:03}", b"")
    return mount.path / name


FORTY = {f"{number:03}" for number in range(40)}


def once(names: list[str]) -> set[str]:
    assert len(names) == len(set(names)), "delivered twice"
    return set(names)


def test_files_made_meanwhile_do_not_disturb_a_listing(forty: Path) -> None:
    names = []
    with os.scandir(forty) as entries:
        for number, entry in enumerate(entries):
            names.append(entry.name)
            if number < 40:
                (forty / f"{'az~'[number % 3]}{number}").touch()
    assert once(names) >= FORTY


def test_files_removed_meanwhile_do_not_disturb_a_listing(forty: Path) -> None:
    names = []
    with os.scandir(forty) as entries:
        for entry in entries:
            names.append(entry.name)
            if int(entry.name) % 2 == 0:
                os.unlink(entry.path)  # one that was delivered
            if entry.name == "020":
                os.unlink(forty / "039")  # one that was not
    assert once(names) == FORTY - {"039"}
    assert set(os.listdir(forty)) == {name for name in FORTY if int(name) % 2} - {"039"}


def test_files_rewritten_meanwhile_are_listed_once(forty: Path) -> None:
    names = []
    with os.scandir(forty) as entries:
        for entry in entries:
            names.append(entry.name)
            Path(entry.path).write_bytes(PLAINTEXT_MARKER)
            os.chmod(entry.path, 0o600)
    assert once(names) == FORTY


def test_files_renamed_meanwhile_are_listed_under_one_name_each(forty: Path) -> None:
    names = []
    with os.scandir(forty) as entries:
        for entry in entries:
            names.append(entry.name)
            if entry.name in FORTY:
                os.rename(entry.path, forty / f"x{entry.name}")
    assert once(names) >= FORTY
    assert set(os.listdir(forty)) == {f"x{name}" for name in FORTY}


def test_a_file_that_is_stored_while_the_directory_is_read_is_listed_once(forty: Path) -> None:
    """It was there all the time: first in the mount alone, then at the service."""
    for where in ("000a", "039a"):
        names = []
        file = os.open(forty / where, os.O_CREAT | os.O_WRONLY)
        with os.scandir(forty) as entries:
            for number, entry in enumerate(entries):
                names.append(entry.name)
                if number == 20:
                    os.close(file)
        assert where in once(names)
        assert once(names) >= FORTY


def test_others_changes_meanwhile_do_not_disturb_a_listing(
    forty: Path, blobs: ContainerClient
) -> None:
    names = []
    with os.scandir(forty) as entries:
        for number, entry in enumerate(entries):
            names.append(entry.name)
            if number == 20:
                for other in ("000a", "021", "039a"):
                    blobs.upload_blob(f"{forty.name}/{other}", b"", overwrite=True)
                for gone in ("001", "038"):
                    blobs.delete_blob(f"{forty.name}/{gone}")
    assert once(names) >= FORTY - {"001", "038"}


# glibc's directory streams, which Python does not have.
_libc = ctypes.CDLL(None, use_errno=True)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.telldir.restype = ctypes.c_long
for _function in ("readdir", "telldir", "rewinddir", "closedir"):
    getattr(_libc, _function).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Directory:
    """An open directory stream."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self) -> str | None:
        entry = _libc.readdir(self._stream)
        return entry.contents.d_name.decode() if entry else None

    def rest(self) -> list[str]:
        return [name for name in iter(self.read, None) if name not in (".", "..")]

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@pytest.fixture
def stream(forty: Path) -> Iterator[Directory]:
    directory = Directory(forty)
    yield directory
    directory.close()


def test_rewinddir_shows_the_directory_as_it_is_then(
    stream: Directory, forty: Path, blobs: ContainerClient
) -> None:
    assert once(stream.rest()) == FORTY
    os.unlink(forty / "020")
    (forty / "new").touch()
    blobs.delete_blob(f"{forty.name}/030")
    stream.rewind()
    assert once(stream.rest()) == FORTY - {"020", "030"} | {"new"}
    blobs.delete_blob(f"{forty.name}/new")
    stream.rewind()
    assert once(stream.rest()) == FORTY - {"020", "030"}


def test_seekdir_goes_back_to_any_place_that_telldir_named(stream: Directory) -> None:
    positions = []
    names = []
    while True:
        positions.append(stream.tell())
        name = stream.read()
        if name is None:
            break
        names.append(name)
    assert once(names) >= FORTY
    for index in (39, 27, 8, 7, 6, 0, 40, 33):
        stream.seek(positions[index])
        assert stream.rest() == [name for name in names[index:] if name in FORTY]


def test_two_streams_of_one_directory_do_not_disturb_each_other(
    stream: Directory, forty: Path
) -> None:
    half = [stream.read() for _ in range(20)]
    assert once(os.listdir(forty)) == FORTY
    assert {*half, *stream.rest()} - {".", ".."} == FORTY
