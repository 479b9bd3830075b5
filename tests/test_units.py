"""`blobfs units`: names as systemd-escape makes them, and values that come out as they went in."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfs import cli
from blobfs.system.units import Mount, fstab_line, unit_name

SOURCE = "https://account.blob.core.windows.net/container"
OPTIONS = "sas_file=/etc/blobfs/data.sas,key_file=/etc/blobfs/keys"

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
paths = st.lists(names.filter(lambda name: name != ".."), min_size=1, max_size=4)


def escaped(paths: list[str]) -> list[str]:
    done = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", "--", *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


PATHS = ["/", "//", "/mnt/data", "/mnt/data/", "/a//b", "/mnt/a-b", "/.hidden/x", "/50%", "/ä ö",
         "/mnt/./x", "/a\\b", "/x.y_z:0", "/a,b", "/mnt/.x", "/\"q\"'"]  # fmt: skip


def test_names_are_those_of_systemd_escape() -> None:
    assert [unit_name(path, ".mount") for path in PATHS] == escaped(PATHS)


@settings(max_examples=20)
@given(st.lists(paths, min_size=1, max_size=20))
def test_names_of_any_path_are_those_of_systemd_escape(several: list[list[str]]) -> None:
    joined = ["/" + "/".join(names) for names in several]
    joined = [path for path in joined if len(path.encode()) < 60]
    assert [unit_name(path, ".mount") for path in joined] == (escaped(joined) if joined else [])


@settings(max_examples=20)
@given(names.filter(lambda name: not any(ord(char) < 32 for char in name)), names)
def test_a_line_of_fstab_is_read_as_it_was_meant(name: str, value: str) -> None:
    value = "".join(char for char in value if char.isprintable() and char not in '",\\') or "x"
    mountpoint = f"/mnt/{''.join(char for char in name if char.isprintable())}x"
    line = fstab_line(Mount(SOURCE, mountpoint, f"key_command=/bin/{value}"))
    source, target, fstype, options, *numbers = line.split(" ")
    assert (source, fstype, numbers) == (SOURCE, "blobfs", ["0", "0"])
    for field, meant in (
        (target, mountpoint),
        (options.split(",")[0], f"key_command=/bin/{value}"),
    ):
        read = "".join(
            chr(int(part[:3], 8)) + part[3:] if index else part
            for index, part in enumerate(field.split("\\"))
        )
        assert read == meant
        assert not {" ", "\t", "#"} & set(field)


def test_findmnt_reads_the_line_too(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_text(fstab_line(Mount(SOURCE, "/mnt/a b\\c#d", 'log_file="/x y"')) + "\n")
    done = subprocess.run(
        ["findmnt", "--fstab", "--tab-file", table, "-no", "TARGET"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "/mnt/a b\\c#d\n"


def units(*arguments: str) -> int:
    return cli.main(["units", *arguments])


def test_percent_signs_are_doubled_in_units_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert units(f"{SOURCE}/a%20b", "/mnt/50%", "-o", OPTIONS) == 0
    unit, _, line = capsys.readouterr().out.partition("# /etc/fstab")
    assert f"What={SOURCE}/a%%20b\nWhere=/mnt/50%%\n" in unit
    assert f"{SOURCE}/a%20b /mnt/50% blobfs" in line


def test_units_are_written_to_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert units(SOURCE, "/mnt/data", "-o", OPTIONS, "--write", str(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mnt-data.automount",
        "mnt-data.mount",
    ]
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {tmp_path}/mnt-data.mount"


TOKEN = f"sv=2021-12-02&sr=c&sp=rl&se=2099-01-01T00:00:00Z&sig={'x' * 43}="

MISTAKES = {
    "a token in the options": ([SOURCE, "/mnt", "-o", f"sas={TOKEN}"], "put the token into a file"),
    "a token in the source": ([f"{SOURCE}?{TOKEN}", "/mnt"], "put the token into a file"),
    "an unknown option": ([SOURCE, "/mnt", "-o", "sas_fil=/x"], "did you mean sas_file"),
    "a relative file": ([SOURCE, "/mnt", "-o", "sas_file=token"], "sas_file=token is no whole"),
    "a relative mount point": ([SOURCE, "mnt"], "mnt is no whole path"),
    "a mount point with ..": ([SOURCE, "/mnt/../x"], "has .. in it"),
    "a control character": ([SOURCE, "/mnt/a\nb"], "control character"),
    "a blank at the end": ([SOURCE, "/mnt/a "], "blanks or a backslash"),
    "no URL": (["container", "/mnt"], "is not a URL"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_and_nothing_written(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, pattern = MISTAKES[mistake]
    assert units(*arguments, "--write", str(tmp_path)) == 1
    said = capsys.readouterr()
    assert pattern in said.err
    assert len(said.err.splitlines()) == 1
    assert "=xx" not in said.err + said.out
    assert list(tmp_path.iterdir()) == []
