import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.conformance.world import umask
from tests.mounts import mounted

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("mount")


@pytest.fixture(scope="session")
def crossing() -> Iterator[Path]:
    """A directory of the machine's own that every user can pass through."""
    path = Path(tempfile.mkdtemp(prefix="blobfs-conformance-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session", params=["local", "mount"])
def root(request: pytest.FixtureRequest, azurite: Azurite, crossing: Path) -> Iterator[Path]:
    if request.param == "local":
        path = crossing / "local"
        path.mkdir(exist_ok=True)  # set up anew for each module that xdist runs
        yield path
        return
    with mounted(azurite, azurite.new_container(), crossing, "allow_other") as mount:
        mount.state_dir.chmod(0o711)
        yield mount.path


@pytest.fixture
def on_mount(root: Path) -> bool:
    return os.path.ismount(root)


@pytest.fixture
def here(root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for this test alone, in which every user may do everything; no umask."""
    module = root / request.path.stem
    with umask(0):
        module.mkdir(exist_ok=True)
        name = re.sub(r"\W+", "-", request.function.__name__.removeprefix("test_"))
        path = module / f"{name[:60]}-{next(_numbers)}"
        path.mkdir(0o777)
        yield path
