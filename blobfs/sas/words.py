"""Times and rights as messages show them."""

from datetime import UTC, datetime, timedelta

from blobfs.sas.rights import PERMISSIONS


def in_order(letters: frozenset[str]) -> str:
    """The letters as `sp` has them, unknown ones last."""
    known = [letter for letter in PERMISSIONS if letter in letters]
    return "".join(known + sorted(letters - PERMISSIONS.keys()))


def stamp(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(delta: timedelta) -> str:
    """`delta` in its largest unit that is at least one: `3 days`, `1 minute`."""
    seconds = int(abs(delta).total_seconds())
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{seconds // size} {unit}{'s' * (seconds >= 2 * size)}"
    return f"{seconds} second{'s' * (seconds != 1)}"
