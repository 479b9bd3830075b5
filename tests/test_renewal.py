"""A token over its life: what replaces it, when, and what requests do meanwhile."""

import base64
import logging
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio
from trio.testing import MockClock

from blobfs import access as access_module
from blobfs import renewal as renewal_module
from blobfs.access import Access, ask_sas_command, read_sas_file
from blobfs.blobs import Client
from blobfs.errors import Denied, SasError, TokenRefused
from blobfs.renewal import CALL_DELAY, CANDIDATE_DELAY, MARGIN, POLL, PROBE_TIME, Renewal
from blobfs.sas import parse
from blobfs.source import Source
from tests.strict import answer, error

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
PATIENCE = 20.0
SOURCE = Source.parse("https://account.blob.core.windows.net/box")
EMPTY = b"<?xml version='1.0'?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"


def token(name: str, *, sp: str = "rcwdl", expiry: datetime = START + timedelta(days=9)) -> str:
    """A token; tokens of different names have different signatures."""
    signature = base64.b64encode(name.encode().ljust(32, b".")).decode()
    end = expiry.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"sv=2025-11-05&sr=c&sp={sp}&se={quote(end)}&sig={quote(signature, safe='')}"


OLD, NEW = token("old"), token("new")


class Service(httpx.AsyncBaseTransport):
    """Accepts the tokens in `accepted` and refuses all others as Azure does."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = {parse(text).query for text in accepted}
        self.requests: list[httpx.Request] = []
        self.skew = 0.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        target = request.url.raw_path.decode()
        date = {"Date": formatdate(time.time() + self.skew, usegmt=True)}
        if not any(target.endswith(query) for query in self.accepted):
            return error(403, "AuthenticationFailed", "refused", "Signature did not match", **date)
        return answer(200, EMPTY if "comp=list" in target else b"", **date)


def local_clock() -> datetime:
    """The machine's clock, which stands at START when the test begins."""
    return START + timedelta(seconds=trio.current_time())


@pytest.fixture
def clock() -> MockClock:
    """Jumps when nothing happens, but gives the threads that read a token time."""
    return MockClock(autojump_threshold=0.05)


@pytest.fixture
def patient_clock() -> MockClock:
    """The same for programs, which take longer."""
    return MockClock(autojump_threshold=0.2)


@pytest.fixture
def sas_file(tmp_path: Path) -> Path:
    path = tmp_path / "token.sas"
    write(path, OLD)
    return path


def write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


@asynccontextmanager
async def renewing(
    service: Service,
    *,
    file: Path | None = None,
    command: tuple[str, ...] = (),
    first: str = OLD,
    watched: bool = True,
) -> AsyncIterator[Renewal]:
    async with Client(transport=service) as client, trio.open_nursery() as nursery:
        access = Access(SOURCE, parse(first), file, command)
        renewal = Renewal(client, access, patience=PATIENCE, now=local_clock)
        if watched:
            nursery.start_soon(renewal.watch)
            await trio.sleep(0.01)
        yield renewal
        nursery.cancel_scope.cancel()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "blobfs")


# The file


