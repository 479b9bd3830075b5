"""Operations on a mount, one at a time, each with what is stored before it and after it.

Together they make every call of `tests.faults.CALLS`; `STEPS_OF` says which steps make which.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from azure.storage.blob import BlobProperties, ContainerClient

from tests import faults
from tests.sdk import content, download

State = dict[str, object]
"""What is stored under each name of a step: see `Step.see`."""

DIRECTORY = "a directory"
LARGE = 8 * 1024 * 1024 + 4096  # a block while it is written, and a rest that close sends


class Wrong(AssertionError):
    """An operation succeeded, and not with what is stored."""


@dataclass(frozen=True)
class Step:
    """`act` is done in the mount and may raise OSError, or Wrong; names are below a directory of
    the step's own. `see` is what of a blob is compared, beside its content."""

    name: str
    before: State
    after: State
    act: Callable[[Path], object]
    see: Callable[[ContainerClient, BlobProperties], object] = lambda client, blob: None


def _body(label: str, size: int = 9000) -> bytes:
    return content(size, seed=len(label)) + label.encode()


OLD, NEW, OTHER = _body("old"), _body("newer"), _body("another")
BIG = _body("big", LARGE)


def _stored(body: object, seen: object = None) -> tuple[object, object]:
    return (body, seen)


