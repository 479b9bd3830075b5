"""key_command: what is asked of it, and what comes of one that hangs, lies, dies or talks."""

import base64
import json
import os
import select
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blobfs.cli import main
from blobfs.envelope import EncryptionData, WrappedKey, open_body
from blobfs.errors import KeyRefused, KeyUnavailable, KeyUnknown, OptionError, WrongKey
from blobfs.keyring import Keyring
from blobfs.providers import CommandProvider, Outside
from blobfs.providers.command import MAX_PROCESSES
from tests import keycommand
from tests.azurite import Azurite
from tests.mounts import MountFailed, mounted
from tests.sdk import AesKek, content, download, encrypting

PAYLOAD = bytes(range(40))
PAYLOAD_TEXT = base64.b64encode(PAYLOAD).decode()
WRAPPED = WrappedKey("k", "A256KW", bytes(48))
LIMIT = 20.0  # seconds: for a machine under load, never waited for


def command(script: str, *, key_id: str | None = "k", limit: float = LIMIT) -> Outside:
    """The provider of a shell script."""
    return Outside(CommandProvider(["/bin/sh", "-c", script], key_id), limit=limit)


def printing(*answers: dict[str, object]) -> str:
    """A script that gives one answer after the other, by the operation it is asked for."""
    wrap, *unwrap = (shlex.quote(json.dumps(answer)) for answer in answers)
    return (
        f"read line; case $line in *unwrap*) echo {(unwrap or [wrap])[0]};; *) echo {wrap};; esac"
    )


