"""What users other than a mount's own can do with it, by ordinary processes of theirs.

The ways to it are open to all, so that it is not some directory above that keeps them out.
"""

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.mounts import Mount, mounted
from tests.owner import acting_as
from tests.relay import Refusal, Relay

pytestmark = pytest.mark.mount

ROOT, OWNER, STRANGER = 0, 65534, 54321


@contextmanager
def on_the_way(azurite: Azurite, container: str, *options: str, user: int) -> Iterator[Mount]:
    """A mount of `user` that everybody can walk to, with the file `file` in it."""
    with mounted(azurite, container, Path(), *options, user=user) as mount:
        mount.state_dir.chmod(0o755)
        acting_as(user, lambda: (mount.path / "file").write_text("content"))
        (mount.path.parent / "beside").write_text("")
        assert acting_as(STRANGER, lambda: (mount.path.parent / "beside").read_text()) == ""
        yield mount


Act = Callable[[Path], object]


def refused(user: int, act: Act, path: Path) -> bool:
    """Whether `user` is told EACCES."""
    try:
        acting_as(user, lambda: act(path))
    except PermissionError as exc:
        return exc.errno == errno.EACCES
    return False


# --- the mount -----------------------------------------------------------------------------------

WAYS_IN: dict[str, Act] = {
    "stat": lambda mount: mount.stat(),
    "list": lambda mount: os.listdir(mount),
    "read": lambda mount: (mount / "file").read_bytes(),
    "write": lambda mount: (mount / "new").write_bytes(b"x"),
    "list xattrs": lambda mount: os.listxattr(mount / "file"),
    "chdir": lambda mount: os.chdir(mount),
}


@pytest.mark.parametrize(
    ("owner", "other", "option"),
    [
        (OWNER, STRANGER, "metadata_ttl=1"),
        (OWNER, ROOT, "metadata_ttl=1"),
        (ROOT, STRANGER, "metadata_ttl=1"),
        (ROOT, STRANGER, "allow_root"),
    ],
    ids=["another user", "root", "a user, of root's mount", "allow_root"],
)
def test_without_allow_other_nobody_else_gets_in(
    azurite: Azurite, container: str, owner: int, other: int, option: str
) -> None:
    with on_the_way(azurite, container, option, user=owner) as mount:
        let_in = [way for way, act in WAYS_IN.items() if not refused(other, act, mount.path)]
        assert let_in == []


def test_with_allow_other_modes_and_owners_decide(azurite: Azurite, container: str) -> None:
    with on_the_way(azurite, container, "allow_other", user=ROOT) as mount:
        for mode in (0o600, 0o604, 0o606):
            path = mount.path / f"{mode:o}"
            path.write_text("content")
            path.chmod(mode)
        for mode in (0o700, 0o705, 0o707):
            path = mount.path / f"d{mode:o}"
            path.mkdir()
            (path / "file").write_text("content")
            path.chmod(mode)

        def tried(act: Act, *names: str) -> list[bool]:
            return [not refused(STRANGER, act, mount.path / name) for name in names]

        files, dirs = ("600", "604", "606"), ("d700", "d705", "d707")
        assert tried(lambda path: path.read_text(), *files) == [False, True, True]
        assert tried(lambda path: path.write_text("x"), *files) == [False, False, True]
        assert tried(lambda path: os.getxattr(path, "user.blobfs.etag"), *files) == [
            *(False, True, True)
        ]
        assert tried(os.listdir, *dirs) == [False, True, True]
        assert tried(lambda path: (path / "file").read_text(), *dirs) == [False, True, True]
        assert tried(lambda path: (path / "new").touch(), *dirs) == [False, False, True]
        assert (mount.path / "d707/new").stat().st_uid == STRANGER
        for act in (
            lambda: os.chmod(mount.path / "606", 0o777),
            lambda: os.chown(mount.path, 1, 1),
        ):
            with pytest.raises(PermissionError, match=os.strerror(errno.EPERM)):
                acting_as(STRANGER, act)


# --- what lies beside it -------------------------------------------------------------------------


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))


def test_nobody_else_gets_at_its_sockets_spool_log_keys_and_recovery_files(
    azurite: Azurite, container: str
) -> None:
    relay = Relay(azurite)
    with tempfile.TemporaryDirectory(prefix="blobfs-others-") as name:
        place = Path(name)
        os.chown(place, OWNER, OWNER)
        place.chmod(0o755)
        spool = place / "spool"
        metrics = place / "metrics.sock"
        with on_the_way(
            relay.service,
            container,
            f"spool_dir={spool},metrics=unix:{metrics},timeout=2,buffer_size=1M",
            user=OWNER,
        ) as mount:
            mount.expect_log("flush 'lost'")
            mount.expect_log("lost: not stored; its content is kept")
            relay.choose = lambda asked: (
                Refusal(403, "AuthorizationPermissionMismatch") if asked.method == "PUT" else None
            )
            with pytest.raises(PermissionError):
                acting_as(OWNER, lambda: (mount.path / "lost").write_bytes(bytes(3_000_000)))
            relay.choose = lambda asked: None
            (kept,) = spool.glob("*.blobfs-recovery")
            (status,) = (mount.state_dir / "blobfs").glob("*.sock")
            process = Path(f"/proc/{mount.pid}")
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (spool, kept, status)}
            assert modes == {spool: 0o700, kept: 0o600, status: 0o600}

            # as if somebody had opened the directories
            for directory in (spool, status.parent):
                directory.chmod(0o755)
            closed: dict[Path, Act] = {
                **dict.fromkeys((kept, mount.log_path, mount.key_file), Path.read_bytes),
                mount.sas_file: Path.read_bytes,
                process / "fd": os.listdir,
                process / "map_files": os.listdir,
                status: connect,
                metrics: connect,
            }
            open_to_others = [
                path for path, act in closed.items() if not refused(STRANGER, act, path)
            ]
            assert open_to_others == []
            assert [path for path in (status, metrics) if refused(OWNER, connect, path)] == []
            status.parent.chmod(0o700)
    relay.close()
