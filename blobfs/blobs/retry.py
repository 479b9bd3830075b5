"""Which failures are worth another attempt, and the one loop that makes it."""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import trio

from blobfs.errors import Unavailable

log = logging.getLogger(__name__)

_ATTEMPT_TIMEOUT = 20.0

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Ten attempts with these delays last 23 to 46 s, the rest of a file operation's minute.

    An attempt may take `attempt_timeout` seconds without any progress, and in all that plus the
    time its bytes take at `slowest` bytes a second: slow links finish, dead ones are given up. No
    attempt begins later than `patience` seconds after the first.
    """

    attempts: int = 10
    first_delay: float = 0.25
    longest_delay: float = 10.0
    attempt_timeout: float = _ATTEMPT_TIMEOUT
    slowest: int = 16 * 1024
    patience: float = math.inf

    @classmethod
    def within(cls, timeout: float) -> Self:
        """For operations that have so many seconds: one of three attempts may be answered by
        nobody, and what has no deadline of its own ends all the same."""
        longest = min(_ATTEMPT_TIMEOUT, timeout / 3)
        return cls(attempt_timeout=longest, patience=timeout)

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
    number of seconds to wait, as the service asked; `progressed` that the next one has less to do.
    """

    progressed = False

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
    attempts in a row without progress, or at once when the wait would outlast the policy's patience
    or the caller's deadline. Never waits beyond that deadline, and lets every other exception pass.
    """
    patient_until = trio.current_time() + policy.patience
    doubtful = False
    failures = 0
    while True:
        try:
            return await attempt(), doubtful
        except Transient as failure:
            # A cancelled caller is told so, not that the service is unavailable.
            await trio.lowlevel.checkpoint_if_cancelled()
            if failure.progressed:
                failures, patient_until = 0, trio.current_time() + policy.patience
            failures += 1
            doubtful = doubtful or failure.applied
            delay = max(policy.delay(failures, rng), failure.after)
            until = min(patient_until, trio.current_effective_deadline())
            if failures >= policy.attempts or trio.current_time() + delay >= until:
                raise failure.error from failure.__cause__
            log.info("attempt %d: %s; again in %.2f s", failures, failure.error, delay)
        await trio.sleep(delay)
