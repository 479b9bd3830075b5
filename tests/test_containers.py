"""Several containers in one mount, and a folder of a container as a mount of its own."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.mounts import PLAINTEXT_MARKER, Mount, MountFailed, mounted

pytestmark = pytest.mark.mount


class AccountMount(Mount):
    """A mount of all containers of the account that have a token in `sas_dir`."""

    def __init__(self, azurite: Azurite, state_dir: Path, sas_dir: Path, *options: str) -> None:
        state_dir.mkdir()
        any_token = next(path.read_text() for path in sorted(sas_dir.glob("*.sas")))
        super().__init__(f"{azurite.endpoint}/", state_dir, *options, sas=any_token)
        self.sas_dir = sas_dir

    def argv(self) -> list[str]:
        return [
            argument.replace(f"sas_file={self.sas_file}", f"sas_dir={self.sas_dir}")
            for argument in super().argv()
        ]


@contextmanager
def account_mounted(mount: AccountMount, azurite: Azurite) -> Iterator[AccountMount]:
    """As `mounted` does for one container."""
    with ExitStack() as stack:
        stack.callback(mount.remove)
        mount.start()
        yield mount
        problems = mount.unmount()
        mount.remove()
        problems += mount.problems(azurite)
        assert not problems, "\n".join(problems)


@pytest.fixture(scope="module")
def sas_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


def add_token(sas_dir: Path, container: str, token: str) -> None:
    path = sas_dir / f"{container}.sas"
    path.touch(0o600)
    path.write_text(token)


@pytest.fixture(scope="module")
def containers(azurite: Azurite, sas_dir: Path) -> list[str]:
    """Two that may be written, and one that may not."""
    names = [azurite.new_container() for _ in range(3)]
    for name in names[:2]:
        add_token(sas_dir, name, azurite.sas(name))
    add_token(sas_dir, names[2], azurite.sas(names[2], "rl"))
    azurite.sdk(names[2]).upload_blob("there", b"")
    return names


@pytest.fixture(scope="module")
def account(
    azurite: Azurite,
    sas_dir: Path,
    containers: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AccountMount]:
    azurite.new_container()  # one without a token: it is not shown
    directory = tmp_path_factory.mktemp("account") / "state"
    mount = AccountMount(azurite, directory, sas_dir, "metadata_ttl=0")
    with account_mounted(mount, azurite):
        yield mount


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {code}]")):
        yield


# --- several containers ------------------------------------------------------------------------


def test_the_root_has_a_directory_for_each_container_with_a_token(
    account: AccountMount, containers: list[str]
) -> None:
    assert sorted(os.listdir(account.path)) == sorted(containers)
    for name in containers:
        assert stat.S_ISDIR((account.path / name).stat().st_mode)
    # A second time, with all that the kernel knows by now.
    assert sorted(entry.name for entry in os.scandir(account.path)) == sorted(containers)
    assert account.path.stat().st_nlink == 2 + len(containers)


def test_each_container_has_its_own_files(
    account: AccountMount, containers: list[str], azurite: Azurite
) -> None:
    first, second = containers[:2]
    for name in (first, second):
        (account.path / name / "folder").mkdir()
        (account.path / name / "folder/same").write_bytes(PLAINTEXT_MARKER + name.encode())
    for name in (first, second):
        assert (account.path / name / "folder/same").read_bytes().endswith(name.encode())
        assert "folder/same" in list(azurite.sdk(name).list_blob_names())
    inodes = {(account.path / name / "folder/same").stat().st_ino for name in (first, second)}
    assert len(inodes) == 2


def test_a_rename_across_containers_is_EXDEV_and_mv_copies(
    account: AccountMount, containers: list[str]
) -> None:
    first, second = (account.path / name for name in containers[:2])
    (first / "moves").write_bytes(PLAINTEXT_MARKER)
    (first / "tree").mkdir()
    for name in ("moves", "tree"):
        with refused(errno.EXDEV):
            os.rename(first / name, second / name)
    assert (first / "moves").read_bytes() == PLAINTEXT_MARKER
    assert not (second / "moves").exists()
    assert os.system(f"mv {first}/moves {second}/moves") == 0
    assert (second / "moves").read_bytes() == PLAINTEXT_MARKER
    assert not (first / "moves").exists()


def test_a_container_can_be_neither_removed_nor_renamed(
    account: AccountMount, containers: list[str]
) -> None:
    first, second = (account.path / name for name in containers[:2])
    with refused(errno.EBUSY):
        os.rmdir(first)
    for target in (second, account.path / "other", second / "within"):
        with pytest.raises(OSError, match="Errno") as failure:
            os.rename(first, target)
        assert failure.value.errno in (errno.EBUSY, errno.EACCES, errno.EXDEV)
    assert sorted(os.listdir(account.path)) == sorted(containers)


def test_nothing_can_be_made_beside_the_containers(
    account: AccountMount, containers: list[str]
) -> None:
    new = account.path / "new"
    for make in (os.mkdir, os.mkfifo, Path.touch, lambda path: os.symlink("x", path)):
        with refused(errno.EACCES):
            make(new)
    (account.path / containers[0] / "inside").touch()
    with pytest.raises(OSError, match="Errno") as failure:
        os.rename(account.path / containers[0] / "inside", new)
    assert failure.value.errno in (errno.EACCES, errno.EXDEV)
    assert sorted(os.listdir(account.path)) == sorted(containers)
    with refused(errno.ENOENT):
        new.stat()


def test_a_token_that_only_reads_makes_its_container_read_only_and_no_other(
    account: AccountMount, containers: list[str]
) -> None:
    writable, read_only = account.path / containers[0], account.path / containers[2]
    assert os.listdir(read_only) == ["there"]
    for change in (
        Path.touch,
        os.mkdir,
        lambda path: os.symlink("x", path),
        lambda path: os.rename(read_only / "there", path),
    ):
        with refused(errno.EROFS):
            change(read_only / "new")
    for change in (
        os.unlink,
        lambda path: os.chmod(path, 0o600),
        lambda path: os.truncate(path, 5),
        lambda path: os.open(path, os.O_WRONLY),
        lambda path: os.setxattr(path, "user.x", b"y"),
    ):
        with refused(errno.EROFS):
            change(read_only / "there")
    (writable / "new").write_bytes(PLAINTEXT_MARKER)
    assert (writable / "new").read_bytes() == PLAINTEXT_MARKER


def test_the_containers_and_the_root_can_be_changed_to_nothing_that_is_not_stored(
    account: AccountMount,
) -> None:
    with refused(errno.EACCES):
        os.chmod(account.path, 0o700)
    with pytest.raises(OSError, match="Errno") as failure:
        os.setxattr(account.path, "user.x", b"y")
    assert failure.value.errno in (errno.EACCES, errno.EOPNOTSUPP)
    assert os.listxattr(account.path) == []


def test_a_container_that_does_not_exist_is_said_before_anything_is_mounted(
    azurite: Azurite, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for name in (azurite.new_container(), "missing"):
        add_token(tokens, name, azurite.sas(name))
    mount = AccountMount(azurite, tmp_path / "state", tokens)
    with (
        pytest.raises(MountFailed, match="does not exist") as failure,
        account_mounted(mount, azurite),
    ):
        pass
    assert "missing" in failure.value.stderr
    assert failure.value.status == 32


# --- a folder as the root ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "in_url"),
    [
        ("plain", "plain"),
        ("deep/er", "deep/er"),
        ("deep/er", "deep/er/"),
        ("a b  c", "a%20b%20%20c"),
        ("100%/%41", "100%25/%2541"),
        ("caf\u00e9 \U0001f600", "caf%C3%A9%20%F0%9F%98%80"),
        ("q?h#", "q%3Fh%23"),
    ],
)
@pytest.mark.parametrize("marked", [True, False], ids=["with a marker", "by prefix only"])
def test_a_folder_is_mounted_as_the_root(
    marked: bool, folder: str, in_url: str, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    sdk = azurite.sdk(container)
    if marked:
        sdk.upload_blob(folder, b"", metadata={"hdi_isfolder": "true", "permissions": "16832"})
    sdk.upload_blob(f"{folder}/inside", b"")
    sdk.upload_blob(f"{folder}x/outside", b"")
    sdk.upload_blob(f"{folder}-file", b"")
    with mounted(azurite, container, tmp_path, source_suffix=f"/{in_url}") as mount:
        assert os.listdir(mount.path) == ["inside"]
        (mount.path / "new").write_bytes(PLAINTEXT_MARKER)
        (mount.path / "d").mkdir()
        os.rename(mount.path / "new", mount.path / "d/new")
        assert (mount.path / "d/new").read_bytes() == PLAINTEXT_MARKER
        os.unlink(mount.path / "inside")
        with open(mount.path / "d/new", "rb") as opened:  # hidden, then gone: inside the folder
            os.unlink(mount.path / "d/new")
            assert all(
                name.startswith(f"{folder}/") or name in (folder, f"{folder}x/outside")
                for name in sdk.list_blob_names()
                if name != f"{folder}-file"
            )
            assert opened.read() == PLAINTEXT_MARKER
        os.rmdir(mount.path / "d")
        assert os.listdir(mount.path) == []
    left = set(sdk.list_blob_names())
    assert left - {folder} == {f"{folder}x/outside", f"{folder}-file"}


def test_an_empty_folder_with_a_marker_is_mounted(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("empty", b"", metadata={"hdi_isfolder": "true"})
    with mounted(azurite, container, tmp_path, source_suffix="/empty") as mount:
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("missing", ["missing", "there/missing", "ther", "there-is-a-file"])
def test_a_folder_that_is_missing_is_said_before_anything_is_mounted(
    missing: str, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob("there/x", b"")
    azurite.sdk(container).upload_blob("there-is-a-file", b"content")
    with (
        pytest.raises(MountFailed) as failure,
        mounted(azurite, container, tmp_path, source_suffix=f"/{missing}"),
    ):
        pass
    (line,) = failure.value.stderr.splitlines()
    assert repr(missing) in line
    assert "folder" in line
    assert failure.value.status is not None


def test_the_attributes_of_a_folders_marker_are_those_of_the_root(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    azurite.sdk(container).upload_blob(
        "d",
        b"",
        metadata={
            "hdi_isfolder": "true",
            "permissions": "16872",  # 0o40750
            "posix_owner": "1234",
            "modtime": "1577934245123456789",
        },
    )
    azurite.sdk(container).upload_blob("d/x", b"")
    with mounted(azurite, container, tmp_path, source_suffix="/d") as mount:
        status = mount.path.stat()
        assert oct(status.st_mode) == "0o40750"
        assert status.st_uid == 1234
        assert status.st_mtime_ns == 1577934245123456789