def wrapped_as(**changes: object) -> dict[str, object]:
    return {"kid": "k", "alg": "A256KW", "key": base64.b64encode(bytes(48)).decode(), **changes}


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A named pipe whose other end never has to wait for ours."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ends(pid: int) -> bool:
    """Whether the process ends: a killed one may take a moment."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], LIMIT)[0])
    finally:
        os.close(process)


# A command that works


async def test_it_wraps_and_unwraps_and_each_wrap_is_proved(tmp_path: Path) -> None:
    words = keycommand.install(tmp_path).split()
    provider = Outside(CommandProvider(words, None), limit=LIMIT)
    wrapped = await provider.wrap(PAYLOAD)
    assert (wrapped.key_id, wrapped.algorithm) == (keycommand.KEY_ID, "A256KW")
    assert provider.algorithm == "A256KW"
    assert keycommand.calls(tmp_path) == ["wrap None", f"unwrap {keycommand.KEY_ID}"]
    assert await provider.unwrap(wrapped) == PAYLOAD


async def test_no_key_is_in_its_arguments_or_environment(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"tr '\\0' '\\n' </proc/$$/cmdline >{seen}; env >>{seen}; pwd >>{seen};" + printing(
        wrapped_as(), {"key": PAYLOAD_TEXT}
    )
    assert (await command(script).wrap(PAYLOAD)).key_id == "k"
    text = seen.read_text().replace(PAYLOAD_TEXT, "", 1)  # the script's own answer
    assert PAYLOAD_TEXT not in text
    assert text.splitlines()[-1] == "/"


async def test_it_need_not_read_what_it_is_asked() -> None:
    provider = command(f'exec 0<&-; echo \'{{"key": "{PAYLOAD_TEXT}"}}\'')
    assert await provider.unwrap(WRAPPED) == PAYLOAD


async def test_only_so_many_run_at_once(tmp_path: Path) -> None:
    provider = command(
        f'echo >{tmp_path}/started; read x <{tmp_path}/go; echo \'{{"key": "{PAYLOAD_TEXT}"}}\''
    )
    with fifo(tmp_path / "started") as started, fifo(tmp_path / "go") as go:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * MAX_PROCESSES):
                nursery.start_soon(provider.unwrap, WRAPPED)
            for _ in range(MAX_PROCESSES):
                await trio.to_thread.run_sync(os.read, started, 1)
            await wait_all_tasks_blocked(0.1)
            assert select.select([started], [], [], 0)[0] == []
            os.write(go, b"\n" * 3 * MAX_PROCESSES)
        assert len(os.read(started, 100)) == 2 * MAX_PROCESSES


def test_a_program_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "text").touch(0o600)
    for program in ("/no/such/program", "no-such-program", f"{tmp_path}/text", f"{tmp_path}"):
        with pytest.raises(OptionError, match="is not there or not executable"):
            CommandProvider([program], None)


# One that hangs


async def test_one_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    provider = command(f"sleep 1000 & echo $! $$ >{tmp_path}/pids; wait", limit=0.5)
    with pytest.raises(KeyUnavailable, match=r"key_command gave no answer within 0\.5 s"):
        await provider.unwrap(WRAPPED)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(map(ends, pids))


async def test_cancelled_it_is_killed_too(tmp_path: Path) -> None:
    provider = command(f"echo $$ >{tmp_path}/pid; exec sleep 1000")
    with fifo(tmp_path / "pid") as pid:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.unwrap, WRAPPED)
            process = int(await trio.to_thread.run_sync(os.read, pid, 100))
            nursery.cancel_scope.cancel()
        assert ends(process)


async def test_a_process_left_behind_does_not_keep_the_answer_back(tmp_path: Path) -> None:
    provider = command(
        f'sleep 1000 & echo $! >{tmp_path}/pid; echo \'{{"key": "{PAYLOAD_TEXT}"}}\''
    )
    assert await provider.unwrap(WRAPPED) == PAYLOAD
    assert ends(int((tmp_path / "pid").read_text()))


async def test_a_call_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for script in ("exit 3", "kill -9 $$", "sleep 1000"):
        with pytest.raises(KeyUnavailable):
            await command(script, limit=0.2).unwrap(WRAPPED)
    assert len(os.listdir("/proc/self/fd")) == before


# One that dies, or talks nonsense


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "ended with status 3"),
        ("echo the token expired >&2; exit 3", "ended with status 3: the token expired"),
        (f"kill -{signal.SIGKILL} $$", "ended with signal 9"),
        ("true", "did not print one JSON object"),
        ("echo '{'", "did not print one JSON object"),
        ("echo '[1]'", "did not print one JSON object"),
        ("echo '{}'; echo '{}'", "did not print one JSON object"),
        ("printf '\\377'", "did not print one JSON object"),
        ("echo '{}'", 'answered an unwrap without "key"'),
        ("echo '{\"key\": 1}'", 'answered an unwrap without "key"'),
        ('echo \'{"key": "###"}\'', 'answered an unwrap without "key"'),
        ('echo \'{"key": ""}\'', 'answered an unwrap without "key"'),
        ('echo \'{"key": "QUJD"}\'', "something that is no content key"),
        ("head -c 100000 /dev/zero", "printed more than 65536 bytes"),
        ("cat /dev/zero", "printed more than 65536 bytes"),
        ("cat /dev/zero >&2 & sleep 0.05; exit 1", "ended with status 1"),
        ('echo \'{"error": "no coffee"}\'', 'gave an "error" that is not known'),
        ("echo '{\"error\": [1]}'", 'gave an "error" that is not known'),
    ],
)
async def test_an_answer_of_no_use_may_be_asked_for_again(script: str, message: str) -> None:
    with pytest.raises(KeyUnavailable) as caught:
        await command(script).unwrap(WRAPPED)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("unknown", KeyUnknown, "has no key 'k'"),
        ("wrong", WrongKey, "was not wrapped with key 'k'"),
        ("refused", KeyRefused, "refuses the use of key 'k'"),
        ("unavailable", KeyUnavailable, "cannot reach key 'k'"),
    ],
)
async def test_it_can_say_why_it_does_not(error: str, kind: type[Exception], message: str) -> None:
    script = f'echo ask Ann >&2; echo \'{{"error": "{error}"}}\''
    with pytest.raises(kind, match=f"{message}: ask Ann"):
        await command(script).unwrap(WRAPPED)


async def test_what_it_says_on_standard_error_is_cut_and_redacted() -> None:
    noise = f"key {PAYLOAD_TEXT} hex {PAYLOAD.hex()} sig=c2VjcmV0 \\033[31m\\n"
    with pytest.raises(KeyUnavailable) as caught:
        await command(f"printf '{noise}' >&2; printf '%05000d' 0 | tr 0 . >&2; exit 1").unwrap(
            WRAPPED
        )
    said = str(caught.value)
    assert said.startswith(
        "key_command ended with status 1: key REDACTED hex REDACTED sig=REDACTED"
    )
    assert len(said) < 400
    assert said.isprintable()


# One that lies


@pytest.mark.parametrize(
    ("answers", "kind", "message"),
    [
        ([wrapped_as(kid="other")], WrongKey, "was to use key 'k', not 'other'"),
        ([wrapped_as(), {"key": base64.b64encode(bytes(40)).decode()}], WrongKey, "lost"),
        (
            [wrapped_as(), {"key": base64.b64encode(bytes(16)).decode()}],
            KeyUnavailable,
            "no content",
        ),
        ([wrapped_as(), {"error": "wrong"}], WrongKey, "was not wrapped with"),
        ([wrapped_as(key=PAYLOAD_TEXT)], WrongKey, "the key as it was, not encrypted"),
        (
            [wrapped_as(key=base64.b64encode(bytes(4096)).decode())],
            KeyUnavailable,
            "no wrapped key",
        ),
        ([wrapped_as(alg="")], KeyUnavailable, "no wrapped key"),
        ([wrapped_as(alg=None)], KeyUnavailable, 'without "kid", "alg" and "key"'),
        ([wrapped_as(kid=7)], KeyUnavailable, 'without "kid", "alg" and "key"'),
    ],
)
async def test_a_wrap_that_would_lose_or_give_away_a_file_is_not_believed(
    answers: list[dict[str, object]], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        await command(printing(*answers)).wrap(PAYLOAD)
    assert PAYLOAD_TEXT not in str(caught.value)


async def test_one_that_begins_to_lie_later_is_found_out(tmp_path: Path) -> None:
    # It knows one key only, as a script with one temporary file would.
    provider = command(printing(wrapped_as(), {"key": PAYLOAD_TEXT}))
    await provider.wrap(PAYLOAD)
    with pytest.raises(WrongKey, match="does not unwrap what it wrapped"):
        await provider.wrap(PAYLOAD[::-1])


# In a mount


@pytest.mark.mount
def test_a_mount_asks_the_command_once_a_file_and_the_sdk_reads_it(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    option = f"key_command={keycommand.install(tmp_path)}"
    key = (tmp_path / "kms.key").read_bytes()
    kek = AesKek(keycommand.KEY_ID, key)
    encrypting(azurite, container, kek).upload_blob("theirs", content(5_000_000))
    with mounted(azurite, container, tmp_path, option) as mount:
        before = len(keycommand.calls(tmp_path))
        (mount.path / "ours").write_bytes(content(300_000))
        assert len(keycommand.calls(tmp_path)) - before == 2  # wrap, and the proof
        mount.remount(*mount.options, "cache_size=0")
        before = len(keycommand.calls(tmp_path))
        for _ in range(3):
            assert (mount.path / "theirs").read_bytes() == content(5_000_000)
            assert (mount.path / "ours").read_bytes() == content(300_000)
        assert keycommand.calls(tmp_path)[before:] == [f"unwrap {keycommand.KEY_ID}"] * 2
    assert download(encrypting(azurite, container, kek), "ours") == content(300_000)


@pytest.mark.mount
def test_a_command_that_fails_makes_no_mount_and_says_why(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    script = tmp_path / "kms"
    script.write_text("#!/bin/sh\necho no route to the KMS >&2\nexit 7\n")
    script.chmod(0o700)
    with (
        pytest.raises(MountFailed, match="key_command ended with status 7: no route") as caught,
        mounted(azurite, container, tmp_path, f"key_command={script}"),
    ):
        pass
    assert caught.value.status == 32
    with mounted(azurite, container, tmp_path, f"key_command={script}", "ro") as mount:
        assert list(mount.path.iterdir()) == []  # it is asked when a file is read
    with (
        pytest.raises(MountFailed, match="is not there or not executable") as caught,
        mounted(azurite, container, tmp_path, f"key_command={script}.sh"),
    ):
        pass
    assert caught.value.status == 1


@pytest.mark.mount
def test_a_close_while_the_command_is_away_fails_and_keeps_the_bytes(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    script = tmp_path / "kms"
    command = keycommand.install(tmp_path)
    script.write_text(f"#!/bin/sh\n[ -e {tmp_path}/away ] && exit 7\nexec {command}\n")
    script.chmod(0o700)
    with mounted(azurite, container, tmp_path, f"key_command={script}") as mount:
        mount.expect_log("ERROR .*'file': Input/output error: key_command ended with status 7")
        mount.expect_log("ERROR .*file: not stored; its content is kept, encrypted, in ")
        (tmp_path / "away").touch()
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "file").write_bytes(content(5000))
        (tmp_path / "away").unlink()
        (mount.path / "other").write_bytes(b"stored again")
    (kept,) = mount.spool_dir.glob("*.blobfs-recovery")
    blob = kept.read_bytes()
    end = len(blob) - 16 - int.from_bytes(blob[-16:-8], "big")
    data = EncryptionData.parse(json.loads(blob[end:-16])["metadata"]["encryptiondata"])
    keyring = Keyring(None, CommandProvider(command.split(), None))
    body = open_body(data, trio.run(keyring.content_key, data), end)
    assert bytes(body.decrypt(0, blob[:end])) == content(5000)
    options = f"sas_file={mount.sas_file},key_command={script}"
    assert main(["recover", "--spool-dir", str(kept.parent), "upload", "--all", "-o", options]) == 0
    assert not kept.exists()
    kek = AesKek(keycommand.KEY_ID, (tmp_path / "kms.key").read_bytes())
    assert download(encrypting(azurite, container, kek), "file") == content(5000)


@pytest.mark.mount
def test_a_read_is_over_in_time_when_the_command_hangs(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    command = keycommand.install(tmp_path)
    kek = AesKek(keycommand.KEY_ID, (tmp_path / "kms.key").read_bytes())
    encrypting(azurite, container, kek).upload_blob("file", b"x")
    script = tmp_path / "kms"
    script.write_text(f"#!/bin/sh\n[ -e {tmp_path}/hang ] && exec sleep 1000\nexec {command}\n")
    script.chmod(0o700)
    options = (f"key_command={script}", "key_command_timeout=2s")
    with mounted(azurite, container, tmp_path, *options) as mount:
        mount.expect_log(
            "ERROR .*'file': Input/output error: key_command gave no answer within 2 s"
        )
        (tmp_path / "hang").touch()
        started = time.monotonic()
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "file").read_bytes()
        assert time.monotonic() - started < 10
        (tmp_path / "hang").unlink()
        assert (mount.path / "file").read_bytes() == b"x"
