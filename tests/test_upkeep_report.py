"""What a pass says on its way: a bar on a terminal, lines elsewhere."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from blobfs.envelope import write_key_set
from blobfs.upkeep import Report, report
from tests.azurite import Azurite
from tests.mounts import ROOT, mounted
from tests.sdk import AesKek
from tests.upkeep import LIMIT_S, Upkeep, upload_many

KEK = AesKek("local:report", bytes(32))


def test_a_terminal_gets_one_line_that_is_redrawn(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    upload_many(azurite, container, KEK, 3)
    upkeep = Upkeep(azurite, container, tmp_path, KEK)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    os.set_blocking(ours, False)
    ran = subprocess.run(
        upkeep.argv("rekey"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        timeout=LIMIT_S,
    )
    drawn = os.read(ours, 65536).decode()
    os.close(theirs)
    os.close(ours)
    assert "\rrekey: " in drawn
    assert "blobs" in drawn
    assert ran.stdout.startswith("3 blobs looked at, 0 re-keyed")


def test_elsewhere_it_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(report, "PLAIN_INTERVAL", 0.0)
    progress = Report("rekey", out, err)
    progress.say("left: x")
    for _ in range(2):
        progress.step()
    progress.close()
    assert out.getvalue() == "left: x\n"
    assert err.getvalue() == "rekey: 1 blobs so far\nrekey: 2 blobs so far\n"


def test_nothing_is_said_of_a_pass_that_is_over_at_once() -> None:
    out, err = io.StringIO(), io.StringIO()
    progress = Report("rekey", out, err)
    progress.step()
    progress.close()
    assert (out.getvalue(), err.getvalue()) == ("", "")


# --- the README ------------------------------------------------------------------------------


@pytest.mark.mount
def test_the_way_to_rotate_keys_that_the_readme_shows_works(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    url = "https://ACCOUNT.blob.core.windows.net/CONTAINER"
    assert script.count(url) == 2
    old_id = write_key_set(tmp_path / "blobfs-keys.json")
    with mounted(azurite, container, tmp_path, key_file=tmp_path / "blobfs-keys.json") as mount:
        (mount.path / "file").write_bytes(b"x")
    (tmp_path / "container.sas").touch(0o600)
    (tmp_path / "container.sas").write_text(azurite.sas(container))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "blobfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m blobfs "$@"\n')
    (programs / "blobfs").chmod(0o700)
    ran = subprocess.run(
        ["bash", "-euc", script.replace(url, azurite.url(container))],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    keys = json.loads((tmp_path / "blobfs-keys.json").read_text())["keys"]
    assert [key["kid"] for key in keys][1:] == [old_id]
    assert f"key {keys[0]['kid']}: 1\n" in ran.stdout
