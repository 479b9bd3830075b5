"""Shares of what is limited: memory for what is under way, say. First come, first served."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Room:
    """`limit` shares, bytes as a rule; who asks for more than that gets all of it, alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def used(self) -> int:
        return self._used

    async def take(self, size: int) -> int:
        """Wait for room; the shares to `give` back. Cancelled, it has taken nothing."""
        size = min(size, self._limit)
        entry = size, trio.Event()
        self._waiting.append(entry)
        self._let_in()
        if entry[1].is_set():
            return size
        try:
            await entry[1].wait()
        except trio.Cancelled:
            if entry[1].is_set():
                self.give(size)
            else:
                self._waiting.remove(entry)
                self._let_in()
            raise
        return size

    def give(self, size: int) -> None:
        self._used -= size
        self._let_in()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        size = await self.take(size)
        try:
            yield
        finally:
            self.give(size)

    def _let_in(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self._limit:
            size, event = self._waiting.popleft()
            self._used += size
            event.set()
