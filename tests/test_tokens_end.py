"""Tokens that expire, are revoked, narrowed and replaced under real mounts, and what is kept."""

import errno
import os
import re
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import AccessPolicy, generate_container_sas

from blobfs.cli import main
from tests.azurite import Azurite, signature
from tests.mounts import Mount, MountFailed, mounted
from tests.sdk import WRITES_PROTOCOL_1, AesKek, content, download, encrypting, write_key_file
from tests.waiting import eventually

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

MIB = 1024 * 1024
KEK = AesKek("local:tokens", secrets.token_bytes(32))
BIG = 24 * MIB


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key_file(tmp_path / "keys.json", KEK)


def replace_token(mount: Mount, token: str) -> None:
    new = mount.sas_file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(token)
    new.rename(mount.sas_file)


def in_seconds(seconds: float) -> datetime:
    """An expiry: a token has whole seconds."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)


def wait_until(moment: datetime) -> None:
    """Until the service's clock, which is ours, has passed it."""
    time.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds()) + 0.05)


def test_a_token_that_ends_in_the_middle_of_a_write_and_is_replaced_costs_no_byte(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    plain = content(BIG)
    end = in_seconds(4)
    with mounted(
        azurite, container, tmp_path, sas=azurite.sas(container, expiry=end), key_file=key_file
    ) as mount:
        mount.expect_log("the service refuses the token; waiting up to 58 s for another one")
        mount.expect_log("expired at")
        with (mount.path / "file").open("wb", buffering=0) as file:
            file.write(plain[: BIG // 2])
            wait_until(end)
            threading.Timer(1, replace_token, (mount, azurite.sas(container))).start()
            file.write(plain[BIG // 2 :])
        assert "new token from" in mount.log()
        assert download(encrypting(azurite, container, KEK), "file") == plain
        assert list(mount.spool_dir.glob("*.blobfs-recovery")) == []


def test_a_token_that_ends_in_the_middle_of_a_read_and_is_replaced_costs_no_byte(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    plain = content(BIG)
    encrypting(azurite, container, KEK).upload_blob("file", plain)
    end = in_seconds(4)
    with mounted(
        azurite,
        container,
        tmp_path,
        "readahead=0",
        sas=azurite.sas(container, expiry=end),
        key_file=key_file,
    ) as mount:
        mount.expect_log("the service refuses the token; waiting")
        mount.expect_log("expired at")
        with (mount.path / "file").open("rb", buffering=0) as file:
            read = file.read(MIB)
            wait_until(end)
            threading.Timer(1, replace_token, (mount, azurite.sas(container))).start()
            while piece := file.read(MIB):
                read += piece
        assert read == plain


def test_without_another_token_the_close_fails_and_recover_stores_every_byte(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    plain = content(BIG)
    end = in_seconds(4)
    with mounted(
        azurite,
        container,
        tmp_path,
        "timeout=4",
        sas=azurite.sas(container, expiry=end),
        key_file=key_file,
    ) as mount:
        mount.expect_log("the service refuses the token; waiting up to 2 s for another one")
        mount.expect_log("expired at")
        mount.expect_log("flush '/?file': Permission denied: .*SAS token is expired")
        mount.expect_log("file: not stored; its content is kept, encrypted, in")
        file = (mount.path / "file").open("wb", buffering=0)
        file.write(plain[: -8 * MIB])
        wait_until(end)
        file.write(plain[-8 * MIB :])
        with pytest.raises(OSError, match="Permission denied") as failure:
            file.close()
        assert failure.value.errno == errno.EACCES
        eventually(lambda: "is kept, encrypted, in" in mount.log())
        options = f"sas_file={mount.sas_file},key_file={key_file}"
        replace_token(mount, azurite.sas(container))
        recover = ["recover", "--spool-dir", str(mount.spool_dir), "upload", "--all"]
        assert main([*recover, "-o", options]) == 0
        assert download(encrypting(azurite, container, KEK), "file") == plain
        assert list(mount.spool_dir.glob("*.blobfs-recovery")) == []


def policy_token(azurite: Azurite, container: str, permission: str) -> str:
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    policy = AccessPolicy(permission=permission, start=now - 2 * hour, expiry=now + hour)
    azurite.sdk(container).set_container_access_policy({"policy": policy})
    token: str = generate_container_sas(azurite.account, container, azurite.key, policy_id="policy")
    azurite.signatures.add(signature(token))
    return token


def test_a_policy_that_is_revoked_and_made_again_gives_back_what_it_took(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    token = policy_token(azurite, container, "racwdlt")
    with mounted(
        azurite, container, tmp_path, "metadata_ttl=0", sas=token, key_file=key_file
    ) as mount:
        mount.expect_log("the service refuses the token; waiting")
        (mount.path / "file").write_bytes(b"x")
        azurite.sdk(container).set_container_access_policy({})
        threading.Timer(1.5, policy_token, (azurite, container, "racwdlt")).start()
        assert (mount.path / "file").read_bytes() == b"x"
        assert "the service accepts the token again" in mount.log()


@pytest.mark.parametrize("permission", ["rl", "rwl"])
def test_the_rights_of_a_policy_are_asked_for_at_mount(
    permission: str, azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    token = policy_token(azurite, container, permission)
    with mounted(azurite, container, tmp_path, sas=token, key_file=key_file) as mount:
        if permission == "rl":
            with pytest.raises(OSError, match="Read-only file system"):
                (mount.path / "file").write_bytes(b"x")
            assert "mounted read-only: the token lacks w, d (has rl)" in mount._stderr()
        else:
            (mount.path / "file").write_bytes(b"x")
            assert "nothing can be deleted or renamed" in mount._stderr()


def test_a_policy_without_the_right_to_read_is_no_mount(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    token = policy_token(azurite, container, "wl")
    with (
        pytest.raises(MountFailed, match="lacks r") as failure,
        mounted(azurite, container, tmp_path, sas=token, key_file=key_file),
    ):
        pytest.fail("mounted")
    assert failure.value.status == 1


def test_a_token_with_fewer_rights_takes_effect_and_the_log_names_the_letter(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    encrypting(azurite, container, KEK).upload_blob("file", b"x")
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        replace_token(mount, azurite.sas(container, "rl"))
        eventually(lambda: "new token from" in mount.log())
        mount.expect_log("the new token lacks w, d, t: what needs it fails with EACCES")
        mount.expect_log("the SAS token lacks w; this needs w")
        mount.expect_log("the SAS token lacks d; this needs d")
        with pytest.raises(PermissionError):
            (mount.path / "file").chmod(0o600)
        with pytest.raises(PermissionError):
            (mount.path / "file").unlink()
        assert (mount.path / "file").read_bytes() == b"x"


def test_a_token_of_another_container_is_left_and_the_mount_goes_on(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        mount.expect_log("is not taken up, the old one stays: is it for another container")
        replace_token(mount, azurite.sas(azurite.new_container()))
        eventually(lambda: "is not taken up" in mount.log())
        (mount.path / "file").write_bytes(b"x")


class CommandMount(Mount):
    """A mount whose token comes from a program, which takes it from the sas_file."""

    def argv(self) -> list[str]:
        command = f"sas_command=cat {self.sas_file}"
        return [
            argument.replace(f"sas_file={self.sas_file}", command) for argument in super().argv()
        ]


def test_a_command_gives_the_token_of_the_mount_and_the_next_before_that_ends(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    end = in_seconds(6)
    first = azurite.sas(container, expiry=end)
    mount = CommandMount(
        azurite.url(container), tmp_path, sas=first, key_file=key_file, foreground=False
    )
    try:
        mount.start()
        replace_token(mount, azurite.sas(container))
        eventually(lambda: "new token from sas_command: se " in mount.log())
        wait_until(end)
        (mount.path / "file").write_bytes(b"x")
        assert re.search(r"refuses the token", mount.log()) is None
        problems = mount.unmount()
    finally:
        mount.remove()
    assert problems + mount.problems(azurite) == []


class AccountMount(Mount):
    """A mount of the account, with the sas_file as the one file of its sas_dir."""

    def __init__(self, azurite: Azurite, container: str, state_dir: Path, **kw: Any) -> None:
        super().__init__(f"{azurite.endpoint}/", state_dir, **kw)
        tokens = state_dir / "tokens"
        tokens.mkdir()
        self.sas_file = self.sas_file.rename(tokens / f"{container}.sas")

    def argv(self) -> list[str]:
        option = f"sas_dir={self.sas_file.parent}"
        return [
            argument.replace(f"sas_file={self.sas_file}", option) for argument in super().argv()
        ]


def test_the_files_of_a_sas_dir_are_watched(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    mount = AccountMount(
        azurite, container, tmp_path, sas=azurite.sas(container), key_file=key_file
    )
    try:
        mount.start()
        replace_token(mount, azurite.sas(container, expiry=timedelta(days=3)))
        eventually(lambda: "new token from" in mount.log())
        (mount.path / container / "file").write_bytes(b"x")
        problems = mount.unmount()
    finally:
        mount.remove()
    assert problems + mount.problems(azurite) == []


def test_the_log_says_when_the_token_ends_and_never_its_signature(
    azurite: Azurite, container: str, tmp_path: Path, key_file: Path
) -> None:
    with mounted(azurite, container, tmp_path, key_file=key_file) as mount:
        eventually(lambda: "the token for" in mount.log())
        assert re.search(r"the token for \S+ expires at \S+Z \(in 7 hours\)", mount.log())
        assert os.listdir(mount.path) == []
