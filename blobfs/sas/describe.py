"""What a token says, for people to read. No secret in it."""

from datetime import datetime

from blobfs.sas.rights import ABILITIES, PERMISSIONS, lacking
from blobfs.sas.token import RESOURCES, Sas
from blobfs.sas.words import in_order, span, stamp


def describe(sas: Sas, now: datetime) -> list[tuple[str, str]]:
    """Rows of (field, meaning); `now` is by the service's clock, as far as that is known."""
    kind = "service SAS, signed with an account key"
    if sas.is_account:
        kind = "account SAS, which blobfs does not take"
    elif sas.is_user_delegation:
        kind = "user delegation SAS, signed with a Microsoft Entra user's delegation key"
    rows = [("kind", kind), ("sv", f"service version {sas.version}")]
    if not sas.is_account:
        rows.append(("sr", RESOURCES.get(sas.resource, f"{sas.resource} (unknown)")))
    if sas.directory_depth is not None:
        rows.append(("sdd", f"the directory is {sas.directory_depth} deep in the container"))
    if sas.permissions is not None:
        rows.append(("sp", in_order(sas.permissions)))
        rows += [(x, PERMISSIONS.get(x, "unknown to this version")) for x in rows[-1][1]]
    if sas.identifier:
        policy = f"stored access policy {sas.identifier}: what is not in the token comes from it"
        rows.append(("si", policy))
    if sas.start is not None:
        state = f"in {span(sas.start - now)}" if sas.start > now else "valid"
        rows.append(("st", f"from {stamp(sas.start)} ({state})"))
    for name, when, what in (
        ("se", sas.expiry, "until"),
        ("ske", sas.key_expiry, "delegation key until"),
    ):
        if when is not None:
            if when != sas.effective_expiry:
                state = "the earlier end counts"
            elif when > now:
                state = f"for another {span(when - now)}"
            else:
                state = f"expired {span(when - now)} ago"
            rows.append((name, f"{what} {stamp(when)} ({state})"))
    rows.append(("spr", " or ".join(sorted(sas.protocols, reverse=True))))
    rows.append(("sip", f"from {sas.ip} only" if sas.ip else "from any address"))
    if sas.encryption_scope:
        rows.append(("ses", f"encryption scope {sas.encryption_scope}"))
    rows.append(("sig", "REDACTED"))
    return rows


def abilities(granted: frozenset[str] | None) -> list[tuple[str, str]]:
    """What a mount will and will not be able to do, as rows of (ability, verdict)."""
    rows = []
    for ability in ABILITIES:
        if granted is None:
            verdict = f"unknown: needs {ability.letters}, which the stored access policy may give"
        elif set(ability.letters) <= granted:
            verdict = "yes"
        else:
            verdict = f"no, lacks {lacking([ability.letters], granted)}: {ability.otherwise}"
        rows.append((ability.what, verdict))
    return rows


def changes(old: Sas, new: Sas) -> list[str]:
    """The fields that differ, as `se 2026-01-01T00:00:00Z → 2026-02-01T00:00:00Z`."""
    pairs = (
        ("sv", old.version, new.version),
        ("sr", old.resource, new.resource),
        ("sp", _letters(old), _letters(new)),
        ("si", old.identifier, new.identifier),
        ("st", _moment(old.start), _moment(new.start)),
        ("se", _moment(old.expiry), _moment(new.expiry)),
        ("ske", _moment(old.key_expiry), _moment(new.key_expiry)),
        ("spr", ",".join(sorted(old.protocols)), ",".join(sorted(new.protocols))),
        ("sip", old.ip, new.ip),
        ("ses", old.encryption_scope, new.encryption_scope),
    )
    return [f"{name} {a or 'none'} → {b or 'none'}" for name, a, b in pairs if a != b]


def _letters(sas: Sas) -> str:
    return "" if sas.permissions is None else in_order(sas.permissions)


def _moment(when: datetime | None) -> str:
    return "" if when is None else stamp(when)
