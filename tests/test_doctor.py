"""`blobfs doctor`: each thing that can be broken is broken, and said."""

import base64
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from blobfs.blobs import client
from blobfs.doctor import LIBRARIES, Findings, Machine, examine_machine, examine_source, source
from blobfs.envelope import write_key_set
from tests.azurite import Azurite, signature
from tests.certificates import Authority
from tests.leaks import is_leak
from tests.mounts import ROOT, as_user
from tests.sdk import AesKek, encrypting
from tests.test_status import Screen

LIMIT_S = 60
NOBODY = 65534


def states(findings: Findings) -> dict[str, str]:
    return {finding.name: str(finding.state) for finding in findings.all}


def texts(findings: Findings, name: str) -> str:
    (finding,) = (finding for finding in findings.all if finding.name == name)
    return f"{finding.text} | {finding.advice}"


# --- the machine -----------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A user's machine on which all is well."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "fusermount3").touch()
    (programs / "fusermount3").chmod(0o4755)
    (tmp_path / "fuse").symlink_to("/dev/null")
    (tmp_path / "fuse.conf").write_text("# a comment\nuser_allow_other\n")
    (tmp_path / "enabled").write_text("Y\n")
    (tmp_path / "apparmor.d/local").mkdir(parents=True)
    return Machine(
        uid=1000,
        search=str(programs),
        dev_fuse=tmp_path / "fuse",
        fuse_conf=tmp_path / "fuse.conf",
        apparmor_enabled=tmp_path / "enabled",
        apparmor_profiles=tmp_path / "apparmor.d",
    )


def examined(machine: Machine, *, allow_other: bool = False) -> Findings:
    findings = Findings()
    examine_machine(machine, findings, allow_other=allow_other)
    return findings


def test_a_machine_on_which_all_is_well(machine: Machine) -> None:
    findings = examined(machine, allow_other=True)
    assert set(states(findings).values()) == {"ok"}
    assert findings.is_well
    assert re.search(
        r"Python 3\.\d+.*Linux.*libfuse 3\.\d+.*pyfuse3 3\.", texts(findings, "versions")
    )


def test_no_fuse_device(machine: Machine) -> None:
    machine.dev_fuse.unlink()
    findings = examined(machine)
    assert not findings.is_well
    assert "No such file or directory | modprobe fuse" in texts(findings, "/dev/fuse")
    machine.dev_fuse.touch()
    assert "is no device | rm " in texts(examined(machine), "/dev/fuse")


def test_no_fusermount3(machine: Machine) -> None:
    for uid, state in ((1000, "wrong"), (0, "warning")):
        findings = examined(replace(machine, uid=uid, search="/nowhere"))
        assert states(findings)["fusermount3"] == state
        assert "apt-get install fuse3" in texts(findings, "fusermount3")


@pytest.mark.parametrize("spoil", [lambda p: p.chmod(0o755), lambda p: os.chown(p, 1, 1)])
def test_a_fusermount3_that_is_not_setuid_root(
    machine: Machine, spoil: Callable[[Path], None]
) -> None:
    program = Path(machine.search, "fusermount3")
    spoil(program)
    findings = examined(machine)
    assert states(findings)["fusermount3"] == "wrong"
    assert f"chown root {program} && chmod 4755 {program}" in texts(findings, "fusermount3")


def test_allow_other_where_users_may_not(machine: Machine) -> None:
    machine.fuse_conf.write_text("#user_allow_other\n")
    assert states(examined(machine))["fuse.conf"] == "ok"
    findings = examined(machine, allow_other=True)
    assert states(findings)["fuse.conf"] == "wrong"
    assert "echo user_allow_other >>" in texts(findings, "fuse.conf")
    assert states(examined(replace(machine, uid=0), allow_other=True))["fuse.conf"] == "ok"
    machine.fuse_conf.unlink()
    assert states(examined(machine, allow_other=True))["fuse.conf"] == "wrong"


