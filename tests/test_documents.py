"""The documents say what is true: tables agree with the code, and named tests and files exist."""

import argparse
import ast
import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blobfs import cli, errors, sas
from blobfs.attributes import INTENT_KEY, POSIX_KEYS
from blobfs.envelope import BOX_KEY, METADATA_KEY, SEAL_KEY, generate_key_set
from blobfs.fs.store import ATTRIBUTE_DELAY
from blobfs.names import HIDDEN_PREFIX
from blobfs.options import option_rows, option_table, parse_mount
from tests.azurite import Azurite
from tests.mounts import END_LIMIT_S, fstypes_at

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SEMANTICS = (ROOT / "blobfs/SEMANTICS.md").read_text()
SECURITY = (ROOT / "blobfs/SECURITY.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "blobfs").rglob("*.md"))]

SOURCES = [ast.parse(path.read_text()) for path in (ROOT / "blobfs").rglob("*.py")]

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Each table's header and rows, as cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.split("\n")
        ]
        yield lines[0], lines[2:-1]


def table(text: str, *header: str) -> list[list[str]]:
    (rows,) = (rows for head, rows in tables(text) if head == list(header))
    return rows


def test_functions(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


test_functions.__test__ = False  # type: ignore[attr-defined]  # a helper about tests


# --- all documents ---------------------------------------------------------------------------


@every_document
def test_what_is_linked_to_exists(path: Path) -> None:
    text = path.read_text()
    targets = [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r"`(\.\./[\w./]+)`", text)]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@every_document
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"`((?:blobfs|tests|scripts)/[\w./-]+)`", text)
    named += re.findall(r"(tests/[\w/]+\.py)::", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert test in test_functions(ROOT / file), f"{file} has no {test}"


@every_document
def test_rows_of_a_table_have_as_many_cells_as_its_header(path: Path) -> None:
    for header, rows in tables(path.read_text()):
        assert [row for row in rows if len(row) != len(header)] == []


# --- SEMANTICS -------------------------------------------------------------------------------


def test_every_row_of_semantics_names_the_test_that_proves_it() -> None:
    unproved = [
        row
        for header, rows in tables(SEMANTICS)
        for row in rows
        if header[-1] != "proved by"
        or not re.fullmatch(r"(`tests/[\w/]+\.py::test_\w+`\s*)+", row[-1])
    ]
    assert unproved == []


OPERATIONS = """
    lookup readdir stat open O_TRUNC O_APPEND O_EXCL read write mmap truncate close fsync release
    create mknod mkdir rmdir unlink rename symlink link chmod chown utimensat xattrs statfs locks
    fallocate copy_file_range SEEK_HOLE
"""


@pytest.mark.parametrize("operation", OPERATIONS.split())
def test_semantics_has_a_row_for_each_operation(operation: str) -> None:
    rows = table(SEMANTICS, "operation", "what it does", "errno when refused", "proved by")
    assert any(operation in re.findall(r"\w+", row[0]) for row in rows)


def test_semantics_names_every_metadata_key() -> None:
    rows = table(SEMANTICS, "key", "value", "written", "proved by")
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row[0])}
    assert keys == POSIX_KEYS | {METADATA_KEY, SEAL_KEY, BOX_KEY, INTENT_KEY}


def test_numbers_in_semantics_are_those_of_the_code() -> None:
    assert f"{ATTRIBUTE_DELAY:g} second" in SEMANTICS
    assert f"`{HIDDEN_PREFIX}" in SEMANTICS


# --- README ----------------------------------------------------------------------------------


def test_the_readme_has_the_option_table() -> None:
    assert option_table() in README


# All that an operation can fail with, but PosixError, which carries its errno.
BRANCHES = (errors.ServiceError, errors.ContentError)
CONCRETE = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, BRANCHES) and cls not in BRANCHES
]
ERRNO_ROWS = ("errno", "class", "meaning", "what to do")


