"""Which failures are worth another attempt, and the one loop that makes it."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from blobfs.errors import Unavailable

log = logging.getLogger(__name__)

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Ten attempts with these delays last some 45 s, the rest of a file operation's minute.

    An attempt may take `attempt_timeout` seconds without any progress, and in all that plus the
    time its bytes take at `slowest` bytes a second: slow links finish, dead ones are given up.
    """

    attempts: int = 10
    first_delay: float = 0.25
    longest_delay: float = 10.0
    attempt_timeout: float = 20.0
    slowest: int = 16 * 1024

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after so many failures in a row: doubled each time, and jittered over
        its upper half so that clients which failed together do not return together."""
        delay = min(self.first_delay * 2.0 ** (failures - 1), self.longest_delay)
        return delay * rng.uniform(0.5, 1)

    def time_for(self, body_bytes: int) -> float:
        """Seconds that one attempt may take which moves so many bytes."""
        return self.attempt_timeout + body_bytes / self.slowest


class Transient(Exception):
    """One attempt failed in a way that the next may not.

    `applied` says whether the service may have carried it out all the same; `after` is the least
    number of seconds to wait, as the service asked.
    """

    def __init__(self, error: Unavailable, *, applied: bool, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.applied = applied
        self.after = after


async def persist(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, rng: random.Random
) -> tuple[T, bool]:
    """What `attempt` returns, and whether one before it may have been applied unseen.

    Repeats while it raises Transient; then raises its error: after the policy's number of
    attempts, or at once when the wait would outlast the caller's deadline. Never waits beyond
    that deadline, and lets every other exception pass.
    """
    doubtful = False
    failures = 0
    while True:
        try:
            return await attempt(), doubtful
        except Transient as failure:
            # A cancelled caller is told so, not that the service is unavailable.
            await trio.lowlevel.checkpoint_if_cancelled()
            failures += 1
            doubtful = doubtful or failure.applied
            delay = max(policy.delay(failures, rng), failure.after)
            if failures >= policy.attempts or _outlasts_deadline(delay):
                raise failure.error from failure.__cause__
            log.info("attempt %d: %s; again in %.2f s", failures, failure.error, delay)
        await trio.sleep(delay)


def _outlasts_deadline(delay: float) -> bool:
    return trio.current_time() + delay >= trio.current_effective_deadline()