def test_apparmor_that_confines_fusermount3(machine: Machine) -> None:
    profiles = machine.apparmor_profiles
    (profiles / "fusermount3").touch()
    findings = examined(machine)
    assert states(findings)["AppArmor"] == "warning"
    assert f"add to {profiles}/local/fusermount3" in texts(findings, "AppArmor")
    assert findings.is_well
    assert states(examined(replace(machine, uid=0)))["AppArmor"] == "ok"
    (profiles / "local/fusermount3").write_text("mount fstype=fuse.blobfs -> /srv/**/,")
    assert states(examined(machine))["AppArmor"] == "ok"
    (profiles / "local/fusermount3").unlink()
    machine.apparmor_enabled.write_text("N\n")
    assert states(examined(machine))["AppArmor"] == "ok"


def test_a_library_that_is_missing(machine: Machine) -> None:
    findings = examined(replace(machine, libraries=("trio", "no-such-library")))
    assert states(findings)["versions"] == "wrong"
    assert "no-such-library: not installed" in texts(findings, "versions")


def test_the_libraries_looked_for_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split("[<>=]", needed)[0] for needed in project["dependencies"]] == [*LIBRARIES]


# --- a source --------------------------------------------------------------------------------


class Patient:
    """A source and options with which all is well, until a test spoils something."""

    def __init__(self, azurite: Azurite, container: str, directory: Path) -> None:
        self.source = azurite.url(container)
        self.sas_file = directory / "token.sas"
        self.key_file = directory / "keys.json"
        self.spool_dir = directory / "spool"
        self.more: list[str] = []
        self.kid = write_key_set(self.key_file)
        self.token = azurite.sas(container, expiry=timedelta(days=30))

    @property
    def token(self) -> str:
        return self.sas_file.read_text()

    @token.setter
    def token(self, text: str) -> None:
        self.sas_file.touch(0o600)
        self.sas_file.write_text(text)

    @property
    def options(self) -> str:
        named = f"sas_file={self.sas_file},key_file={self.key_file},spool_dir={self.spool_dir}"
        return ",".join([named, *self.more])

    async def examined(self) -> Findings:
        findings = Findings()
        await examine_source(self.source, [self.options], findings)
        secrets = re.findall("sig=([^&]{20})", self.token)
        if self.key_file.exists():
            secrets.append(json.loads(self.key_file.read_text())["keys"][0]["k"])
        assert [s for s in secrets if s in json.dumps(findings.as_json())] == []
        return findings


@pytest.fixture
def patient(
    azurite: Azurite, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Patient:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return Patient(azurite, container, tmp_path)


async def test_a_source_with_which_all_is_well(
    patient: Patient, azurite: Azurite, container: str
) -> None:
    azurite.reset_requests()
    findings = await patient.examined()
    assert findings.is_well
    assert states(findings) == {
        **dict.fromkeys(("options", "name", "TLS", "service", "clock", "token"), "ok"),
        **{"keys": "ok", "contents": "skipped", "spool": "ok"},
    }
    assert f"{patient.kid!r} wraps and unwraps (A256KW)" in texts(findings, "keys")
    assert re.search(r"rights racwdlt, until .* \(for another 29 days\)", texts(findings, "token"))
    assert {request.method for request in azurite.requests()} == {"GET"}


async def test_the_keys_are_tried_on_what_is_stored(
    patient: Patient, azurite: Azurite, container: str
) -> None:
    raw = json.loads(patient.key_file.read_text())["keys"][0]["k"]
    own = AesKek(patient.kid, base64.urlsafe_b64decode(raw + "="))
    encrypting(azurite, container, own).upload_blob("own", b"x")
    assert states(await patient.examined())["contents"] == "ok"
    encrypting(azurite, container, AesKek("another", bytes(32))).upload_blob("a", b"x")
    findings = await patient.examined()
    assert not findings.is_well
    (problem,) = (finding for finding in findings.all if finding.state == "wrong")
    assert problem.text == "none of the mount's keys is 'another'"
    assert problem.advice == "give the key that the files were written with, too"


async def test_a_source_that_is_no_url() -> None:
    findings = Findings()
    await examine_source("container", [], findings)
    assert states(findings) == {"source": "wrong"}


async def test_options_that_are_wrong(patient: Patient) -> None:
    patient.more = ["cash_size=1"]
    findings = await patient.examined()
    assert states(findings) == {"options": "wrong", "name": "ok", "TLS": "ok"}
    assert "did you mean cache_size?" in texts(findings, "options")


def lacks_list(token: str, azurite: Azurite, container: str) -> str:
    return azurite.sas(container, permissions="r")


def expired(token: str, azurite: Azurite, container: str) -> str:
    past = datetime.now(UTC) - timedelta(hours=2)
    return azurite.sas(container, start=past - timedelta(hours=1), expiry=past)


def cut(token: str, azurite: Azurite, container: str) -> str:
    return token.replace("&sr=c", "")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lacks_list, "the SAS token lacks l"),
        (expired, "the SAS token expired at"),
        (cut, "the SAS token is damaged"),
    ],
)
async def test_a_token_that_cannot_work(
    patient: Patient, azurite: Azurite, container: str, spoil: Callable[..., str], said: str
) -> None:
    patient.token = spoil(patient.token, azurite, container)
    findings = await patient.examined()
    assert said in texts(findings, "token")
    assert states(findings) == {"token": "wrong", "name": "ok", "TLS": "ok"}


