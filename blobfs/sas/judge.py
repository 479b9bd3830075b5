"""Whether a mount can work with a token, and why not, before anything is mounted."""

from datetime import datetime, timedelta

from blobfs.errors import SasError, SasTimeError
from blobfs.sas.token import RESOURCES, Sas, damaged
from blobfs.sas.words import in_order, span, stamp

START_SKEW = timedelta(minutes=15)
"""How far ahead of the clock a token may start: the clock skew that Azure's SAS practices reckon
with. Within it the service decides. An expiry gets no such grace."""


def writable(sas: Sas) -> bool | None:
    """Whether files can be written; None when only the stored access policy knows.

    `w` decides: with it alone a new or existing blob can be stored. A token without `d` still
    writes, but deletes and renames are refused; without `w` everything but reading is.
    """
    return None if sas.permissions is None else "w" in sas.permissions


def check(
    sas: Sas, *, now: datetime | None, scheme: str, prefix: str, read_only: bool
) -> list[str]:
    """What the user should know about mounting with this token: one line each.

    `scheme` and `prefix` (decoded, "" for the whole container) are the source's; `read_only`
    is whether a read-only mount is asked for; `now` is None when the times are not to be looked
    at. Raises SasError when the token cannot work, SasTimeError when only not at this time. The
    signature, and so the container that it is for, can only be checked by the service.
    """
    if sas.is_account:
        raise SasError(
            "this is an account SAS (ss=, srt=), blobfs wants one for a container (sr=c): "
            "make it with blobfs sas create, or in the portal on the container"
        )
    if sas.resource not in ("c", "d"):
        what = RESOURCES.get(sas.resource, "something that is not a container")
        raise SasError(
            f"the SAS token is for {what}, a mount needs one for the container (sr=c): "
            "make it with blobfs sas create, or in the portal on the container"
        )
    if sas.resource == "d":
        depth = len(prefix.split("/")) if prefix else 0
        if sas.directory_depth is None:
            raise damaged("it is for a directory (sr=d) but has no sdd= field")
        if depth < sas.directory_depth:
            raise SasError(
                f"the SAS token is for a directory {sas.directory_depth} deep in the container: "
                "give that directory, or one below it, as the source"
            )
    if now is not None and (problem := untimely(sas, now)):
        raise SasTimeError(problem)
    if scheme not in sas.protocols:
        raise SasError(
            f"the SAS token allows {' and '.join(sorted(sas.protocols))} only (spr=), "
            f"the source is {scheme}: change the source's scheme or get another token"
        )
    if sas.permissions is None:
        return [f"the rights come from the stored access policy {sas.identifier}"]
    if missing := [letter for letter in "rl" if letter not in sas.permissions]:
        raise SasError(
            f"the SAS token lacks {', '.join(missing)} (it has sp={in_order(sas.permissions)}): "
            "a mount needs r and l at least, and w, c, d to write"
        )
    missing = [letter for letter in "wd" if letter not in sas.permissions]
    if read_only or not missing:
        return []
    has = f"the token lacks {', '.join(missing)} (has {in_order(sas.permissions)})"
    if "w" in missing:
        return [f"mounted read-only: {has}"]
    return [f"nothing can be deleted or renamed: {has}"]


def untimely(sas: Sas, now: datetime) -> str:
    """Why the token is not valid at this time, "" when it is."""
    expiry = sas.effective_expiry
    if expiry is not None and expiry <= now:
        return f"the SAS token expired at {stamp(expiry)} ({span(now - expiry)} ago): get a new one"
    if sas.start is not None and sas.start > now + START_SKEW:
        return (
            f"the SAS token is not valid before {stamp(sas.start)} "
            f"(in {span(sas.start - now)}): wait, get another one, or set this machine's clock"
        )
    return ""


def clock_note(skew: float | None) -> str:
    """By how much this machine's clock is off, when that matters; `skew` is how many seconds the
    service's clock is ahead."""
    if skew is None or abs(skew) < 60:
        return ""
    direction = "behind" if skew > 0 else "ahead of"
    return f"this machine's clock is {span(timedelta(seconds=skew))} {direction} the service's"
