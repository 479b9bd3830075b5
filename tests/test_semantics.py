"""What blobfs/SEMANTICS.md claims and no other test shows: one claim a test, on a real mount.

`here` and `there` are two hosts that mount the same container.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from azure.storage.blob import ContainerClient

from tests.azurite import Azurite
from tests.descriptors import opened
from tests.mounts import PLAINTEXT_MARKER, Mount, MountFailed, mounted
from tests.waiting import eventually

pytestmark = pytest.mark.mount

MIB = 1024 * 1024

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
FICLONE = 0x40049409
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def shared_container(azurite: Azurite) -> str:
    return azurite.new_container()


@pytest.fixture(scope="module")
def here(
    azurite: Azurite, shared_container: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    directory = tmp_path_factory.mktemp("here")
    with mounted(azurite, shared_container, directory, "metadata_ttl=0") as mount:
        yield mount


@pytest.fixture(scope="module")
def there(
    azurite: Azurite, shared_container: str, tmp_path_factory: pytest.TempPathFactory, here: Mount
) -> Iterator[Mount]:
    directory = tmp_path_factory.mktemp("there")
    keys = here.key_file
    with mounted(azurite, shared_container, directory, "metadata_ttl=0", key_file=keys) as mount:
        yield mount


@pytest.fixture
def blobs(azurite: Azurite, shared_container: str) -> ContainerClient:
    return azurite.sdk(shared_container)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for this test alone."""
    return str(request.function.__name__).removeprefix("test_")


def refused(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {code}]"))


def system(call: str, *arguments: object) -> None:
    """A system call that Python has no function for; raises OSError."""
    if getattr(_libc, call)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def names_below(blobs: ContainerClient, prefix: str) -> list[str]:
    return list(blobs.list_blob_names(name_starts_with=prefix))


# --- storing ---------------------------------------------------------------------------------


