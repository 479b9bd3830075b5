"""Whether an answer is the one that was asked for, and whether a blob is the one that we sent."""

from collections.abc import Callable, Mapping

from blobfs.blobs.messages import Answer, BrokenAnswer
from blobfs.blobs.model import BlobInfo, Page


def check_page(page: Page, prefix: str, marker: str) -> Page:
    """The page, if it is of the listing of `prefix` and begins at `marker`. Raises ValueError for
    another: one that leads to itself would be asked for without end."""
    if marker and page.next_marker == marker:
        raise BrokenAnswer("the page before again")
    for name in (*(blob.name for blob in page.blobs), *page.prefixes):
        if not name.startswith(prefix):
            raise BrokenAnswer(f"{name!r}, which is not below {prefix!r}")
    return page


def info_of(answer: Answer, etag: str | None = None) -> BlobInfo:
    """What the answer says of its blob. Raises ValueError for another version than `etag`."""
    info = answer.info()
    if not info.etag or etag not in (None, info.etag):
        raise BrokenAnswer(f"the ETag {info.etag!r}" if info.etag else "no ETag")
    return info


def is_in_doubt(answer: Answer) -> bool:
    """Whether a conflict may be with the same request's attempt before."""
    return answer.doubtful and answer.status in (409, 412)


def has(metadata: Mapping[str, str], size: int | None = None) -> Callable[[BlobInfo], bool]:
    """Whether a blob is what we sent. No metadata is no mark, so nothing has that."""
    expected = {name.lower(): value for name, value in metadata.items()}

    def is_ours(info: BlobInfo) -> bool:
        found = {name.lower(): value for name, value in info.metadata.items()}
        return bool(expected) and found == expected and size in (None, info.size)

    return is_ours
