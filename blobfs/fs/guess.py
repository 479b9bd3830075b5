"""A name that is looked up may be a directory's: it is listed at the same time as its parent.

Who comes to a directory comes along a path, and each part of it that nobody has looked at costs a
round trip. A guess that was in vain costs a request.
"""

import logging

import trio

from blobfs.blobs import Container, Page
from blobfs.errors import BlobfsError
from blobfs.fs.store import Store
from blobfs.inodes import Node
from blobfs.names import HIDDEN_PREFIX, is_storable

log = logging.getLogger(__name__)

PAUSE = 60.0
"""Seconds without another guess after one that was in vain."""


class Guess:
    """The first page of a listing of what may be a directory.

    There is no node of it yet, so this mount changes nothing below it meanwhile.
    """

    def __init__(self, fresh_until: float) -> None:
        self.fresh_until = fresh_until
        self._page: Page | None = None
        self._has_ended = trio.Event()

    def end(self, page: Page | None) -> None:
        self._page = page
        self._has_ended.set()

    async def page(self) -> Page | None:
        """None when it has failed: then whoever asks again is told what is wrong."""
        await self._has_ended.wait()
        return self._page


class Guesses:
    """Those of one mount, one at a time; their requests run in the store's nursery."""

    def __init__(self, store: Store, page_size: int) -> None:
        self._store = store
        self._page_size = page_size
        self._none_until = 0.0

    def begin(self, parent: Node, name: str) -> Guess | None:
        """To be called before the parent is listed, for a name of which there is no node. None
        when a file is more likely: few directories have a dot in their name. There is no other
        until it `was_right`, or for a while. Raises ConditionFailed for a parent that is gone."""
        is_likely = "." not in name and is_storable(name) and not name.startswith(HIDDEN_PREFIX)
        if not is_likely or trio.current_time() < self._none_until:
            return None
        store = self._store
        guess = Guess(store.fresh_until())
        prefix = store.blob_name(parent, name) + "/"
        store.nursery.start_soon(self._ask, guess, store.volume(parent).container, prefix)
        self._none_until = trio.current_time() + PAUSE
        return guess

    def was_right(self) -> None:
        self._none_until = 0.0

    async def _ask(self, guess: Guess, container: Container, prefix: str) -> None:
        page = None
        try:
            with trio.move_on_after(self._store.write_policy.timeout):
                page = await container.list(prefix, max_results=self._page_size)
        except BlobfsError as exc:
            log.debug("%s: not listed by a guess: %s", prefix, exc)
        except Exception:  # nobody waits for it, and it must not end the mount
            log.exception("%s: a bug in blobfs", prefix)
        finally:
            guess.end(page)