async def test_a_token_with_a_wrong_signature(patient: Patient) -> None:
    patient.token = re.sub(r"sig=[^&]*", "sig=" + "A" * 43 + "%3D", patient.token)
    findings = await patient.examined()
    assert states(findings)["service"] == "wrong"
    assert "| get a new token" in texts(findings, "service")


async def test_a_token_that_ends_soon_or_cannot_write(
    patient: Patient, azurite: Azurite, container: str
) -> None:
    patient.token = azurite.sas(container, permissions="rl", expiry=timedelta(hours=1))
    findings = await patient.examined()
    assert findings.is_well
    assert (states(findings)["token"], states(findings)["note"]) == ("warning", "warning")
    assert "mounted read-only: the token lacks w, d" in texts(findings, "note")


async def test_a_container_that_does_not_exist(
    patient: Patient, azurite: Azurite, tmp_path: Path
) -> None:
    patient.source = azurite.url("no-such-container")
    patient.token = azurite.sas("no-such-container")
    findings = await patient.examined()
    assert states(findings)["service"] == "wrong"
    assert "does not exist" in texts(findings, "service")


async def test_a_name_without_an_address(patient: Patient) -> None:
    patient.source = "https://account.invalid/container"
    findings = await patient.examined()
    assert states(findings)["name"] == "wrong"
    assert "account.invalid has no address" in texts(findings, "name")
    assert "service" not in states(findings)


