"""The shape of the code base: who may import whom, and what may be committed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfs import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "blobfs"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module imports only from lower layers; a package counts as one module.
LAYERS: tuple[set[str], ...] = (
    {"errors", "cache", "metrics", "address", "journal", "mountinfo", "notify", "room", "selfread"},
    {"sas", "control"},
    {"names", "spool", "envelope", "blobs"},
    {"staged", "flight", "ending", "remounting", "service"},
    {"source", "attributes", "providers", "draft", "logs", "hardening", "probing", "values"},
    {"keyring", "content"},
    {"access", "xattrs", "reader", "writer"},
    {"options", "inodes", "recovery", "renewal", "system"},
    {"fs", "session", "keeper"},
    {"fuse", "recovering", "upkeep"},
    {"status", "doctor"},
    {"prometheus"},
    {"mount"},
    {"cli"},
    {"__main__"},
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# A library that shapes the code around it stays behind the modules that own it.
OWNERS = {
    "pyfuse3": {"fuse", "mount"},
    "httpx": {"blobs"},
    "cryptography": {"envelope", "spool"},
    "jwcrypto": {"envelope"},
    "azure": {"providers"},
    "prometheus_client": {"prometheus"},
    "h11": {"prometheus"},
    "tqdm": {"upkeep"},
}
PURE = {
    *("envelope", "sas", "attributes", "xattrs", "inodes", "names", "errors", "source", "options"),
    *("metrics", "address"),
}

TOP_LEVEL = {"pyproject.toml", "README.md", "blobfs", "tests", "scripts", "systemd"}

LONGEST_MODULE = 500  # lines: what can be read in one sitting


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that `path` imports, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_source = pytest.mark.parametrize("path", SOURCES, ids=source_id)


@every_source
def test_imports_point_downward(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        assert not [name for name in imports_of(path) if name.startswith("blobfs")]
        return
    assert module in RANK, f"{module} has no place in LAYERS"
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        imported = rest.partition(".")[0]
        if top == "blobfs" and imported not in (module, "__version__"):
            assert imported in RANK, f"{imported} has no place in LAYERS"
            assert RANK[imported] < RANK[module], f"{module} imports {imported}"


@every_source
def test_a_library_is_imported_only_by_its_owners(path: Path) -> None:
    for name in imports_of(path):
        library = name.partition(".")[0]
        assert module_of(path) in OWNERS.get(library, {module_of(path)}), f"imports {library}"


@every_source
def test_pure_modules_know_nothing_of_the_event_loop(path: Path) -> None:
    if module_of(path) in PURE:
        assert not [name for name in imports_of(path) if name.partition(".")[0] == "trio"]


@every_source
def test_only_the_fuse_module_makes_fuse_errors(path: Path) -> None:
    if module_of(path) != "fuse":
        assert "FUSEError" not in path.read_text()


@every_source
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_MODULE


def test_every_exception_has_an_errno() -> None:
    def descendants(cls: type[errors.BlobfsError]) -> Iterator[type[errors.BlobfsError]]:
        for child in cls.__subclasses__():
            yield child
            yield from descendants(child)

    branches = {errors.ServiceError, errors.ContentError}  # never raised themselves
    without = {
        cls
        for cls in descendants(errors.BlobfsError)
        if not errors.ERRNO.keys() & set(cls.__mro__) and not issubclass(cls, errors.PosixError)
    }
    assert without - branches == set()


def committed_files() -> list[Path]:
    # The checkout may belong to another user than the one who runs the tests.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    listing = subprocess.run([*git, "ls-files", "-z"], check=True, capture_output=True, text=True)
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert files
    return [path for path in files if path.exists()]


def test_the_top_level_holds_just_what_it_may() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in committed_files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_committed_file_names_this_machine_or_a_registry() -> None:
    machine = "|".join(rf"(?<!\w){re.escape(path)}(?!\w)" for path in (str(ROOT), sys.prefix))
    # where packages come from is the user's configuration, not the project's
    registry = r'registry\.npmjs|pythonhosted\.org|pypi\.org/simple|index[-]url|"resolved"[:]'
    forbidden = re.compile(f"{machine}|{registry}".encode())
    hits = [str(path) for path in committed_files() if forbidden.search(path.read_bytes())]
    assert hits == []
