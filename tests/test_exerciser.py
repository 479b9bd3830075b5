"""A file is what was done to it, whatever that was: see `tests/exerciser.py`.

BLOBFS_EXERCISER=N makes it about N operations in all, from further seeds, instead of 5,000.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.mounts import ROOT, mounted

pytestmark = pytest.mark.mount

MIB = 1024 * 1024
OPERATIONS = 5_000
ROUNDS = max(1, int(os.environ.get("BLOBFS_EXERCISER", OPERATIONS)) // OPERATIONS)

LIMIT_S = 300  # for what takes a few seconds: a mount that hangs fails, a busy machine does not


def exercise(path: Path, seed: int, operations: int, limit: int) -> str:
    """The SHA-256 of what the file must contain from now on."""
    module = ["-m", "tests.exerciser", path, *map(str, (seed, operations, limit))]
    done = subprocess.run(
        [sys.executable, *module], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    *operations_done, last = done.stdout.splitlines() or [""]
    if done.returncode != 0:
        tail = "\n".join([*operations_done[-20:], last])
        pytest.fail(
            f"seed {seed}, {operations} operations, limit {limit}: status {done.returncode}\n"
            f"{tail}\n{done.stderr}"
        )
    return last


@pytest.mark.parametrize(
    ("seed", "operations", "limit", "options"),
    [
        pytest.param(1, 1200, 2 * MIB, "", id="default"),
        pytest.param(2, 1000, 2 * MIB, "buffer_size=512K,cache_size=256K", id="little-memory"),
        pytest.param(3, 900, 2 * MIB, "metadata_ttl=0", id="nothing-kept"),
        pytest.param(4, 750, MIB, "protocol=1.0", id="protocol-1.0"),
        pytest.param(5, 750, MIB, "protocol=2.0", id="protocol-2.0"),
        # this seed changes a block after it was staged
        pytest.param(6, 400, 12 * MIB, "", id="blocks"),
    ],
)
def test_a_file_is_what_was_done_to_it(
    azurite: Azurite,
    container: str,
    tmp_path: Path,
    seed: int,
    operations: int,
    limit: int,
    options: str,
) -> None:
    with mounted(azurite, container, tmp_path, *filter(None, [options])) as m:
        if options == "protocol=1.0":
            m.expect_log("cannot detect tampering")
        digests = {}
        for number in range(seed, seed + 1000 * ROUNDS, 1000):
            path = m.path / f"seed-{number}"
            digests[path] = exercise(path, number, operations, limit)
        m.remount()
        for path, digest in digests.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path.name