async def test_a_port_that_nobody_listens_on(patient: Patient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    patient.source = f"http://127.0.0.1:{port}/account/container"
    findings = await patient.examined()
    assert f"127.0.0.1:{port} cannot be reached: " in texts(findings, "connection")
    assert "refused" in texts(findings, "connection")


async def test_a_service_that_says_nothing(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LIMIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        patient.source = f"https://127.0.0.1:{listener.getsockname()[1]}/account/container"
        findings = await patient.examined()
        assert "cannot be reached: no answer in 0.5 s" in texts(findings, "connection")
        patient.source = patient.source.replace("https", "http")
        findings = await patient.examined()
    assert states(findings)["service"] == "wrong"
    assert states(findings)["clock"] == "skipped"


@contextmanager
def tls_server(directory: Path) -> Iterator[tuple[int, Path]]:
    """A server on localhost that shakes hands once, and the certificate of who vouches for it."""
    authority = Authority(directory)
    context = authority.server()

    def shake(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1)
            except (ssl.SSLError, OSError):
                return  # it refuses our certificate, as it should

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=shake, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], authority.file
    thread.join(LIMIT_S)


async def test_a_certificate_that_nobody_vouches_for(patient: Patient, tmp_path: Path) -> None:
    with tls_server(tmp_path) as (port, _):
        patient.source = f"https://localhost:{port}/account/container"
        findings = await patient.examined()
    assert states(findings)["TLS"] == "wrong"
    refused = "the certificate of localhost is refused: unable to get local issuer certificate"
    assert refused in texts(findings, "TLS")
    assert "update-ca-certificates" in texts(findings, "TLS")


async def test_a_certificate_that_is_vouched_for(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path) as (port, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        patient.source = f"https://localhost:{port}/account/container"
        findings = await patient.examined()
    assert re.search("TLSv1.[23], certificate valid until", texts(findings, "TLS"))


@pytest.mark.parametrize(
    ("ahead", "state"), [(30, "ok"), (300, "warning"), (3600, "wrong"), (-3600, "wrong")]
)
async def test_a_clock_that_is_wrong(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, ahead: int, state: str
) -> None:
    now = client.time.time
    monkeypatch.setattr(client.time, "time", lambda: now() + ahead)
    findings = await patient.examined()
    assert states(findings)["clock"] == state
    which = "ahead of" if ahead > 0 else "behind"
    assert re.search(rf"clock is \d+ s {which} the service's", texts(findings, "clock"))
    assert ("timedatectl set-ntp true" in texts(findings, "clock")) is (state != "ok")


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
async def test_a_proxy_is_named_without_its_password(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://user:secret@localhost:1/")
    patient.source = "https://account.invalid/container"
    findings = await patient.examined()
    assert texts(findings, "proxy") == "requests go through localhost:1 | "
    assert states(findings)["service"] == "wrong"
    assert "secret" not in json.dumps(findings.as_json())


async def test_a_proxy_that_cannot_be_used(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:secret@localhost:1")
    patient.source = "https://account.invalid/container"
    findings = await patient.examined()
    assert "HTTPS_PROXY or ALL_PROXY names cannot be used" in texts(findings, "service")
    assert "secret" not in json.dumps(findings.as_json())


async def test_plain_http_has_no_proxy(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://localhost:1")
    findings = await patient.examined()
    assert "proxy" not in states(findings)
    assert states(findings)["service"] == "ok"


async def test_a_key_file_that_others_can_read(patient: Patient) -> None:
    patient.key_file.chmod(0o644)
    findings = await patient.examined()
    assert states(findings)["keys"] == "wrong"
    assert "chmod 600" in texts(findings, "keys")


async def test_a_read_only_mount_without_keys(patient: Patient) -> None:
    patient.more = ["ro", "norequire_encryption"]
    findings = Findings()
    options = patient.options.replace(f"key_file={patient.key_file},", "")
    await examine_source(patient.source, [options], findings)
    assert findings.is_well
    assert states(findings)["keys"] == "skipped"


async def test_a_spool_dir_that_cannot_be(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    patient.spool_dir = tmp_path / "file/spool"
    findings = await patient.examined()
    assert states(findings)["spool"] == "wrong"
    assert "give another spool_dir=" in texts(findings, "spool")


async def test_what_failed_closes_left_is_counted(patient: Patient) -> None:
    patient.spool_dir.mkdir()
    for name in ("a", "b"):
        (patient.spool_dir / f"{name}.blobfs-recovery").touch()
    findings = await patient.examined()
    assert "has 2 files that a failed close could not store" in texts(findings, "recovery")


async def test_a_spool_dir_that_others_can_write_to(patient: Patient) -> None:
    patient.spool_dir.mkdir()
    patient.spool_dir.chmod(0o777)
    assert states(await patient.examined())["spool"] == "warning"


async def test_each_container_of_a_sas_dir_is_looked_at(
    patient: Patient, azurite: Azurite, container: str, tmp_path: Path
) -> None:
    directory = tmp_path / "tokens"
    directory.mkdir()
    for name in (container, azurite.new_container()):
        (directory / f"{name}.sas").touch(0o600)
        (directory / f"{name}.sas").write_text(azurite.sas(name, expiry=timedelta(days=9)))
    findings = Findings()
    options = f"sas_dir={directory},key_file={patient.key_file},spool_dir={patient.spool_dir}"
    await examine_source(azurite.endpoint, [options], findings)
    assert findings.is_well
    services = [name for name in states(findings) if name.startswith("service of ")]
    assert services == [f"service of {path.stem}" for path in sorted(directory.iterdir())]


# --- the command -----------------------------------------------------------------------------


def doctor(*arguments: str, **kw: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blobfs", "doctor", *arguments]
    return subprocess.run(
        [*kw.pop("prefix", []), *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        **kw,
    )


@pytest.mark.mount
def test_the_command_says_each_finding_in_a_line(patient: Patient) -> None:
    done = doctor(patient.source, "-o", patient.options)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ok  /dev/fuse: can be opened$", done.stdout, re.MULTILINE)
    assert re.search(r"^ok  keys: ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert "checking" not in done.stdout


@pytest.mark.mount
def test_the_exit_status_tells_whether_something_is_wrong(patient: Patient) -> None:
    patient.key_file.unlink()
    done = doctor(patient.source, "-o", patient.options)
    assert done.returncode == 1
    assert f"wrong  keys: {patient.key_file}: No such file or directory" in done.stdout


@pytest.mark.mount
def test_the_findings_for_support_are_json_without_a_secret(
    patient: Patient, azurite: Azurite
) -> None:
    options = patient.options.replace(f"sas_file={patient.sas_file}", f"sas={patient.token}")
    done = doctor(patient.source, "-o", options, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["well"]) == (0, True)
    assert {"/dev/fuse", "versions", "service", "token", "keys"} <= {
        check["name"] for check in report["checks"]
    }
    assert all(check.keys() == {"name", "state", "text", "advice"} for check in report["checks"])
    assert not is_leak((done.stdout + done.stderr).encode(), {signature(patient.token)})
    assert json.loads(patient.key_file.read_text())["keys"][0]["k"] not in done.stdout


@pytest.mark.mount
def test_a_fuse_device_that_users_may_not_open(tmp_path: Path) -> None:
    device = tmp_path / "fuse"
    device.touch(0o600)
    bind = f'mount --bind {device} /dev/fuse && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-euc", bind, "sh", *as_user(NOBODY)]
    done = doctor(prefix=prefix)
    assert done.returncode == 1, done.stderr
    assert "wrong  /dev/fuse: /dev/fuse: Permission denied" in done.stdout
    assert "do: as root: chmod 666 /dev/fuse" in done.stdout


@pytest.mark.mount
def test_a_mount_that_is_refused_names_the_doctor_in_one_line(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    device = tmp_path / "fuse"
    device.touch(0o600)
    patient = Patient(azurite, container, tmp_path)
    (tmp_path / "mnt").mkdir()
    bind = f'mount --bind {device} /dev/fuse && exec "$@"'
    command = [sys.executable, "-m", "blobfs", "mount", patient.source, str(tmp_path / "mnt")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", bind, "sh", *command, "-o", patient.options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 32
    assert "a bug in blobfs" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "blobfs: the kernel or fusermount3 refused the mount, see the line above: "
        "blobfs doctor looks for the reason"
    )


@pytest.mark.mount
def test_no_path_and_no_home_are_no_trouble() -> None:
    done = doctor(env={})
    assert (done.returncode, done.stderr) == (0, "")
    assert shutil.which("fusermount3", path=os.defpath) or "warning  fusermount3" in done.stdout


@pytest.mark.mount
def test_a_terminal_shows_what_is_being_checked(patient: Patient) -> None:
    command = [sys.executable, "-m", "blobfs", "doctor", patient.source, "-o", patient.options]
    screen = Screen(*command)
    assert screen.end() == 0
    assert "checking service …" in screen.shown
    assert re.search(r"\x1b\[32mok     \x1b\[0m  service: answers", screen.shown)
    screen = Screen(*command, NO_COLOR="1")
    assert screen.end() == 0
    assert "\x1b[32m" not in screen.shown
    assert "checking service …" in screen.shown
