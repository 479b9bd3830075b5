"""The commands that keep stored data well, as people run them: started, ended, read."""

import http.client
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobClient

from tests.azurite import Azurite, Request, signature
from tests.mounts import ROOT
from tests.sdk import Kek, content, encrypting, write_key_file

LIMIT_S = 120


class Upkeep:
    """`blobfs VERB` on one container, with a token and a key file of its own."""

    def __init__(
        self,
        azurite: Azurite,
        container: str,
        directory: Path,
        *keks: Kek,
        options: str = "",
        permissions: str = "racwdlt",
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.source = azurite.url(container)
        self.sas_file = directory / "upkeep.sas"
        self.write_token(azurite.sas(container, permissions))
        self.key_file = directory / "upkeep.json"
        self.spool_dir = directory / "upkeep-spool"
        self.spool_dir.mkdir(exist_ok=True)
        self.keys(*keks)
        self.options = (
            f"sas_file={self.sas_file},key_file={self.key_file},spool_dir={self.spool_dir}"
        )
        if options:
            self.options += f",{options}"

    def write_token(self, sas: str) -> None:
        self.sas = sas
        self.sas_file.touch(0o600)
        self.sas_file.write_text(sas)

    def keys(self, *keks: Kek) -> None:
        write_key_file(self.key_file, *keks)

    def argv(self, verb: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "blobfs", verb, self.source, "-o", self.options, *more]

    def run(self, verb: str, *more: str, status: int = 0) -> str:
        """What it says on standard output; fails unless it ends with `status`."""
        ran = subprocess.run(
            self.argv(verb, *more), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert ran.returncode == status, f"status {ran.returncode}: {ran.stdout}{ran.stderr}"
        assert signature(self.sas) not in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
        self.stderr = ran.stderr
        return ran.stdout

    def start(self, verb: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(verb, *more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def killed_at(self, azurite: Azurite, writes: int, verb: str, *more: str) -> bool:
        """Run it and kill it when it has made so many writes; whether it was still running."""
        azurite.reset_requests()
        process = self.start(verb, *more)
        while process.poll() is None:
            if writes_in(azurite.requests()) >= writes:
                process.kill()
                break
            time.sleep(0.01)
        process.communicate(timeout=LIMIT_S)
        return process.returncode == -signal.SIGKILL


def writes_in(requests: list[Request]) -> int:
    return sum(request.method in ("PUT", "DELETE") for request in requests)


def upload_many(azurite: Azurite, container: str, kek: Kek, count: int) -> None:
    """Small files 000, 001, …: the SDK encrypts one, and the others are copies of it.

    By one connection, as so many uploads by the SDK take longer than all else in a test.
    """
    metadata = (
        encrypting(azurite, container, kek)
        .upload_blob("000", content(100))
        .get_blob_properties()
        .metadata
    )
    body = azurite.sdk(container).download_blob("000").readall()
    sas = azurite.sas(container)
    service = http.client.HTTPConnection("127.0.0.1", azurite.port)
    for number in range(1, count):
        service.request(
            "PUT",
            f"/{azurite.account}/{container}/{number:03}?{sas}",
            body,
            {
                "x-ms-blob-type": "BlockBlob",
                "x-ms-meta-encryptiondata": metadata["encryptiondata"],
            },
        )
        answer = service.getresponse()
        answer.read()
        assert answer.status == 201
    service.close()


def everything_of(blob: BlobClient) -> dict[str, Any]:
    """All that a blob has, its stored bytes too, but its version and dates."""
    info = blob.get_blob_properties()
    return {
        "bytes": blob.download_blob().readall(),
        "metadata": dict(info.metadata),
        "headers": dict(info.content_settings),
        "tags": blob.get_blob_tags(),
        "tier": info.blob_tier,
        "type": info.blob_type,
    }
