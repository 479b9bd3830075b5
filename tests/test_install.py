"""`blobfs install` and `uninstall`: what they put where, below a root of the test's own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfs import cli
from blobfs.options import option_rows
from blobfs.system import updatedb, wrappers
from blobfs.system.commands import command_of
from blobfs.system.units import Mount, automount_unit, mount_unit, service_template
from tests.mounts import ROOT

PROGRAMS = ["mount.blobfs", "mount.fuse.blobfs", "umount.blobfs", "umount.fuse.blobfs"]
SHARE = "usr/local/share"
BASH = f"{SHARE}/bash-completion/completions/blobfs"
ZSH = f"{SHARE}/zsh/site-functions/_blobfs"
FISH = f"{SHARE}/fish/vendor_completions.d/blobfs.fish"

OPTIONS = [name for shown, _, _ in option_rows() for name in shown.split(", ")]
VERBS = [command for command in command_of(cli.command_parser()).walk() if command.words]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("installed")
    assert cli.main(["install", "--root", str(path)]) == 0
    return path


def files_in(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mode & 0o7777, path.read_text())
        for path in root.rglob("*")
        if path.is_file()
    }


def run(*arguments: str, root: Path) -> int:
    return cli.main([*arguments, "--root", str(root)])


# --- installing ------------------------------------------------------------------------------


@pytest.fixture
def no_permissions() -> Iterator[None]:
    before = os.umask(0o777)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_permissions")
def test_everything_is_put_where_it_is_looked_for_whatever_the_umask(root: Path) -> None:
    assert run("install", root=root) == 0
    modes = {name: mode for name, (mode, _) in files_in(root).items()}
    assert modes == {
        **{f"sbin/{name}": 0o755 for name in PROGRAMS},
        "usr/local/bin/blobfs": 0o755,
        f"{SHARE}/man/man1/blobfs.1": 0o644,
        f"{SHARE}/man/man8/mount.blobfs.8": 0o644,
        f"{SHARE}/man/man8/umount.blobfs.8": 0o644,
        **dict.fromkeys([BASH, ZSH, FISH], 0o644),
        "usr/local/lib/systemd/system/blobfs@.service": 0o644,
    }
    assert {path.stat().st_mode & 0o777 for path in root.rglob("*") if path.is_dir()} == {0o755}


def test_a_second_install_changes_nothing_and_says_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("install", root=root)
    wrote = capsys.readouterr().out.splitlines()
    assert [line for line in wrote if not line.startswith("wrote ")] == []
    before = {path: path.stat().st_ino for path in root.rglob("*")}
    assert run("install", root=root) == 0
    assert {path: path.stat().st_ino for path in root.rglob("*")} == before
    again = capsys.readouterr().out.splitlines()
    assert again == [line.replace("wrote", "unchanged") for line in wrote]


def test_an_older_version_is_updated(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("install", root=root)
    helper = root / "sbin/mount.blobfs"
    new = helper.read_text()
    helper.write_text(new.replace("sys.exit", "sys.exit  "))
    capsys.readouterr()
    run("install", root=root)
    assert f"updated {helper}" in capsys.readouterr().out
    assert helper.read_text() == new


def test_uninstall_removes_every_file(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/updatedb.conf").write_text('PRUNEFS="NFS nfs"\n')
    before = files_in(root)
    run("install", root=root)
    assert run("uninstall", root=root) == 0
    assert files_in(root) == before
    assert run("uninstall", root=root) == 0


def test_files_of_others_stay(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = root / "usr/local/bin/blobfs"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("another blobfs\n")
    for verb in ("install", "uninstall"):
        assert run(verb, root=root) == 0
        assert f"kept {theirs}: it is not from blobfs install\n" in capsys.readouterr().out
    assert theirs.read_text() == "another blobfs\n"


def test_a_link_that_leads_out_of_the_root_is_not_followed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (root / "sbin").symlink_to(tmp_path / "outside")
    assert run("install", root=root) == 1
    assert "leads out of" in capsys.readouterr().err
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_inside_of_the_root_is_followed(root: Path) -> None:
    (root / "usr/sbin").mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    assert run("install", root=root) == 0
    assert (root / "usr/sbin/mount.blobfs").exists()


def test_a_root_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("install", root=tmp_path / "missing") == 1
    assert capsys.readouterr().err == f"blobfs: --root {tmp_path}/missing is not a directory\n"


# --- the programs ----------------------------------------------------------------------------


@pytest.mark.parametrize("program", [f"sbin/{name}" for name in PROGRAMS])
def test_a_helper_needs_nothing_of_the_environment(installed: Path, program: str) -> None:
    done = subprocess.run([installed / program, "-h"], env={}, cwd="/", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: " + program[5:].replace("fuse.", "").encode())


def test_a_helper_takes_no_code_from_where_it_is_started(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "blobfs.py").write_text("raise SystemExit('taken over')")
    done = subprocess.run(
        [installed / "sbin/mount.blobfs", "-h"],
        env={"PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "blobfs.py")},
        cwd=tmp_path,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interpreter_whose_path_no_first_line_can_hold(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").symlink_to(sys.prefix)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a b/bin/python"))
    run("install", root=root)
    done = subprocess.run([root / "usr/local/bin/blobfs", "--version"], env={}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interpreter_that_is_gone_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/it's gone/python")
    run("install", root=root)
    helper = root / "sbin/mount.blobfs"
    done = subprocess.run([helper], env={}, capture_output=True, text=True)
    said = f"blobfs: {helper} cannot run /it's gone/python: it is gone, or closed to this user\n"
    assert (done.returncode, done.stdout, done.stderr) == (32, "", said)


def test_what_was_installed_for_one_user_comes_before_the_systems_packages(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "site-packages"
    home.mkdir()
    (home / "blobfs").symlink_to(ROOT / "blobfs")
    (home / "trio.py").write_text("raise SystemExit('found first')")
    monkeypatch.setattr(wrappers, "__file__", str(home / "blobfs/system/wrappers.py"))
    run("install", root=root)
    done = subprocess.run([root / "usr/local/bin/blobfs", "--version"], capture_output=True)
    assert done.stderr == b"found first\n"


# --- as a package's files --------------------------------------------------------------------


def test_a_packages_files_are_in_usr_and_neither_install_nor_uninstall_touches_them(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("install", "--package", root=root) == 0
    before = files_in(root)
    assert {"usr/bin/blobfs", "usr/sbin/mount.blobfs", "usr/share/man/man1/blobfs.1"} < set(before)
    assert not [name for name in before if "local" in name]
    assert "/usr/bin/blobfs" in before["lib/systemd/system/blobfs@.service"][1]
    (root / "sbin").symlink_to("usr/sbin")
    capsys.readouterr()
    assert run("install", root=root) == 0
    kept = f"kept {root}/usr/bin/blobfs: it is from the package, as all the other files are\n"
    assert capsys.readouterr().out == kept
    assert run("uninstall", root=root) == 0
    (root / "sbin").unlink()
    assert files_in(root) == before


# --- man pages -------------------------------------------------------------------------------


def man(page: Path) -> str:
    # a width of 1000: nothing is broken or hyphenated
    done = subprocess.run(
        ["man", "--warnings", "--local-file", page],
        env={"PATH": os.environ["PATH"], "MANWIDTH": "1000", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_man_page_of_the_helper_has_every_option(installed: Path) -> None:
    text = man(installed / f"{SHARE}/man/man8/mount.blobfs.8")
    for shown, default, meaning in option_rows():
        assert shown in text
        assert meaning in text
        assert default in text


def test_the_man_page_has_every_verb_and_argument(installed: Path) -> None:
    text = man(installed / f"{SHARE}/man/man1/blobfs.1")
    for command in VERBS:
        assert f"blobfs {' '.join(command.words)}\n" in text
        for flag in command.flags:
            assert flag in text


# --- completion ------------------------------------------------------------------------------

LINES = {
    "blobfs ": {verb.words[0] for verb in VERBS},
    "blobfs sas ": {"create", "show"},
    "blobfs sas create --per": {"--permissions"},
    "blobfs mount SOURCE --re": {"--read-only"},
    "blobfs mount SOURCE /mnt -o meta": {"metadata_ttl="},
    "blobfs mount SOURCE /mnt -o ro,sas_file=/x,key_f": {"key_file="},
}


def bash_completes(script: Path, line: str) -> set[str]:
    """What bash offers, each as the last option would then stand."""
    words = f"""
        source {script}
        COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
        compopt() {{ :; }}
        IFS=$' \\t' read -ra COMP_WORDS <<<"${{COMP_LINE//=/ = }}"
        [[ $COMP_LINE != *' ' ]] || COMP_WORDS+=('')
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _blobfs
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    out = subprocess.run(["bash", "-uc", words], capture_output=True, text=True, check=True)
    assert out.stderr == ""
    return {word.rpartition(",")[2] for word in out.stdout.split()}


