"""What a mount says of itself: to `blobfs status` as JSON, to Prometheus through `prometheus`.

Nothing in it is secret: no token, no key, no name of a file.
"""

import logging
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blobfs import __version__, logs
from blobfs.access import Access
from blobfs.blobs import UPLOADS, VERBS, Client
from blobfs.draft import PagePool
from blobfs.errors import errno_name
from blobfs.fs import Filesystem
from blobfs.fuse import Operations
from blobfs.keyring import Keyring
from blobfs.metrics import Latencies
from blobfs.options import MountOptions
from blobfs.sas import PERMISSIONS

log = logging.getLogger(__name__)

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The parts of a mount that are asked. `accesses` gives the tokens as they are now."""

    options: MountOptions
    accesses: Callable[[], Sequence[Access]]
    keyring: Keyring
    client: Client
    pool: PagePool
    fs: Filesystem
    operations: Operations
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    def answer(self, request: Mapping[str, Any]) -> Report:
        """The answer to a request over the control socket."""
        match request:
            case {"do": "status"}:
                return self.report()
            case {"do": "log_level", "level": level} if level in logs.LEVELS:
                before = logs.level()
                logs.set_level(level)
                log.info("log_level is now %s", level)
                return {"log_level": level, "before": before}
        return {"error": "this daemon does not know that request: it has another version"}

    def report(self) -> Report:
        """Sizes in bytes, times in seconds or, where the name says so, milliseconds."""
        now = datetime.now(UTC)
        client, operations = self.client, self.operations
        return {
            "version": __version__,
            "mountpoint": str(self.options.mountpoint),
            "source": self.options.source.display,
            "pid": os.getpid(),
            "since": self.since.isoformat(timespec="seconds"),
            "uptime_s": round((now - self.since).total_seconds(), 1),
            "read_only": self.options.read_only,
            "log_level": logs.level(),
            "clock_skew_s": client.clock_skew,
            "tokens": [self._token(access, now) for access in self.accesses()],
            "keys": self._keys(),
            "bytes": {
                "read": operations.bytes_read,
                "written": operations.bytes_written,
                "received": client.bytes_received,
                "sent": client.bytes_sent,
            },
            "cache": self._cache(),
            "files": self.files(),
            "requests": [
                {"operation": name, "verb": VERBS[name], "status": status, "count": count}
                for (name, status), count in sorted(client.requests.items())
            ],
            "in_flight": {
                "requests": client.under_way.total(),
                "uploads": sum(client.under_way[name] for name in UPLOADS),
            },
            "errors": [
                {"operation": name, "errno": errno_name(code), "count": count}
                for (name, code), count in sorted(operations.failures.items())
            ],
            "latency_ms": _quantiles(operations.latency),
            "request_latency_ms": _quantiles(client.latency),
            "memory": memory(),
        }

    def _token(self, access: Access, now: datetime) -> Report:
        sas, rights, expiry = access.sas, access.sas.permissions, access.sas.effective_expiry
        return {
            "container": access.source.container_url,
            "rights": rights and "".join(letter for letter in PERMISSIONS if letter in rights),
            "policy": sas.identifier or None,
            "expires": expiry and expiry.isoformat(timespec="seconds"),
            "expires_in_s": expiry and round((expiry - now).total_seconds()),
            "file": access.file and str(access.file),
        }

    def _keys(self) -> Report:
        wrapping = self.keyring.wrapping
        return {
            "writes_with": wrapping
            and {
                "key_id": wrapping.key_id,
                "algorithm": wrapping.algorithm,
                "provider": wrapping.name,
            },
            "content_keys": dict(self.keyring.content_keys),
        }

    def _cache(self) -> Report:
        reader = self.fs.store.reader
        return {
            "hits": reader.hits,
            "misses": reader.misses,
            "bytes": reader.cached_bytes,
            "limit": self.options.cache_size,
        }

    def files(self) -> dict[str, int]:
        """What is open, and what of it is not stored yet. `unsaved_bytes` are those that closes
        will store, `staged_bytes` of them are at the service already, and what is held of them is
        in memory or, encrypted, in the spool. `deleting` are those whose deletion is under way."""
        inodes, pool = self.fs.inodes, self.pool
        drafts = [(node.draft, node.upload) for node in inodes if node.draft is not None]
        unsaved = [(draft, upload) for draft, upload in drafts if draft.dirty]
        return {
            "known": len(inodes),
            "open": inodes.open_handles,
            "unsaved": len(unsaved),
            "unsaved_bytes": sum(draft.size for draft, _ in unsaved),
            "staged_bytes": sum(upload.staged for _, upload in unsaved if upload is not None),
            "memory_bytes": pool.memory_used,
            "spool_bytes": pool.spool.bytes_used,
            "deleting": self.fs.store.deletions.count,
        }


def memory() -> dict[str, int]:
    """Of this process: resident now, and at the most so far."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident": pages * resource.getpagesize(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _quantiles(latencies: Latencies) -> dict[str, Report]:
    return {
        kind: {
            "count": histogram.count,
            **{f"p{p}": round(histogram.quantile(p / 100) * 1000, 2) for p in (50, 90, 99)},
        }
        for kind, histogram in sorted(latencies.items())
    }
