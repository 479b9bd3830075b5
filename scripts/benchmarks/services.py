"""Azurite as it is, and behind relays that delay every request."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from scripts.benchmarks import machine
from tests.azurite import Azurite

DELAYS_MS = {"azurite": 0, "azurite+10ms": 10, "azurite+40ms": 40}

ROOT = Path(__file__).parents[2]


class Traffic(NamedTuple):
    """What a service has been asked, and the bytes both ways."""

    requests: int
    bytes: int


class Service(Protocol):
    """Where a mount finds its container, and what it has asked of it."""

    name: str
    url: str
    """The container's."""
    sas: str

    def start_counting(self) -> None: ...

    def traffic(self) -> Traffic:
        """Since `start_counting`."""


class Direct:
    """Azurite as it is. Its bytes are those of the loopback interface, so that nothing of ours
    stands in between: all of them, TCP's headers and other programs' too."""

    name = "azurite"

    def __init__(self, azurite: Azurite, container: str, sas: str) -> None:
        self._azurite = azurite
        self._bytes_before = 0
        self.url = azurite.url(container)
        self.sas = sas

    def start_counting(self) -> None:
        self._azurite.reset_requests()
        self._bytes_before = machine.loopback_bytes()

    def traffic(self) -> Traffic:
        count = machine.loopback_bytes() - self._bytes_before  # before we ask Azurite ourselves
        requests = self._azurite.requests()
        # For each copy Azurite asks itself for the source, which Azure does not.
        copies = sum(request.method == "PUT" and request.status == 202 for request in requests)
        return Traffic(len(requests) - copies, count)


class Delayed:
    def __init__(self, name: str, url: str, sas: str, relay: subprocess.Popen[str]) -> None:
        self.name = name
        self.url = url
        self.sas = sas
        self._relay = relay
        self._before = (0, 0)

    def start_counting(self) -> None:
        self._before = self._counts()

    def traffic(self) -> Traffic:
        (requests, count), before = self._counts(), self._before
        return Traffic(requests - before[0], count - before[1])

    def _counts(self) -> tuple[int, int]:
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write("\n")
        self._relay.stdin.flush()
        requests, up, down = map(int, self._relay.stdout.readline().split())
        return requests, up + down


class Stage:
    """One Azurite with one container, and all the ways to it."""

    def __init__(self, azurite: Azurite, stack: ExitStack) -> None:
        self._azurite = azurite
        self._stack = stack
        self.container = azurite.new_container()
        self.sas = azurite.sas(self.container)
        self.direct = Direct(azurite, self.container, self.sas)
        self._services: dict[str, Service] = {"azurite": self.direct}

    def service(self, name: str) -> Service:
        if name not in self._services:
            self._services[name] = self._delayed(name, DELAYS_MS[name])
        return self._services[name]

    def _delayed(self, name: str, delay_ms: int) -> Delayed:
        argv = [
            sys.executable,
            "-m",
            "scripts.benchmarks.relay",
            self._azurite.port,
            delay_ms / 1000,
        ]
        relay = self._stack.enter_context(
            subprocess.Popen(
                [*machine.DIE_WITH_US, *map(str, argv)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        self._stack.callback(relay.terminate)
        assert relay.stdout is not None
        port = int(relay.stdout.readline())
        url = self.direct.url.replace(f":{self._azurite.port}/", f":{port}/")
        return Delayed(name, url, self.sas, relay)

    def make_folder(self, name: str) -> None:
        """A directory's marker: a mount wants its folder to exist."""
        self._azurite.sdk(self.container).upload_blob(name, b"", metadata={"hdi_isfolder": "true"})

    def stored_bytes(self) -> int:
        """What lies on the disk: Azurite gives nothing back of what is deleted or overwritten."""
        total = 0
        for path in self._azurite.data_dir.rglob("*"):
            with suppress(FileNotFoundError):  # it writes a file anew under another name first
                total += path.stat().st_size
        return total


@contextmanager
def stage(root: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        azurite = Azurite(root)
        stack.callback(azurite.stop)
        yield Stage(azurite, stack)
