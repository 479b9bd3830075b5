"""The checks at the end of every mount test can fail, and leave nothing behind when they do."""

import base64
import os
import re
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.azurite import Azurite, Request
from tests.leaks import is_leak
from tests.mounts import PLAINTEXT_MARKER, Mount, MountFailed, fstypes_at, mounted


@pytest.fixture
def ended_mount(azurite: Azurite, container: str, tmp_path: Path) -> Mount:
    mount = Mount(azurite.url(container), tmp_path, sas=azurite.sas(container))
    mount.stderr_path.touch()
    return mount


def test_a_quiet_mount_has_no_problems(ended_mount: Mount, azurite: Azurite) -> None:
    ended_mount.log_path.write_text("2026-01-01 INFO blobfs: mounted\n")
    assert ended_mount.problems(azurite) == []


@pytest.mark.parametrize(
    "line", ["WARNING blobfs: slow", "ERROR blobfs: corrupt", "leaked handles: 1", "Traceback (…)"]
)
def test_an_unexpected_log_line_is_a_problem(
    line: str, ended_mount: Mount, azurite: Azurite
) -> None:
    ended_mount.log_path.write_text(f"INFO blobfs: mounted\n{line}\n")
    assert [line in problem for problem in ended_mount.problems(azurite)] == [True]


def test_an_expected_error_is_none_and_its_absence_is_one(
    ended_mount: Mount, azurite: Azurite
) -> None:
    ended_mount.expect_log("corrupt: /a")
    ended_mount.log_path.write_text("ERROR blobfs: corrupt: /a\n")
    assert ended_mount.problems(azurite) == []
    ended_mount.log_path.write_text("INFO blobfs: mounted\n")
    assert "nothing matches" in ended_mount.problems(azurite)[0]


def test_plaintext_in_the_service_is_a_problem(
    ended_mount: Mount, azurite: Azurite, container: str
) -> None:
    azurite.sdk(container).upload_blob("before", b"." * 100_000)
    assert ended_mount.problems(azurite) == []
    blob = azurite.sdk(container).upload_blob("plain", b"." * 1000 + PLAINTEXT_MARKER)
    try:
        assert any("plaintext" in problem for problem in ended_mount.problems(azurite))
    finally:
        blob.delete_blob()
        _overwrite_marker(azurite.data_dir)


def _overwrite_marker(data_dir: Path) -> None:
    """Azurite keeps deleted bytes for minutes; later scans must not find ours."""
    for path in data_dir.rglob("*"):
        if path.is_file() and PLAINTEXT_MARKER in (content := path.read_bytes()):
            path.write_bytes(content.replace(PLAINTEXT_MARKER, b"x" * len(PLAINTEXT_MARKER)))


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_signature_is_found_in_any_spelling(key: bytes, other: bytes) -> None:
    sig = base64.b64encode(key).decode()
    quoted = urllib.parse.quote(sig, safe="")
    lower = re.sub("%..", lambda escape: escape[0].lower(), quoted)
    throughout = "".join(f"%{character:02X}" for character in sig.encode())
    for spelling in (sig, quoted, lower, throughout):
        content = f"GET /?sig={spelling}&se=…".encode()
        assert is_leak(content, {sig})
        assert not is_leak(content, {base64.b64encode(other).decode()} - {sig})


def test_a_mount_that_fails_says_why_and_leaves_nothing(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(MountFailed) as failure,
        mounted(azurite, container, tmp_path, "no_such_option"),
    ):
        pytest.fail("mounted")
    assert failure.value.status not in (0, None)
    assert failure.value.stderr
    assert not any(fstypes_at(path) for path in tmp_path.rglob("mnt"))


def test_the_request_log_shows_what_was_asked_without_the_token(
    azurite: Azurite, container: str
) -> None:
    azurite.reset_requests()
    blob = azurite.sdk(container).upload_blob("a b/ü", b"x")
    blob.get_blob_tags()
    assert azurite.requests() == [
        Request("PUT", f"{container}/a b/ü", {}, 201),
        Request("GET", f"{container}/a b/ü", {"comp": "tags"}, 200),
    ]
    azurite.reset_requests()
    assert azurite.requests() == []


def test_azurite_is_the_one_that_was_started(azurite: Azurite, tmp_path: Path) -> None:
    other = Azurite(tmp_path)
    try:
        assert other.port != azurite.port
        assert other.new_container() not in {
            entry["name"] for entry in azurite._service.list_containers()
        }
    finally:
        other.stop()
    assert re.match(r"http://127\.0\.0\.1:\d+/blobfs\w+$", other.endpoint)
    with pytest.raises(ProcessLookupError):
        os.kill(other._process.pid, 0)
