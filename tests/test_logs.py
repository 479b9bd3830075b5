"""What reaches the log, and at which level."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfs import logs


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root, pyfuse3 = logging.getLogger(), logging.getLogger("pyfuse3")
    before = root.handlers[:], root.level
    yield tmp_path / "log"
    for handler in root.handlers:
        handler.close()
    root.handlers[:], level = before
    root.setLevel(level)
    pyfuse3.removeFilter(logs.unanswered_is_debug)


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