@pytest.mark.parametrize("line", LINES)
def test_bash_completes(installed: Path, line: str) -> None:
    assert LINES[line] <= bash_completes(installed / BASH, line)


def test_bash_completes_the_file_of_an_option(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "token.sas").touch()
    line = f"blobfs mount SOURCE /mnt -o ro,sas_file={tmp_path}/tok"
    assert bash_completes(installed / BASH, line) == {f"{tmp_path}/token.sas"}


@pytest.mark.parametrize("line", LINES)
def test_fish_completes(installed: Path, line: str) -> None:
    out = subprocess.run(
        ["fish", "--no-config", "-c", f"source {installed / FISH}; complete -C {line!r}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(installed)},
    )
    offered = {row.partition("\t")[0].rpartition(",")[2] for row in out.stdout.splitlines()}
    assert (LINES[line] <= offered, out.stderr) == (True, ""), offered


@pytest.mark.parametrize("line", LINES)
def test_zsh_completes(installed: Path, line: str) -> None:
    # its completion system works in an editor only: what it would be given is printed instead
    words = [*line.split(), *([""] if line.endswith(" ") else [])]
    script = f"""
        words=({" ".join(f"'{word}'" for word in words)}); CURRENT=$#words
        _describe() {{ print -l -- ${{(P)2}} }}
        _values() {{ shift 3; print -l -- "$@" }}
        _files() {{ : }}
        complete() {{ source {installed / ZSH} }}
        complete
    """
    out = subprocess.run(["zsh", "-fc", script], capture_output=True, text=True, check=True)
    given = {re.split(r"[:\[]", row)[0] for row in out.stdout.splitlines()}
    assert ({word.rstrip("=") for word in LINES[line]} <= given, out.stderr) == (True, ""), given


# --- the others ------------------------------------------------------------------------------

UPDATEDB = {
    'PRUNEFS="NFS nfs4"\n': 'PRUNEFS="NFS nfs4 fuse.blobfs"\n',
    'A=1\nPRUNEFS = "fuse.blobfs2"\nB=2\n': 'A=1\nPRUNEFS = "fuse.blobfs2 fuse.blobfs"\nB=2\n',
    'PRUNEFS=""\n': 'PRUNEFS="fuse.blobfs"\n',
    'PRUNE_BIND_MOUNTS="yes"': 'PRUNE_BIND_MOUNTS="yes"\nPRUNEFS = "fuse.blobfs"\n',
    "": 'PRUNEFS = "fuse.blobfs"\n',
}


@pytest.mark.parametrize("before", UPDATEDB)
def test_updatedb_passes_over_mounts_until_uninstall(before: str) -> None:
    after = updatedb.with_hint(before)
    assert after == UPDATEDB[before]
    assert updatedb.with_hint(after) == after
    assert updatedb.without_hint(after).rstrip("\n") == before.rstrip("\n")
    assert updatedb.without_hint(before) == before


def test_the_units_in_the_repository_are_those_that_are_generated() -> None:
    mount = Mount(
        "https://ACCOUNT.blob.core.windows.net/CONTAINER",
        "/mnt/data",
        "allow_other,sas_file=/etc/blobfs/data.sas,key_file=/etc/blobfs/keys.json",
    )
    generated = [mount_unit(mount), automount_unit(mount), service_template()]
    assert {path.name: path.read_text() for path in (ROOT / "systemd").iterdir()} == {
        Path(file.path).name: file.content for file in generated
    }
