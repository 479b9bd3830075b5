"""What reaches the log, at which level, and in which form."""

import logging
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfs import journal, logs
from tests.azurite import Azurite
from tests.leaks import is_leak
from tests.mounts import ROOT

SIGNATURE = "A" * 43 + "%3D"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    logging.getLogger("pyfuse3").removeFilter(logs.unanswered_is_debug)


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("debug", 2)])
def test_an_answer_that_an_unmount_did_not_wait_for_is_no_error(
    log_file: Path, level: str, lines: int
) -> None:
    logs.configure(level, log_file, foreground=True)
    log = logging.getLogger("pyfuse3")
    log.error("%s(): fuse_reply_* failed with %s", "fuse_release", "No such file or directory")
    log.error("%s(): fuse_reply_* failed with %s", "fuse_release", "Invalid argument")
    written = log_file.read_text().splitlines()
    assert len(written) == lines
    assert "Invalid argument" in written[-1]
    assert [line for line in written if "ERROR" in line] == written[-1:]


def test_the_level_is_changed_while_it_is_used(log_file: Path) -> None:
    logs.configure("info", log_file, foreground=True)
    log = logging.getLogger("blobfs.test")
    for level in ("debug", "error", "info"):
        logs.set_level(level)
        assert logs.level() == level
        log.debug("at debug with %s", level)
        log.info("at info with %s", level)
    assert re.findall(r"at (\w+) with (\w+)", log_file.read_text()) == [
        ("debug", "debug"),
        ("info", "debug"),
        ("info", "info"),
    ]


def test_no_level_lets_a_library_log_what_may_hold_a_token(log_file: Path) -> None:
    logs.configure("debug", log_file, foreground=True)
    for library in ("httpx", "httpcore", "azure", "msal"):
        logging.getLogger(f"{library}.x").info("https://a.example/?sig=%s", SIGNATURE)
    assert log_file.read_text() == ""


# --- the journal -----------------------------------------------------------------------------


class Journald:
    """The receiving end of the native protocol, as its specification has it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def entry(self) -> dict[str, str]:
        data = self._socket.recv(2**20)
        fields = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, has_value, value = line.partition(b"=")
            if not has_value:
                (length,) = struct.unpack("<Q", data[:8])
                value, data = data[8 : 8 + length], data[8 + length + 1 :]
            assert re.fullmatch(rb"[A-Z][A-Z0-9_]*", name)
            fields[name.decode()] = value.decode()
        return fields

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journald(tmp_path: Path, log_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    """The journal, which standard error leads to."""
    receiver = Journald(tmp_path / "journal")
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(journal, "JOURNAL", tmp_path / "journal")
    yield receiver
    receiver.close()


def test_under_systemd_a_record_is_an_entry_with_fields(journald: Journald) -> None:
    fields = {"BLOBFS_MOUNTPOINT": "/mnt/ä b", "BLOBFS_SOURCE": "https://a.example/c"}
    logs.configure("info", None, foreground=True, fields=fields)
    logging.getLogger("blobfs.fuse").error("read %r: %s", "file", "no answer")
    entry = journald.entry()
    assert entry.items() >= fields.items()
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("read 'file': no answer", "3")
    assert (entry["LOGGER"], entry["SYSLOG_IDENTIFIER"]) == ("blobfs.fuse", "blobfs")
    assert entry["CODE_FILE"] == __file__


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", "7"), ("INFO", "6"), ("WARNING", "4"), ("CRITICAL", "2")]
)
def test_severities_are_those_of_syslog(journald: Journald, level: str, priority: str) -> None:
    logs.configure("debug", None, foreground=True)
    logging.getLogger("blobfs").log(getattr(logging, level), "x")
    assert journald.entry()["PRIORITY"] == priority


def test_entries_are_redacted_tracebacks_and_fields_too(journald: Journald) -> None:
    source = f"https://a.example/c?sig={SIGNATURE}"
    logs.configure("info", None, foreground=True, fields={"BLOBFS_SOURCE": source})
    try:
        raise ValueError(source)
    except ValueError:
        logging.getLogger("blobfs").exception("two lines\nand %s", source)
    entry = journald.entry()
    assert "Traceback" in entry["MESSAGE"]
    assert entry["MESSAGE"].startswith("two lines\nand https://a.example/c?sig=REDACTED")
    assert SIGNATURE not in repr(entry)


def test_an_entry_too_long_for_a_datagram_is_cut(journald: Journald) -> None:
    logs.configure("info", None, foreground=True)
    logging.getLogger("blobfs").info("x" * 2**20)
    assert len(journald.entry()["MESSAGE"]) == 64 * 1024


def test_what_the_journal_does_not_take_goes_to_standard_error(
    journald: Journald, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("info", None, foreground=True)
    (tmp_path / "journal").unlink()
    logging.getLogger("blobfs").info("https://a.example/c?sig=%s", SIGNATURE)
    assert capsys.readouterr().err == "https://a.example/c?sig=REDACTED\n"


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_a_journal_that_standard_error_does_not_lead_to_is_not_used(
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
    log_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.configure("info", None, foreground=True)
    logging.getLogger("blobfs").info("a readable line")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d [\d:,]+ INFO blobfs: a readable line\n", capsys.readouterr().err
    )


JOURNALLED_MOUNT = """
import os, sys
from pathlib import Path
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
from blobfs import cli, journal
journal.JOURNAL = Path(sys.argv.pop(1))
sys.exit(cli.main())
"""


@pytest.mark.mount
def test_a_mount_under_systemd_logs_its_mount_point_with_each_entry(
    azurite: Azurite, container: str, tmp_path: Path, journald: Journald
) -> None:
    mountpoint, key_file = tmp_path / "mnt", tmp_path / "keys.json"
    mountpoint.mkdir()
    blobfs = [sys.executable, "-m", "blobfs"]
    subprocess.run([*blobfs, "keys", "generate", str(key_file)], check=True, cwd=ROOT)
    (tmp_path / "token.sas").touch(0o600)
    (tmp_path / "token.sas").write_text(azurite.sas(container))
    options = f"sas_file={tmp_path}/token.sas,key_file={key_file},spool_dir={tmp_path}/spool"
    command = [sys.executable, "-c", JOURNALLED_MOUNT, str(tmp_path / "journal"), "mount"]
    subprocess.run(
        [*command, azurite.url(container), str(mountpoint), "-o", options],
        check=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    entries = [journald.entry()]
    try:
        while not entries[-1]["MESSAGE"].startswith("mounted "):
            entries.append(journald.entry())
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
    while not entries[-1]["MESSAGE"].startswith("unmounted "):
        entries.append(journald.entry())
    assert {entry["BLOBFS_MOUNTPOINT"] for entry in entries} == {str(mountpoint)}
    assert {entry["BLOBFS_SOURCE"] for entry in entries} == {azurite.url(container)}
    assert not is_leak(repr(entries).encode(), azurite.signatures)
