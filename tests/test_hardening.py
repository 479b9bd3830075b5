"""What a process of blobfs keeps from those who look at it. Its command line: test_mount_command.

These processes run as a user without privileges: of root's, /proc looks the same either way.
"""

import dataclasses
import fcntl
import importlib
import pkgutil
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import blobfs
from blobfs.blobs.messages import Answer, Request
from blobfs.blobs.operations import GET_BLOB
from blobfs.sas import parse
from tests.azurite import Azurite
from tests.mounts import ROOT, as_user, mounted
from tests.waiting import eventually

NOBODY = 65534
LIMIT_S = 30

# So that it is not the limit of whoever runs the tests that is seen.
CORES_ALLOWED = ("prlimit", "--core=unlimited")


def assert_closed(pid: int) -> None:
    """Nobody but root can look into it, and it leaves no core dump."""
    process = Path(f"/proc/{pid}")
    limits = (process / "limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits), limits
    assert (process / "environ").stat().st_uid == 0, "dumpable"
    for name in ("environ", "mem", "maps"):
        # fmt: off
        looked = subprocess.run(
            ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups",
             "head", "-c1", process / name],
            capture_output=True, text=True,
        )
        # fmt: on
        assert "Permission denied" in looked.stderr, f"{name}: {looked}"


@contextmanager
def reading_its_input() -> Iterator[int]:
    """A verb of blobfs that has begun to read a token from standard input."""
    with subprocess.Popen(
        [*as_user(NOBODY), *CORES_ALLOWED, sys.executable, "-m", "blobfs", "sas", "show", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"s")
        process.stdin.flush()
        wait_until_it_is_read(process.stdin.fileno())
        yield process.pid


def wait_until_it_is_read(pipe: int) -> None:
    # What a process waits for (its wchan) does not tell: to import trio it runs ldconfig and
    # reads a pipe too.
    eventually(lambda: struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))) == (0,))


@pytest.mark.mount
@pytest.mark.parametrize("foreground", [True, False])
def test_a_daemon_is_closed_to_others_of_its_user_and_dumps_no_core(
    azurite: Azurite, container: str, tmp_path: Path, foreground: bool
) -> None:
    with mounted(
        azurite, container, tmp_path, user=NOBODY, foreground=foreground, prefix=CORES_ALLOWED
    ) as mount:
        assert_closed(mount.pid)


def test_so_is_every_other_command() -> None:
    with reading_its_input() as pid:
        assert_closed(pid)


def test_protection_that_the_kernel_refuses_is_said_before_any_log_is_configured() -> None:
    refusing = """
import resource, sys
from blobfs.cli import main
def refuse(*arguments):
    raise ValueError("refused")
resource.setrlimit = refuse
sys.argv = ["blobfs", "mount", "x", "/"]
main()
"""
    # fmt: off
    done = subprocess.run(
        [*CORES_ALLOWED, sys.executable, "-c", refusing], cwd=ROOT, capture_output=True, text=True
    )
    # fmt: on
    assert done.stderr.splitlines()[0] == "blobfs: the limit of core dumps stays: refused"


def dataclasses_of_blobfs() -> Iterator[type]:
    for module in pkgutil.walk_packages(blobfs.__path__, "blobfs."):
        if not module.name.endswith("__main__"):
            for cls in vars(importlib.import_module(module.name)).values():
                if isinstance(cls, type) and dataclasses.is_dataclass(cls):
                    yield cls


SECRETS = re.compile("key$|cek|kek|sas$|sig|token$|secret|passphrase|payload|plain|query")

HARMLESS = {
    ("Access", "sas"): "shows what may be shown of a token",
    ("Attribute", "key"): "a name",
    ("Box", "sealed"): "encrypted",
    ("EncryptionData", "iv"): "public",
    ("MountOptions", "key_passphrase_file"): "a path",
    ("MountOptions", "sas"): "shows what may be shown of a token",
    ("RecoveryFile", "plain_size"): "a number",
    ("Request", "token"): "a function",
    ("WrappedKey", "encrypted_key"): "encrypted",
}


def test_no_dataclass_shows_bytes_or_what_is_called_a_secret() -> None:
    found = {
        (cls.__name__, field.name)
        for cls in dataclasses_of_blobfs()
        for field in dataclasses.fields(cls)
        if field.repr and (SECRETS.search(field.name) or "bytes" in str(field.type))
    }
    assert found == HARMLESS.keys()


def test_a_token_does_not_show_its_signature(azurite: Azurite) -> None:
    token = azurite.sas("container")
    assert "sig" not in repr(parse(token))


def test_an_answer_does_not_show_the_source_of_a_copy() -> None:
    request = Request(GET_BLOB, "a", "http://127.0.0.1", "/a", str)
    answer = Answer(request, 200, {"x-ms-copy-source": "https://…?sig=SECRET"}, {}, b"SECRET")
    assert "SECRET" not in repr(answer)
