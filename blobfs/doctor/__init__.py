"""What can keep a mount from working, looked at one by one, with what to do about each.

    findings  what a check finds, and who is told
    machine   FUSE, AppArmor, versions: what any mount needs of this machine
    source    name, TLS, service, clock, token, rights, keys, spool: what one mount needs

Nothing is changed anywhere: the container is listed and one content key opened, and a key is
wrapped and unwrapped that encrypts nothing. No finding has a secret in it.
"""

from blobfs.doctor.findings import Finding, Findings, State
from blobfs.doctor.machine import LIBRARIES, Machine, examine_machine
from blobfs.doctor.source import asks_for_others, examine_source

__all__ = [
    "LIBRARIES",
    "Finding",
    "Findings",
    "Machine",
    "State",
    "asks_for_others",
    "examine_machine",
    "examine_source",
]
