"""Counting that is cheap enough for every call: latencies in fixed buckets. Pure.

Each part of a mount counts what it does itself (`Client`, `Reader`, `Operations`); `status`
collects. Nothing here is global, so that two mounts in one process would not mix.
"""

from bisect import bisect_left
from itertools import accumulate

BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the buckets in seconds; one more bucket holds what took longer."""


class Histogram:
    """How long the calls of one kind took."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """For each bound, and then for all, how many calls took no longer."""
        return list(accumulate(self.counts))

    def quantile(self, fraction: float) -> float:
        """Seconds that this fraction of the calls took at the most, interpolated within a bucket;
        0 without a call, and the last bound for what took longer than that."""
        rank = fraction * self.count
        below = 0
        lower = 0.0
        for upper, count in zip(BOUNDS, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below += count
            lower = upper
        return BOUNDS[-1] if below < self.count else 0.0


class Latencies(dict[str, Histogram]):
    """A histogram for each kind of call, made when the first is observed."""

    def __missing__(self, kind: str) -> Histogram:
        histogram = self[kind] = Histogram()
        return histogram
