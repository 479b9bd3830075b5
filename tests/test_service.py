"""`blobfs@.service` under a systemd of the tests' own, and what it is told, line by line."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from blobfs.service import BEAT, Service, beat_interval
from tests.azurite import Azurite
from tests.installed import MNT, Installed, installed

UNIT = "blobfs@data"


# --- what the manager is told ----------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


def received(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages


async def test_signs_of_life_and_a_status_when_it_changes(
    manager: socket.socket, autojump_clock: MockClock
) -> None:
    status = "0 open"
    service = Service(lambda: status, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.sleep(BEAT * 1.5)
        assert received(manager) == ["WATCHDOG=1\nSTATUS=0 open", "WATCHDOG=1"]
        status = "1 open"
        await trio.sleep(BEAT)
        assert received(manager) == ["WATCHDOG=1\nSTATUS=1 open"]
        nursery.cancel_scope.cancel()


async def test_a_stopping_mount_asks_for_the_time_that_it_needs(
    manager: socket.socket, autojump_clock: MockClock
) -> None:
    service = Service(lambda: "storing", lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.sleep(BEAT / 2)
        received(manager)
        service.stopping()
        assert "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000" in received(manager)[0]
        await trio.sleep(BEAT)
        assert "EXTEND_TIMEOUT_USEC=60000000" in received(manager)[0]
        nursery.cancel_scope.cancel()


async def test_without_a_manager_nobody_is_told(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    asked: list[str] = []
    service = Service(lambda: asked.append("") or "", lambda: None)  # type: ignore[func-returns-value]
    with trio.move_on_after(10 * BEAT):
        await service.run()
    assert asked == []


async def test_a_reload_is_announced_and_answered(
    manager: socket.socket, autojump_clock: MockClock
) -> None:
    reloaded = trio.Event()
    service = Service(lambda: "", reloaded.set)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        await trio.sleep(BEAT / 2)
        received(manager)
        os.kill(os.getpid(), 1)
        with trio.fail_after(BEAT / 4):
            await reloaded.wait()
        reloading, ready = received(manager)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)
        assert ready == "READY=1"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("usec", "seconds"), [("", BEAT), ("nonsense", BEAT), ("2000000", 1.0), ("600000000", BEAT)]
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(usec: str, seconds: float) -> None:
    assert beat_interval(usec) == seconds


# --- the unit --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with installed(azurite, tmp_path_factory.mktemp("service"), systemd=True) as made:
        made.machine.sh(
            "cat >/etc/blobfs/data.conf",
            stdin=f"SOURCE={made.source}\nMOUNTPOINT={MNT}\nOPTIONS=metadata_ttl=5,allow_other\n",
        )
        yield made


@pytest.fixture
def here(shared: Installed) -> Iterator[Installed]:
    shared.machine.run("systemctl", "reset-failed")
    yield shared
    shared.set_token(shared.azurite.sas(shared.container))
    shared.machine.run("systemctl", "stop", UNIT)
    assert shared.machine.fstypes_at(MNT) == []


def show(here: Installed, name: str) -> str:
    return here.machine.run("systemctl", "show", "-P", name, UNIT).stdout.strip()


@pytest.mark.mount
def test_it_is_started_when_the_mount_answers(here: Installed) -> None:
    here.machine.run("systemctl", "start", UNIT)
    assert here.is_mounted
    status = f"{here.source}: 0 open, all stored; the token for {here.source} expires at "
    assert show(here, "StatusText").startswith(status)
    here.machine.run("ls", MNT)


@pytest.mark.mount
def test_a_token_that_is_no_credential_is_renewed_and_the_status_goes_on(here: Installed) -> None:
    """systemd copies a credential when the service starts, so a new one is not seen."""
    configured = here.machine.run("cat", "/etc/blobfs/data.conf").stdout
    own = configured.replace("OPTIONS=", "OPTIONS=sas_file=/etc/blobfs/data.sas,")
    here.machine.sh("cat >/etc/blobfs/data.conf", stdin=own)
    try:
        here.machine.run("systemctl", "start", UNIT)
        here.set_token(here.azurite.sas(here.container, "racwdl"))
        here.machine.wait_for(
            "taken up",
            lambda: "new token from" in here.machine.run("journalctl", "-u", UNIT).stdout,
        )
        assert show(here, "StatusText").startswith(f"{here.source}: 0 open, all stored; the token ")
    finally:
        here.machine.sh("cat >/etc/blobfs/data.conf", stdin=configured)


@pytest.mark.mount
def test_the_units_in_the_repository_are_sound(here: Installed) -> None:
    verified = here.machine.run("systemd-analyze", "verify", f"{UNIT}.service")
    assert verified.stderr == ""
    rated = here.machine.run("systemd-analyze", "security", "--no-pager", f"{UNIT}.service").stdout
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", rated)
    assert float(level) < 4.5, rated


@pytest.mark.mount
def test_a_reload_opens_the_log_anew_and_keeps_the_mount(here: Installed) -> None:
    here.machine.run("systemctl", "start", UNIT)
    before = show(here, "MainPID")
    here.machine.run("systemctl", "reload", UNIT)
    assert here.is_mounted
    assert show(here, "MainPID") == before
    here.machine.wait_for(
        "said", lambda: "reloaded" in here.machine.run("journalctl", "-u", UNIT).stdout
    )


@pytest.mark.mount
@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_daemon_that_is_killed_or_hangs_is_started_again(here: Installed, signal: str) -> None:
    drop_in = "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n"
    here.machine.sh(
        f"mkdir -p /run/systemd/system/{UNIT}.service.d;"
        f"cat >/run/systemd/system/{UNIT}.service.d/test.conf; systemctl daemon-reload",
        stdin=drop_in,
    )
    here.machine.run("systemctl", "start", UNIT)
    here.machine.sh(f"echo stored >{MNT}/file")
    before = show(here, "MainPID")
    here.machine.run("kill", f"-{signal}", before)
    here.machine.wait_for(
        "another daemon",
        lambda: (
            show(here, "MainPID") not in ("0", before) and show(here, "ActiveState") == "active"
        ),
    )
    assert here.machine.fstypes_at(MNT) == ["fuse.blobfs"]
    assert here.machine.sh(f"cat {MNT}/file") == "stored\n"


@pytest.mark.mount
def test_a_stop_stores_what_an_open_file_holds(here: Installed) -> None:
    here.machine.run("systemctl", "start", UNIT)
    script = f"exec 5>{MNT}/unfinished; printf dirty >&5; systemctl stop {UNIT}"
    here.machine.run("bash", "-c", script)
    here.machine.run("systemctl", "start", UNIT)
    assert here.machine.sh(f"cat {MNT}/unfinished") == "dirty"


@pytest.mark.mount
def test_an_expired_token_is_said_and_not_tried_again(here: Installed) -> None:
    here.expire_token()
    assert here.machine.run("systemctl", "start", UNIT, check=False).returncode != 0
    status = here.machine.run("systemctl", "status", UNIT, check=False).stdout
    assert re.search("blobfs: the SAS token expired at .*: get a new one", status)
    assert (show(here, "ActiveState"), show(here, "NRestarts")) == ("failed", "0")


@pytest.mark.mount
def test_an_encrypted_credential_is_given_by_a_drop_in(here: Installed) -> None:
    directory = f"/run/systemd/system/{UNIT}.service.d"
    drop_in = "[Service]\nLoadCredential=\nLoadCredential=keys:/etc/blobfs/data.keys\n"
    here.machine.sh(
        f"mkdir -p {directory}; cd /etc/blobfs;"
        f"(cat; systemd-creds encrypt --pretty --name=sas data.sas -) >{directory}/secret.conf;"
        "rm data.sas; systemctl daemon-reload",
        stdin=drop_in,
    )
    try:
        here.machine.run("systemctl", "start", UNIT)
        here.machine.run("ls", MNT)
        shown = show(here, "Environment") + here.machine.sh(f"cat {directory}/secret.conf")
        assert "sig=" not in shown + here.machine.sh(f"cat /proc/{show(here, 'MainPID')}/environ")
    finally:
        here.machine.sh(f"rm {directory}/secret.conf; systemctl daemon-reload")
