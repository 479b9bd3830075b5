import inspect
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from trio.testing import MockClock, trio_test

from blobfs.draft import PAGE
from tests import azurite as azurite_module
from tests.azurite import Azurite
from tests.bare_host import Service
from tests.mounts import Mount, mounted
from tests.owner import Place

# Every run tries the same examples, so a failure is the change's fault and can be run again.
# BLOBFS_HYPOTHESIS=long looks for new ones.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("BLOBFS_HYPOTHESIS", "default"))

# What whoever runs the tests is used to is not what they are about.
os.umask(0o022)
for name in ("NO_COLOR", "PYTHONWARNINGS", "LANG", "LC_ALL", "TZ"):
    os.environ.pop(name, None)

_numbers = itertools.count(1)


@pytest.hookimpl(trylast=True)  # after the one that marks the conformance tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "azurite" in getattr(item, "fixturenames", ()):
            item.add_marker("service")
    # The files that mount, which take longest, come first: at the end no worker waits for another.
    mounting = {item.path for item in items if item.get_closest_marker("mount")}
    items.sort(key=lambda item: item.path not in mounting)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop before the first test when a part is missing: a skipped test proves nothing."""
    lacking = []
    if any(item.get_closest_marker("service") for item in session.items):
        lacking.append(azurite_module.missing())
    if any(item.get_closest_marker("mount") for item in session.items):
        lacking.append("" if os.path.exists("/dev/fuse") else "/dev/fuse does not exist")
    for problem in filter(None, lacking):
        raise pytest.UsageError(f"{problem}: run scripts/test, which installs what is missing")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run coroutine tests under trio; a test that asks for `autojump_clock` gets that clock."""
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = trio_test(pyfuncitem.obj)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a test sets up, by a command in this process say, is not there for the next."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


@pytest.fixture
def autojump_clock() -> MockClock:
    """A clock that jumps to the next deadline whenever every task is waiting."""
    return MockClock(autojump_threshold=0)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    service = Azurite(tmp_path_factory.mktemp("azurite"))
    yield service
    service.stop()
    assert service.find_leaks(service.signatures) == []


@pytest.fixture
def container(azurite: Azurite) -> str:
    return azurite.new_container()


@pytest.fixture
def service(azurite: Azurite, container: str, tmp_path: Path) -> Service:
    """For hosts without a kernel: see `bare_host`."""
    return Service(azurite, container, tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and the largest Put Blob are of one page, so that small files have all edges."""
    for name in (
        "writer.BLOCK",
        "writer.SINGLE_PUT",
        "fs.files.SINGLE_PUT",
        "fs.commit.SINGLE_PUT",
    ):
        monkeypatch.setattr(f"blobfs.{name}", PAGE)


@pytest.fixture(scope="module", params=[None, 65534], ids=["root", "nobody"])
def shared_mount(
    azurite: Azurite, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Mount]:
    """One mount for all tests of a module, as root and then as a user without privileges."""
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("shared")
    with mounted(azurite, container, directory, user=request.param) as mount:
        yield mount


@pytest.fixture
def place(shared_mount: Mount, request: pytest.FixtureRequest) -> Place:
    """A directory in the shared mount for this test alone."""
    place = Place(shared_mount, f"{request.function.__name__}-{next(_numbers)}")
    place.make()
    return place