@pytest.mark.parametrize("how", ["written", "renamed"])
async def test_a_new_token_in_the_file_is_taken_up(
    how: str, sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    later = token("new", expiry=START + timedelta(days=30))
    async with renewing(Service(OLD, later), file=sas_file) as renewal:
        if how == "written":
            write(sas_file, later)
        else:
            write(sas_file.with_suffix(".new"), later)
            sas_file.with_suffix(".new").rename(sas_file)
        await trio.sleep(2 * POLL)
        assert renewal.token() == later
    (said,) = [r.getMessage() for r in caplog.records if "new token from" in r.getMessage()]
    assert said.endswith("se 2026-06-10T12:00:00Z → 2026-07-01T12:00:00Z")
    assert "sig" not in caplog.text


async def test_a_token_that_is_only_half_there_is_left_and_said_once(
    sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with renewing(Service(OLD, NEW), file=sas_file) as renewal:
        write(sas_file, NEW[:-20])
        await trio.sleep(5 * POLL)
        assert renewal.token() == OLD
        (said,) = warnings(caplog)
        assert re.search("the token stays as it is: .*damaged", said)
        write(sas_file, NEW)
        await trio.sleep(2 * POLL)
        assert renewal.token() == NEW
    assert len(warnings(caplog)) == 1


async def test_what_is_wrong_for_a_moment_is_not_worth_a_warning(
    sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with renewing(Service(OLD, NEW), file=sas_file) as renewal:
        remove(sas_file)
        await trio.sleep(POLL)
        write(sas_file, NEW)
        await trio.sleep(2 * POLL)
        assert renewal.token() == NEW
    assert warnings(caplog) == []


async def test_a_file_that_cannot_be_read_for_a_while_holds_nothing_up(
    sas_file: Path,
    caplog: pytest.LogCaptureFixture,
    clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    back = threading.Event()

    def hang(path: Path) -> str:
        back.wait()
        return read_sas_file(path)

    monkeypatch.setattr(renewal_module, "read_sas_file", hang)
    async with renewing(Service(NEW), file=sas_file) as renewal:
        try:
            await trio.sleep(3 * (PROBE_TIME + POLL))
            (said,) = warnings(caplog)
            assert "cannot read the sas_file within 20 s" in said
            write(sas_file, NEW)
        finally:
            back.set()
        await trio.sleep(PROBE_TIME + 2 * POLL)
        assert renewal.token() == NEW


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a SAS token"),
        (token("new", expiry=START - timedelta(hours=1)), "expired"),
        (token("new", sp="rw"), "lacks l"),
        (NEW.replace("sr=c", "sr=b"), "for a single blob"),
        (f"https://account.blob.core.windows.net/other?{NEW}", "for the container other"),
    ],
    ids=["empty", "expired", "without l", "of a blob", "of another container"],
)
async def test_a_token_that_could_not_mount_is_not_taken_up(
    text: str, why: str, sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with renewing(Service(OLD, NEW), file=sas_file) as renewal:
        write(sas_file, text)
        await trio.sleep(4 * POLL)
        assert renewal.token() == OLD
    (said,) = warnings(caplog)
    assert re.search(f"the token stays as it is: .*{why}", said)


async def test_a_token_that_the_service_refuses_is_not_taken_up_until_it_does_not(
    sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    service = Service(OLD)
    async with renewing(service, file=sas_file) as renewal:
        write(sas_file, NEW)
        await trio.sleep(3 * CANDIDATE_DELAY)
        assert renewal.token() == OLD
        (said,) = warnings(caplog)
        assert "not taken up" in said
        assert "another container?" in said
        assert len(service.requests) <= 4, "no more than one a CANDIDATE_DELAY"
        service.accepted.add(NEW)
        await trio.sleep(CANDIDATE_DELAY + POLL)
        assert renewal.token() == NEW


async def test_what_a_new_token_lacks_is_said_and_what_it_adds_waits_for_the_next_mount(
    sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    narrow, wide = token("narrow", sp="rl"), token("wide", sp="rcwdlt")
    async with renewing(Service(OLD, narrow, wide), file=sas_file) as renewal:
        write(sas_file, narrow)
        await trio.sleep(2 * POLL)
        assert renewal.token() == narrow
        (said,) = warnings(caplog)
        assert said.endswith("the new token lacks w, d: what needs it fails with EACCES")
        write(sas_file, wide)
        await trio.sleep(2 * POLL)
        assert renewal.token() == wide
    assert "t will be used by the next mount" in caplog.text


# Refusals


async def test_a_refused_request_waits_for_a_new_token_and_is_sent_again(
    sas_file: Path, clock: MockClock
) -> None:
    service = Service(NEW)
    async with renewing(service, file=sas_file, watched=False) as renewal:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(60):
                nursery.start_soon(renewal.container.probe)
                nursery.start_soon(renewal.container.head, "blob")
                await trio.sleep(PATIENCE / 2)
                write(sas_file, NEW)
        assert PATIENCE / 2 <= trio.current_time() < PATIENCE
    assert [r.method for r in service.requests if r.url.raw_path.endswith(NEW.encode())]


async def test_a_copy_is_sent_again_with_the_new_token_for_its_source_too(
    sas_file: Path, clock: MockClock
) -> None:
    service = Service(NEW)
    write(sas_file, NEW)
    async with renewing(service, file=sas_file, watched=False) as renewal:
        await renewal.container.copy("a", "b", source_etag="0x1")
    first, *_, last = service.requests
    assert first.headers["x-ms-copy-source"].endswith(OLD)
    assert last.headers["x-ms-copy-source"].endswith(NEW)


async def test_without_a_new_token_requests_fail_before_their_deadline_and_then_at_once(
    sas_file: Path, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async with renewing(Service(), file=sas_file, watched=False) as renewal:
        with pytest.raises(TokenRefused), trio.fail_after(10):
            await renewal.container.probe()
        assert trio.current_time() == pytest.approx(10 - MARGIN, abs=0.5)
        with pytest.raises(TokenRefused), trio.fail_after(60):
            await renewal.container.probe()
        assert trio.current_time() == pytest.approx(PATIENCE - MARGIN, abs=0.5)
        with pytest.raises(TokenRefused), trio.fail_after(60):
            await renewal.container.probe()
        assert trio.current_time() == pytest.approx(PATIENCE - MARGIN, abs=0.5)
    (said,) = warnings(caplog)
    assert "the service refuses the token; waiting up to 18 s for another one from" in said


async def test_a_token_that_nothing_can_renew_fails_at_once(clock: MockClock) -> None:
    async with renewing(Service()) as renewal:
        with pytest.raises(TokenRefused):
            await renewal.container.probe()
        assert trio.current_time() < 1


async def test_a_token_whose_policy_is_renewed_is_used_again(
    sas_file: Path, clock: MockClock
) -> None:
    service = Service()
    async with renewing(service, file=sas_file, watched=False) as renewal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewal.container.probe)
            await trio.sleep(5)
            service.accepted.add(OLD)
        assert trio.current_time() < PATIENCE


async def test_a_refusal_with_another_cause_comes_to_an_end(
    sas_file: Path, clock: MockClock
) -> None:
    class ListsOnly(Service):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            listing = b"comp=list" in request.url.raw_path
            return response if listing else error(403, "AuthorizationFailure")

    async with renewing(ListsOnly(OLD), file=sas_file, watched=False) as renewal:
        with pytest.raises(TokenRefused):
            await renewal.container.head("blob")
        assert trio.current_time() < PATIENCE


async def test_a_missing_permission_is_told_by_its_letter_and_waits_for_nothing(
    sas_file: Path, clock: MockClock
) -> None:
    class ReadOnly(Service):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return error(403, "AuthorizationPermissionMismatch")

    narrow = token("narrow", sp="rl")
    async with renewing(ReadOnly(), file=sas_file, first=narrow, watched=False) as renewal:
        with pytest.raises(Denied, match="the SAS token lacks w; this needs w"):
            await renewal.container.set_metadata("blob", {}, if_match="1")
        assert trio.current_time() < 1


# The command


def program(tmp_path: Path, script: str) -> tuple[str, ...]:
    path = tmp_path / "get-token"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return (str(path), "an argument")


def calls(tmp_path: Path) -> int:
    path = tmp_path / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_the_command_is_called_shortly_before_the_token_ends(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    hour = token("hour", expiry=START + timedelta(hours=1))
    command = program(tmp_path, f"echo x >>{tmp_path}/calls; echo '{NEW}'")
    async with renewing(Service(hour, NEW), command=command, first=hour) as renewal:
        patient_clock.autojump_threshold = 0  # nothing to give time to
        await trio.sleep(55 * 60 - POLL)
        assert calls(tmp_path) == 0
        patient_clock.autojump_threshold = 0.2
        await trio.sleep(2 * POLL)
        assert renewal.token() == NEW
        patient_clock.autojump_threshold = 0
        await trio.sleep(600)
    assert calls(tmp_path) == 1


async def test_the_command_is_called_when_the_token_is_refused(
    tmp_path: Path, patient_clock: MockClock
) -> None:
    command = program(tmp_path, f"echo '{NEW}'")
    async with renewing(Service(NEW), command=command, watched=False) as renewal:
        await renewal.container.probe()
        assert renewal.token() == NEW
        assert trio.current_time() < 2


async def test_a_command_that_gives_nothing_new_is_called_less_and_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patient_clock: MockClock
) -> None:
    soon = token("soon", expiry=START + timedelta(seconds=60))
    command = program(tmp_path, f"echo x >>{tmp_path}/calls; echo nonsense")
    async with renewing(Service(soon), command=command, first=soon):
        patient_clock.autojump_threshold = 0
        await trio.sleep(50)
        patient_clock.autojump_threshold = 0.2
        await trio.sleep(4 + 3.5 * CALL_DELAY)
    assert calls(tmp_path) == 3, "10 and 20 s between them"
    complaints = [said for said in warnings(caplog) if "not a SAS token" in said]
    assert len(complaints) == 1


async def test_a_command_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "COMMAND_TIME", 0.5)
    command = program(tmp_path, f"sleep 600 & echo $! >{tmp_path}/pid; sleep 600")
    with pytest.raises(SasError, match=r"get-token gave no token within 0.5 s and was ended"):
        await ask_sas_command(command)
    child = int((tmp_path / "pid").read_text())
    assert ends(child)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what is left of it
async def test_a_command_that_cannot_be_ended_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "COMMAND_TIME", 0.5)
    monkeypatch.setattr(access_module, "_REAP_TIME", 0.1)
    command = program(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 600")
    with monkeypatch.context() as unkillable, trio.fail_after(10):
        unkillable.setattr(os, "killpg", lambda pid, number: None)
        with pytest.raises(SasError, match="gave no token within"):
            await ask_sas_command(command)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)


def ends(pid: int) -> bool:
    """Whether the process is gone or goes within seconds; a zombie waits for nothing of ours."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 3", "it ended with status 3"),
        ("kill -9 $$", "it ended with signal 9"),
        ("yes", "prints too much"),
        (r"printf '\377'", "not plain ASCII"),
    ],
)
async def test_a_command_that_fails_is_told_apart_by_its_name_alone(
    script: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(SasError, match=f"the sas_command get-token .*{why}") as failure:
        await ask_sas_command(program(tmp_path, script))
    assert "an argument" not in str(failure.value)


async def test_a_program_that_is_not_there_is_said_to_be() -> None:
    with pytest.raises(SasError, match="cannot be run: No such file"):
        await ask_sas_command(["/no/such/program"])


# Expiry


async def test_the_end_is_announced_at_24_hours_1_hour_5_minutes_and_when_it_comes(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    days = token("days", expiry=START + timedelta(hours=26))
    async with renewing(Service(days), first=days):
        said = []
        for hours in (1, 2, 22.5, 1):
            await trio.sleep(hours * 3600)
            said.append(warnings(caplog)[sum(map(len, said)) :])
    assert [len(lines) for lines in said] == [0, 1, 1, 2]
    assert "expires at 2026-06-02T14:00:00Z (in 1 day)" in said[1][0]
    assert "(in 1 hour)" in said[2][0]
    assert "(in 5 minutes)" in said[3][0]
    assert "expired at 2026-06-02T14:00:00Z (0 seconds ago)" in said[3][1]


async def test_expiry_is_judged_by_the_services_clock(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    soon = token("soon", expiry=START + timedelta(minutes=30))
    service = Service(soon)
    service.skew = -3600.0
    async with renewing(service, first=soon) as renewal:
        await renewal.container.probe()
        await trio.sleep(39.5 * 60)  # the Date of an answer has whole seconds
        assert "(in 50 minutes)" in renewal.expiry_line()
        assert not any("expired" in said for said in warnings(caplog))