def _write(name: str, body: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(body)


def _append(path: Path) -> None:
    with (path / "a").open("ab") as file:
        file.write(NEW)


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{len(found) if isinstance(found, bytes) else found!r}")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags)
    try:
        yield file
    finally:
        os.close(file)


def _read_part(path: Path) -> None:
    with _opened(path / "a", os.O_RDONLY | os.O_DIRECT) as file:
        _expect(os.pread(file, 4096, 4096), OLD[4096:8192])


def _unlink_open(path: Path) -> None:
    with _opened(path / "a", os.O_RDONLY | os.O_DIRECT) as file:
        (path / "a").unlink()
        _expect(os.pread(file, len(OLD), 0), OLD)


def _list(path: Path) -> None:
    found = {entry.name for entry in os.scandir(path)}
    if found != set(_MANY):
        raise Missing(found) if found < set(_MANY) else Wrong(f"{sorted(found)}")


class Missing(Wrong):
    """A listing without some of the names."""


def _mode(client: ContainerClient, blob: BlobProperties) -> object:
    return blob.metadata.get("permissions")


def _colour(client: ContainerClient, blob: BlobProperties) -> object:
    return blob.metadata.get("colour")


def _language(client: ContainerClient, blob: BlobProperties) -> object:
    return blob.content_settings.content_language


def _tags(client: ContainerClient, blob: BlobProperties) -> object:
    return dict(client.get_blob_client(blob.name).get_blob_tags() or {})


def _link(client: ContainerClient, blob: BlobProperties) -> object:
    return blob.metadata.get("is_symlink")


_MANY: State = {f"f{number}": _stored(_body("x" * number, 500)) for number in range(7)}
_A: State = {"a": _stored(OLD)}
_TREE: State = {f"d/{name}": _stored(body) for name, body in (("x", OLD), ("y", NEW), ("z", OTHER))}
_MOVED: State = {name.replace("d/", "e/"): body for name, body in _TREE.items()}

STEPS = {
    step.name: step
    for step in (
        Step("create", {}, {"a": _stored(NEW)}, _write("a", NEW)),
        Step("overwrite", _A, {"a": _stored(NEW)}, _write("a", NEW)),
        Step("append", _A, {"a": _stored(OLD + NEW)}, _append),
        Step("truncate", _A, {"a": _stored(OLD[:5000])}, lambda p: os.truncate(p / "a", 5000)),
        Step("large", {}, {"a": _stored(BIG)}, _write("a", BIG)),
        Step("large over", _A, {"a": _stored(BIG)}, _write("a", BIG)),
        Step("mkdir", {}, {"d": _stored(DIRECTORY)}, lambda p: (p / "d").mkdir()),
        Step(
            "symlink",
            {},
            {"a": _stored(b"some/where", "true")},
            lambda p: (p / "a").symlink_to("some/where"),
            _link,
        ),
        Step("list", _MANY, _MANY, _list),
        Step("stat", _A, _A, lambda p: _expect((p / "a").stat().st_size, len(OLD))),
        Step("read", _A, _A, lambda p: _expect((p / "a").read_bytes(), OLD)),
        Step("read a part", _A, _A, _read_part),
        Step(
            "chmod",
            {"a": _stored(OLD, None)},
            {"a": _stored(OLD, str(0o100640))},
            lambda p: (p / "a").chmod(0o640),
            _mode,
        ),
        Step(
            "set metadata",
            {"a": _stored(OLD, None)},
            {"a": _stored(OLD, "blue")},
            lambda p: os.setxattr(p / "a", "user.azure.metadata.colour", b"blue"),
            _colour,
        ),
        Step(
            "set a header",
            {"a": _stored(OLD, None)},
            {"a": _stored(OLD, "cy")},
            lambda p: os.setxattr(p / "a", "user.azure.content_language", b"cy"),
            _language,
        ),
        Step(
            "set a tag",
            {"a": _stored(OLD, {"size": "L"})},
            {"a": _stored(OLD, {"size": "L", "colour": "blue"})},
            lambda p: os.setxattr(p / "a", "user.azure.tag.colour", b"blue"),
            _tags,
        ),
        Step("unlink", _A, {}, lambda p: (p / "a").unlink()),
        Step("unlink, open", _A, {}, _unlink_open),
        Step("rmdir", {"d": _stored(DIRECTORY)}, {}, lambda p: (p / "d").rmdir()),
        Step("rename", _A, {"b": _stored(OLD)}, lambda p: (p / "a").rename(p / "b")),
        Step(
            "rename over",
            {**_A, "b": _stored(OTHER)},
            {"b": _stored(OLD)},
            lambda p: (p / "a").rename(p / "b"),
        ),
        Step(
            "rename, tagged",
            {"a": _stored(OLD, {"size": "L"})},
            {"b": _stored(OLD, {"size": "L"})},
            lambda p: (p / "a").rename(p / "b"),
            _tags,
        ),
        Step(
            "rename a directory",
            {"d": _stored(DIRECTORY), **_TREE},
            {"e": _stored(DIRECTORY), **_MOVED},
            lambda p: (p / "d").rename(p / "e"),
        ),
    )
}

STEPS_OF = {
    faults.LIST: ("list", "rmdir", "rename a directory"),
    faults.HEAD: ("read", "stat", "append"),
    faults.GET: ("read", "read a part", "append"),
    faults.PUT: ("create", "overwrite", "append", "truncate", "mkdir", "symlink"),
    faults.BLOCK: ("large", "large over"),
    faults.BLOCK_LIST: ("large", "large over", "large"),
    faults.METADATA: ("chmod", "set metadata", "rename a directory"),
    faults.PROPERTIES: ("set a header",) * 3,
    faults.GET_TAGS: ("set a tag", "rename, tagged", "set a tag"),
    faults.SET_TAGS: ("set a tag",) * 3,
    faults.COPY: ("rename", "rename over", "rename a directory", "unlink, open"),
    faults.DELETE: ("rename", "unlink", "rename a directory", "rmdir", "unlink, open"),
}


def prepare(step: Step, sdk: ContainerClient, raw: ContainerClient, directory: str) -> None:
    """Store what is there before; `sdk` encrypts."""
    for name, stored in step.before.items():
        assert isinstance(stored, tuple)
        body, seen = stored
        if body == DIRECTORY:
            raw.upload_blob(f"{directory}/{name}", b"", metadata={"hdi_isfolder": "true"})
        else:
            sdk.upload_blob(f"{directory}/{name}", body)
            if step.see is _tags:
                raw.get_blob_client(f"{directory}/{name}").set_blob_tags(seen)


def stored(step: Step, sdk: ContainerClient, raw: ContainerClient, directory: str) -> State:
    """What is there now, past blobfs: names, decrypted contents, and what the step sees."""
    found: State = {}
    for blob in raw.list_blobs(name_starts_with=f"{directory}/", include=["metadata"]):
        body: object = DIRECTORY
        if "hdi_isfolder" not in (blob.metadata or {}):
            body = download(sdk, blob.name)
        blob.metadata = blob.metadata or {}
        found[blob.name.removeprefix(f"{directory}/")] = _stored(body, step.see(raw, blob))
    return found