def test_a_new_file_is_stored_by_close_and_not_before(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    with opened(here.path / name, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, PLAINTEXT_MARKER)
        assert name in os.listdir(here.path)
        assert names_below(blobs, name) == []
    assert names_below(blobs, name) == [name]


def test_a_stored_file_has_these_metadata_keys(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    (here.path / name).write_bytes(PLAINTEXT_MARKER)
    envelope = {"encryptiondata", "blobfs_seal"}
    attributes = {
        *("posix_owner", "posix_group", "permissions"),
        *("modtime", "posix_atime", "posix_ctime"),
    }
    metadata = blobs.get_blob_client(name).get_blob_properties().metadata
    assert metadata.keys() == envelope | attributes
    status = (here.path / name).stat()
    assert metadata["permissions"] == str(status.st_mode)
    assert metadata["modtime"] == str(status.st_mtime_ns)


def test_a_change_of_mode_is_stored_before_chmod_returns(
    here: Mount, there: Mount, blobs: ContainerClient, name: str
) -> None:
    (there.path / name).write_text("x")  # so that for `here` no write has just gone before
    os.chmod(here.path / name, 0o600)
    metadata = blobs.get_blob_client(name).get_blob_properties().metadata
    assert metadata["permissions"] == str(stat.S_IFREG | 0o600)


def test_attributes_changed_after_a_write_are_carried_by_the_next(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    (here.path / f"{name}.tmp").write_text("x")
    os.chmod(here.path / f"{name}.tmp", 0o600)
    os.utime(here.path / f"{name}.tmp", ns=(5, 7))
    os.rename(here.path / f"{name}.tmp", here.path / name)
    metadata = blobs.get_blob_client(name).get_blob_properties().metadata
    assert (metadata["permissions"], metadata["modtime"]) == (str(stat.S_IFREG | 0o600), "7")


def test_attributes_changed_after_a_write_are_stored_by_fsync(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    with opened(here.path / name, os.O_CREAT | os.O_WRONLY) as fd:
        os.fsync(fd)
        os.fchmod(fd, 0o600)
        os.fsync(fd)
        metadata = blobs.get_blob_client(name).get_blob_properties().metadata
        assert metadata["permissions"] == str(stat.S_IFREG | 0o600)


def test_attributes_changed_after_a_write_are_stored_in_the_end(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    (here.path / name).write_text("x")
    os.chmod(here.path / name, 0o600)
    blob = blobs.get_blob_client(name)
    wanted = str(stat.S_IFREG | 0o600)
    eventually(lambda: blob.get_blob_properties().metadata["permissions"] == wanted)


def test_what_is_kept_in_memory_only_is_gone_after_a_remount(here: Mount, name: str) -> None:
    directory = here.path / name
    directory.mkdir()
    before = directory.stat().st_mtime_ns
    (directory / "file").write_text("x")
    os.chmod(here.path, 0o700)
    assert directory.stat().st_mtime_ns > before
    assert stat.S_IMODE(here.path.stat().st_mode) == 0o700
    here.remount()
    assert directory.stat().st_mtime_ns == before
    assert stat.S_IMODE(here.path.stat().st_mode) == 0o755


def test_an_inode_number_belongs_to_the_path(here: Mount, name: str) -> None:
    (here.path / name).write_text("x")
    before = (here.path / name).stat().st_ino
    here.remount()
    assert (here.path / name).stat().st_ino == before


def test_the_root_of_a_container_has_no_extended_attributes(here: Mount) -> None:
    with refused(errno.EOPNOTSUPP):
        os.setxattr(here.path, "user.note", b"x")


def test_only_the_user_namespace_of_extended_attributes_exists(here: Mount, name: str) -> None:
    (here.path / name).write_text("x")
    for attribute in ("trusted.note", "security.note"):
        with refused(errno.EOPNOTSUPP):
            os.setxattr(here.path / name, attribute, b"x")
    with refused(errno.EINVAL):
        os.setxattr(here.path / name, "user.azure.unheard-of", b"x")


def test_a_service_that_does_not_answer_is_said_in_one_line(
    azurite: Azurite, tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            azurite, "endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}/{azurite.account}"
        )
        with (
            pytest.raises(MountFailed) as failure,
            mounted(azurite, container, tmp_path, "timeout=1"),
        ):
            pass
    assert failure.value.status == 32
    assert re.fullmatch("blobfs: http://.* gave no answer within 1 s: .*", failure.value.stderr)


# --- single calls ----------------------------------------------------------------------------


def test_a_blob_that_is_not_encrypted_is_shown_and_not_opened(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(name, b"plain")
    here.expect_log(rf"ERROR .*open '{name}': Permission denied: '{name}' is not encrypted")
    assert (here.path / name).stat().st_size == 5
    with refused(errno.EACCES):
        os.open(here.path / name, os.O_RDONLY)


def test_a_blob_that_is_not_encrypted_is_replaced_by_one_that_is(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(name, b"plain")
    (here.path / name).write_bytes(PLAINTEXT_MARKER)
    assert (here.path / name).read_bytes() == PLAINTEXT_MARKER
    assert "encryptiondata" in blobs.get_blob_client(name).get_blob_properties().metadata


def test_a_file_without_a_name_cannot_be_made(here: Mount) -> None:
    with refused(errno.EOPNOTSUPP):
        os.open(here.path, os.O_TMPFILE | os.O_RDWR)


def test_a_file_can_be_used_without_the_page_cache(here: Mount, name: str) -> None:
    (here.path / name).write_bytes(b"0123456789")
    with opened(here.path / name, os.O_RDWR | os.O_DIRECT) as fd:
        assert os.pread(fd, 3, 4) == b"456"
        os.pwrite(fd, b"xyz", 4)
    assert (here.path / name).read_bytes() == b"0123xyz789"


def test_a_rename_that_must_not_replace_does_not(here: Mount, name: str) -> None:
    old, new, taken = (os.fsencode(here.path / f"{name}-{n}") for n in ("old", "new", "taken"))
    Path(os.fsdecode(old)).write_text("old")
    Path(os.fsdecode(taken)).write_text("taken")
    with refused(errno.EEXIST):
        system("renameat2", AT_FDCWD, old, AT_FDCWD, taken, RENAME_NOREPLACE)
    system("renameat2", AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE)
    assert Path(os.fsdecode(new)).read_text() == "old"
    assert Path(os.fsdecode(taken)).read_text() == "taken"


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, RENAME_WHITEOUT])
def test_names_cannot_be_exchanged(here: Mount, flags: int, name: str) -> None:
    one, other = (here.path / f"{name}-{flags}-{n}" for n in (1, 2))
    one.write_text("one")
    other.write_text("other")
    with refused(errno.EINVAL):
        system("renameat2", AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), flags)
    assert (one.read_text(), other.read_text()) == ("one", "other")


def test_locks_hold_among_the_processes_of_one_mount(here: Mount, there: Mount, name: str) -> None:
    (here.path / name).write_text("x")
    try_both = "import fcntl, sys; f = open(sys.argv[2], 'r+'); getattr(fcntl, sys.argv[1])(f, 6)"

    def others_result(kind: str, mount: Mount) -> str:
        command = [sys.executable, "-c", try_both, kind, str(mount.path / name)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        return ran.stderr.strip().rpartition("\n")[2].partition(":")[0]

    assert fcntl.LOCK_EX | fcntl.LOCK_NB == 6
    with opened(here.path / name, os.O_RDWR) as fd:
        for kind in ("flock", "lockf"):
            getattr(fcntl, kind)(fd, fcntl.LOCK_EX)
            assert others_result(kind, here) == "BlockingIOError"
            assert others_result(kind, there) == "", "another host does not see the lock"
            getattr(fcntl, kind)(fd, fcntl.LOCK_UN)


def test_space_cannot_be_reserved_nor_holes_punched(here: Mount, name: str) -> None:
    with opened(here.path / name, os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"0123456789")
        for mode in (0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            with refused(errno.EOPNOTSUPP):
                system("fallocate", fd, mode, ctypes.c_long(0), ctypes.c_long(100))
        os.posix_fallocate(fd, 0, 20)  # the C library writes instead
        assert os.fstat(fd).st_size == 20
    assert (here.path / name).read_bytes() == b"0123456789" + bytes(10)


def test_copy_file_range_copies(here: Mount, name: str) -> None:
    (here.path / f"{name}-source").write_bytes(b"0123456789")
    with (
        opened(here.path / f"{name}-source", os.O_RDONLY) as source,
        opened(here.path / name, os.O_CREAT | os.O_RDWR) as target,
    ):
        assert os.copy_file_range(source, target, 5, offset_src=2) == 5
        with refused(errno.EOPNOTSUPP):
            fcntl.ioctl(target, FICLONE, source)
    assert (here.path / name).read_bytes() == b"23456"


def test_a_file_is_data_from_end_to_end(here: Mount, name: str) -> None:
    with opened(here.path / name, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, MIB)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == MIB
    assert (here.path / name).stat().st_blocks * 512 == MIB


def test_reading_does_not_move_the_access_time(here: Mount, name: str) -> None:
    (here.path / name).write_text("x")
    os.utime(here.path / name, ns=(5, 7))
    (here.path / name).read_text()
    assert (here.path / name).stat().st_atime_ns == 5


def test_a_chown_clears_the_set_id_bits(here: Mount, name: str) -> None:
    (here.path / name).touch()
    os.chmod(here.path / name, 0o6755)
    os.chown(here.path / name, 1234, 1234)
    assert stat.S_IMODE((here.path / name).stat().st_mode) == 0o755


def test_programs_in_the_mount_run_without_set_id_bits_and_devices(here: Mount, name: str) -> None:
    program = here.path / name
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    os.chown(program, 65534, 65534)
    os.chmod(program, 0o6755)
    assert subprocess.run([program, "-u"], capture_output=True, text=True).stdout == "0\n"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    (line,) = (line for line in lines if line.split()[4] == str(here.path))
    options = line.split()[5].split(",")
    assert {"nosuid", "nodev"} <= set(options)
    assert line.partition(" - ")[2].split()[:2] == ["fuse.blobfs", here.source]


def test_a_running_program_is_emptied_by_a_refused_open(here: Mount, name: str) -> None:
    program = here.path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        with refused(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        assert program.stat().st_size > 0
        with refused(errno.ETXTBSY):
            os.open(program, os.O_RDONLY | os.O_TRUNC)
        assert program.stat().st_size == 0
        running.kill()


def test_a_directory_that_exists_by_one_file_alone_stays_when_that_goes(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(f"{name}/file", b"")
    (here.path / name / "file").unlink()
    assert os.listdir(here.path / name) == []
    assert [blob.name for blob in blobs.list_blobs(name)] == [name]


# --- names -----------------------------------------------------------------------------------


def test_blob_names_that_a_directory_cannot_show_are_skipped_and_kept(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    stored = [f"{name}/{rest}" for rest in ("file", "dir//below", "y" * 256, ".blobfs-hidden-1")]
    for blob in stored:
        blobs.upload_blob(blob, b"")
    here.expect_log(rf"WARNING .*'{name}/dir//' cannot be shown")
    here.expect_log(rf"WARNING .*'{name}/y+' cannot be shown")
    assert sorted(os.listdir(here.path / name)) == ["dir", "file"]
    assert os.listdir(here.path / name / "dir") == []
    with refused(errno.ENOTEMPTY):
        os.rmdir(here.path / name / "dir")
    assert set(names_below(blobs, f"{name}/")) == set(stored)


def test_a_file_with_the_name_of_a_directory_is_not_shown_and_kept(
    here: Mount, there: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(name, b"shadowed")
    blobs.upload_blob(f"{name}/below", b"")
    for mount in (here, there):  # whoever lists the root says it
        mount.expect_log(rf"WARNING .*'{name}' cannot be shown")
    here.expect_log(rf"ERROR .*setattr '{name}': File exists")
    assert os.listdir(here.path).count(name) == os.listdir(there.path).count(name) == 1
    assert (here.path / name).is_dir()
    with refused(errno.EEXIST):
        os.chmod(here.path / name, 0o700)  # its attributes would be that blob's
    os.rename(here.path / name, here.path / f"{name}-moved")
    (here.path / f"{name}-moved/below").unlink()
    (here.path / f"{name}-moved").rmdir()
    assert names_below(blobs, name) == [name]
    assert blobs.download_blob(name).readall() == b"shadowed"
    assert (here.path / name).is_file(), "nothing shadows it any more"


def test_a_shadowed_file_outlives_the_directory(
    azurite: Azurite, tmp_path: Path, container: str
) -> None:
    blobs = azurite.sdk(container)
    blobs.upload_blob("name", b"shadowed")
    blobs.upload_blob("name/below", b"")
    with mounted(azurite, container, tmp_path, "metadata_ttl=1h") as mount:
        mount.expect_log("WARNING .*'name' cannot be shown")
        assert os.listdir(mount.path / "name") == ["below"]
        (mount.path / "name/below").unlink()
        with suppress(NotADirectoryError):  # when the mount knows already that it went
            os.rmdir(mount.path / "name")
    assert names_below(blobs, "") == ["name"]
    assert blobs.download_blob("name").readall() == b"shadowed"


def test_markers_of_other_tools_are_directories(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    blobs.upload_blob(f"{name}/", b"", metadata={"team": "x"})
    assert (here.path / name).is_dir()
    with opened(here.path / name, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == []
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
    os.chmod(here.path / name, 0o700)
    assert stat.S_IMODE((here.path / name).stat().st_mode) == 0o700
    os.rmdir(here.path / name)
    assert names_below(blobs, name) == []


def test_a_file_unlinked_while_open_is_kept_under_a_hidden_name(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    (here.path / name).write_text("x")
    with opened(here.path / name, os.O_RDONLY):
        os.unlink(here.path / name)
        assert len(names_below(blobs, ".blobfs-hidden-")) == 1
        assert not [entry for entry in os.listdir(here.path) if entry.startswith(".blobfs")]
    eventually(lambda: names_below(blobs, ".blobfs-hidden-") == [])


def test_a_rename_of_a_directory_that_a_crash_cut_short_is_finished_by_another(
    here: Mount, blobs: ContainerClient, name: str
) -> None:
    old, new = f"{name}/old", f"{name}/new"
    (here.path / old).mkdir(parents=True)
    for file in ("copied", "not-copied"):
        (here.path / old / file).write_text(file)
    marker = {"hdi_isfolder": "true", "blobfs_rename_from": quote(old)}
    blobs.upload_blob(new, b"", metadata=marker)
    source = blobs.get_blob_client(f"{old}/copied")
    blobs.get_blob_client(f"{new}/copied").start_copy_from_url(source.url)
    os.rename(here.path / old, here.path / new)
    assert {entry.name: entry.read_text() for entry in (here.path / new).iterdir()} == {
        "copied": "copied",
        "not-copied": "not-copied",
    }
    assert names_below(blobs, old) == []
    assert marker.keys() - blobs.get_blob_client(new).get_blob_properties().metadata.keys() == {
        "blobfs_rename_from"
    }


# --- two hosts -------------------------------------------------------------------------------


def test_what_one_host_closed_another_opens(here: Mount, there: Mount, name: str) -> None:
    for content in ("one", "two, longer", ""):
        (here.path / name).write_text(content)
        assert (there.path / name).read_text() == content
    os.unlink(here.path / name)
    with refused(errno.ENOENT):
        (there.path / name).read_text()


def test_within_the_ttl_a_host_may_show_what_was(
    azurite: Azurite, tmp_path: Path, container: str
) -> None:
    blobs = azurite.sdk(container)
    blobs.upload_blob("file", b"12345")
    with mounted(azurite, container, tmp_path, "metadata_ttl=1h") as mount:
        assert os.listdir(mount.path) == ["file"]
        assert (mount.path / "file").stat().st_size == 5
        blobs.delete_blob("file")
        blobs.upload_blob("other", b"")
        assert os.listdir(mount.path) == ["file"]
        assert (mount.path / "file").stat().st_size == 5


def test_an_open_file_is_one_version(here: Mount, there: Mount, name: str) -> None:
    (here.path / name).write_bytes(bytes(12 * MIB))
    there.expect_log(rf"ERROR .* '{name}': Stale file handle")
    with opened(there.path / name, os.O_RDONLY) as fd:
        assert os.pread(fd, 1, 0) == b"\0"
        (here.path / name).write_bytes(b"x" * 12 * MIB)
        with refused(errno.ESTALE):
            os.pread(fd, 1, 10 * MIB)
    assert (there.path / name).read_bytes() == b"x" * 12 * MIB


def test_of_two_writers_the_second_is_told_and_both_versions_are_kept(
    here: Mount, there: Mount, name: str
) -> None:
    (here.path / name).write_text("before")
    there.expect_log(rf"ERROR .*flush '{name}': Stale file handle: .*blobfs-conflict-")
    first = os.open(here.path / name, os.O_WRONLY)
    second = os.open(there.path / name, os.O_WRONLY)
    os.write(first, b"first ")
    os.write(second, b"second")
    os.close(first)
    with refused(errno.ESTALE):
        os.close(second)
    (aside,) = (entry for entry in os.listdir(here.path) if entry.startswith(f"{name}.blobfs"))
    assert aside.startswith(f"{name}.blobfs-conflict-")
    for mount in (here, there):
        assert (mount.path / name).read_text() == "first "
        assert (mount.path / aside).read_text() == "second"


def test_a_chmod_elsewhere_is_no_conflict(here: Mount, there: Mount, name: str) -> None:
    (here.path / name).write_text("before")
    with opened(here.path / name, os.O_WRONLY) as fd:
        os.write(fd, b"after!")
        os.chmod(there.path / name, 0o600)
    assert (there.path / name).read_text() == "after!"
