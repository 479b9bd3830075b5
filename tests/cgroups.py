"""A limit of memory that the kernel enforces, where this machine lets us set one."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def memory_limit(limit: int) -> Iterator[tuple[str, ...]]:
    """The words before a command that is killed when it and its children use more bytes, page
    cache included that cannot be dropped; without a usable cgroup, none.
    """
    for parent, file in ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max")):
        group = parent / f"blobfs-test-{secrets.token_hex(4)}"
        try:
            group.mkdir()
        except OSError:  # no such hierarchy, or not ours to change
            continue
        try:
            (group / file).write_text(str(limit))
        except OSError:  # the controller is not handed down
            group.rmdir()
            continue
        try:
            yield "sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"
        finally:
            group.rmdir()
        return
    yield ()
