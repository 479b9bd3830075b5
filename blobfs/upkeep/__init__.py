"""What keeps stored data well over the years, without a mount: new keys, new formats, checks.

    rekey      the content keys under the current key-encryption key: metadata alone
    reencrypt  the bodies in another protocol, region length, or encrypted at all
    verify     what is stored, checked: metadata, keys, seals, sizes and, deep, every byte
    findings   what verify finds, as a table or as JSON
    passes     one pass over all blobs of a place: paged, parallel, stoppable
    contents   plaintext read front to back
    keep       what a blob has beside its content
    report     what is said on the way and at the end

Each may be interrupted and run again, and may run while mounts are in use: a blob is changed by
one conditional request, before which it is wholly old and after which it is wholly new.
"""

from blobfs.upkeep.findings import Json, Table
from blobfs.upkeep.reencrypt import reencrypt
from blobfs.upkeep.rekey import rekey
from blobfs.upkeep.report import Report
from blobfs.upkeep.verify import verify

__all__ = ["Json", "Report", "Table", "reencrypt", "rekey", "verify"]