@pytest.mark.parametrize("cls", CONCRETE, ids=lambda cls: cls.__name__)
def test_the_readme_explains_each_exception_with_its_errno(cls: type[errors.BlobfsError]) -> None:
    code = errno.errorcode[errors.errno_of(cls("message"))]
    assert [row[0] for row in table(README, *ERRNO_ROWS) if row[1] == f"`{cls.__name__}`"] == [code]


def test_the_readme_explains_each_errno_that_an_operation_is_refused_with() -> None:
    raised = {
        found.attr
        for source in SOURCES
        for call in ast.walk(source)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "PosixError"
        for found in ast.walk(call.args[0])
        if isinstance(found, ast.Attribute) and found.attr.startswith("E")
    }
    assert {"EROFS", "ENOTEMPTY"} <= raised
    rows = [row for row in table(README, *ERRNO_ROWS) if row[1] == "`PosixError`"]
    assert raised == {code for row in rows for code in row[0].split(", ")}


def test_the_lines_that_the_readme_explains_are_those_that_blobfs_says() -> None:
    said = [
        node.value
        for source in SOURCES
        for node in ast.walk(source)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    for line, _, _ in table(README, "line", "meaning", "what to do"):
        for piece in filter(None, map(str.strip, line.strip("`").split("…"))):
            assert any(piece in text for text in said), f"nothing says {piece!r}"


# Commands that mount nothing: their errors say what to do themselves.
ASIDE = {"tokens.py", "create.py", "recover.py", "upkeep.py", "system.py"}


def lines_said() -> Iterator[tuple[str, str]]:
    """Where, and the text of each error that a command ends with, with … for what varies."""
    ends = {cls.__name__ for cls in errors.UsageError.__subclasses__()} | {
        "NoStatus",
        "MountRefused",
    }
    for path in sorted((ROOT / "blobfs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                path.name not in ASIDE
                and isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ends
                and node.args
            ):
                for text in texts_of(node.args[0]):
                    yield f"{path.name}:{node.lineno}", text


def texts_of(node: ast.expr) -> list[str]:
    """What a string expression may become: several for one that chooses."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(p.value if isinstance(p, ast.Constant) else "…" for p in parts)]
        case ast.BinOp(left=left, right=right):
            return [a + b for a in texts_of(left) for b in texts_of(right)]
        case ast.IfExp(body=body, orelse=other):
            return texts_of(body) + texts_of(other)
    return ["…"]


def test_the_readme_explains_each_line_that_a_mount_ends_with() -> None:
    rows = [row[0].strip("`") for row in table(README, "line", "meaning", "what to do")]
    patterns = [[piece for piece in map(str.strip, row.split("…")) if piece] for row in rows]
    unexplained = [
        f"{where}: {text}"
        for where, text in lines_said()
        if re.search("[a-z]{2} [a-z]{2}", text)  # more than what the system or another error says
        and not any(all(piece in text for piece in pattern) for pattern in patterns)
    ]
    assert unexplained == []


def test_the_readme_names_each_class_of_usage_errors() -> None:
    for cls in errors.UsageError.__subclasses__():
        assert f"`{cls.__name__}`" in README


def test_the_tour_of_the_code_passes_every_module() -> None:
    (tour,) = re.findall(r"## A tour of the code\n(.*?)(?=\n[A-Z]\w+ `)", README, re.DOTALL)
    modules = {
        path.name.removesuffix(".py")
        for path in (ROOT / "blobfs").iterdir()
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").exists())
    }
    named = set(re.findall(r"\b[a-z]+\b", tour))
    assert modules - named == {"__init__", "__main__", "names", "address"}, "the small helpers"


def test_the_fstab_line_of_the_readme_is_accepted(tmp_path: Path) -> None:
    (line,) = re.findall(r"```fstab\n(.*)\n```", README)
    source, mountpoint, kind, options, *numbers = line.split()
    assert (kind, numbers) == ("blobfs", ["0", "0"])
    (tmp_path / "data.sas").touch(0o600)
    (tmp_path / "data.sas").write_text(_token("account", "container"))
    parse_mount(
        source.replace("ACCOUNT", "account").replace("CONTAINER", "container"),
        mountpoint,
        [options.replace("/etc/blobfs", str(tmp_path))],
        now=datetime.now(UTC),
    )


def _token(account: str, container: str) -> str:
    expiry = datetime.now(UTC) + timedelta(hours=1)
    return sas.create(account, "a2V5", container, permissions="rwl", expiry=expiry)


def command_lines() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            yield path.read_bytes().decode(errors="replace").split("\0")


@pytest.mark.mount
def test_the_five_lines_of_the_readme_work(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(script.splitlines()) == 5
    url = "https://ACCOUNT.blob.core.windows.net/CONTAINER"
    assert url in script
    (tmp_path / "data").mkdir()
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/file").write_text("x")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "blobfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m blobfs "$@"\n')
    (programs / "blobfs").chmod(0o700)
    try:
        ran = subprocess.run(
            ["bash", "-euc", script.replace(url, azurite.url(container))],
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            input=azurite.sas(container),
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for _ in fstypes_at(tmp_path / "data"):
            subprocess.run(["fusermount3", "-u", "-z", tmp_path / "data"], check=True)
        deadline = time.monotonic() + END_LIMIT_S  # the daemon stores what it still holds
        while any(str(tmp_path) in " ".join(argv) for argv in command_lines()):
            assert time.monotonic() < deadline, "the daemon still runs"
            time.sleep(0.05)
    assert ran.returncode == 0, ran.stderr
    assert "blobfs: " not in ran.stderr
    stored = {
        blob.name: blob.metadata for blob in azurite.sdk(container).list_blobs(include=["metadata"])
    }
    assert list(stored) == ["documents", "documents/file"]
    local = (tmp_path / "documents/file").stat()
    assert stored["documents/file"]["modtime"] == str(local.st_mtime_ns)


# --- help ------------------------------------------------------------------------------------


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parsers of the command, of each of its verbs, and of the mount helper."""
    waiting = [cli._parser()[0], cli.mounting.helper_parser()]
    while waiting:
        parser = waiting.pop()
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()


@pytest.mark.parametrize("parser", [*parsers()], ids=lambda parser: parser.prog.replace(" ", "-"))
def test_help_explains_the_command_and_each_of_its_arguments(
    parser: argparse.ArgumentParser,
) -> None:
    assert parser.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert len(action._choices_actions) == len(action.choices)
            assert all(choice.help for choice in action._choices_actions)
        else:
            assert action.help, f"{action.dest} is not explained"
    assert parser.format_help()


def test_help_of_the_command_names_every_verb() -> None:
    parser, verbs = cli._parser()
    help_text = parser.format_help()
    for verb in verbs:
        assert re.search(rf"^    {verb} ", help_text, re.MULTILINE)


@pytest.mark.parametrize("verb", ["mount", "mount.blobfs"])
def test_help_of_a_mount_explains_every_option(verb: str) -> None:
    (parser,) = (parser for parser in parsers() if parser.prog.split()[-1] == verb)
    text = parser.format_help()
    for names, default, meaning in option_rows():
        for name in re.findall(r"\w+", names):
            assert re.search(rf"\b{name.removeprefix('no')}\b", text)
        assert meaning in text
        assert default in text


# --- SECURITY --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "who",
    [
        "container, reading",
        "container, writing",
        "token",
        "disk",
        "network",
        "local user",
        "account",
    ],
)
def test_security_says_of_each_attacker_what_they_see_and_can_do(who: str) -> None:
    rows = table(SECURITY, "who has", "sees", "can do", "cannot do")
    assert any(who in row[0] for row in rows)


def test_what_security_says_of_file_modes_is_what_is_written(tmp_path: Path) -> None:
    from blobfs.envelope import write_key_set

    write_key_set(tmp_path / "keys.json")
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    assert generate_key_set() != generate_key_set()
