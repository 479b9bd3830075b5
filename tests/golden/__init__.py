"""Golden containers: all that a released version of blobfs wrote, for every later one to read.

`VERSION/` has the blobs as the service had them (`blobs.jsonl`), the keys, a recovery file, and
what a mount of that version showed (`seen.json`). A folder is made once, by `make.py`, and never
touched again: `SHA256SUMS` guards its bytes. A version that writes something new adds its own.
"""

import json
import os
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from azure.storage.blob import ContainerClient, ContentSettings

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "blobs.jsonl").exists())


@dataclass(frozen=True)
class GoldenBlob:
    name: str
    body: bytes
    metadata: dict[str, str]
    content_type: str

    def line(self) -> str:
        fields = {**vars(self), "body": b64encode(self.body).decode()}
        return json.dumps(fields, sort_keys=True) + "\n"


def blobs_of(version: str) -> list[GoldenBlob]:
    lines = (HERE / version / "blobs.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [GoldenBlob(**{**fields, "body": b64decode(fields["body"])}) for fields in found]


def seen_by(version: str) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads((HERE / version / "seen.json").read_text())
    return seen


def upload(raw: ContainerClient, blobs: list[GoldenBlob]) -> None:
    for blob in blobs:
        raw.upload_blob(
            blob.name,
            blob.body,
            metadata=blob.metadata,
            content_settings=ContentSettings(content_type=blob.content_type),
        )


def dump(raw: ContainerClient) -> list[GoldenBlob]:
    found = []
    for name in sorted(raw.list_blob_names()):
        client = raw.get_blob_client(name)
        info = client.get_blob_properties()
        body = client.download_blob().readall()
        kind = info.content_settings.content_type or ""
        found.append(GoldenBlob(name, body, dict(info.metadata), kind))
    return found


def look(root: Path, timed: set[str]) -> dict[str, Any]:
    """Everything that a mount shows, by path; times of those alone that store theirs (`timed`)."""
    seen = {}
    for path in sorted(root.rglob("*")):
        name, status = str(path.relative_to(root)), path.lstat()
        shown: dict[str, Any] = {
            "mode": stat.filemode(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "xattrs": {
                key: b64encode(os.getxattr(path, key, follow_symlinks=False)).decode()
                for key in sorted(os.listxattr(path, follow_symlinks=False))
            },
        }
        if name in timed:
            shown["mtime_ns"] = status.st_mtime_ns
        if stat.S_ISLNK(status.st_mode):
            shown["target"] = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            shown["size"] = status.st_size
            shown["sha256"] = sha256(path.read_bytes()).hexdigest()
        elif status.st_rdev:
            shown["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        seen[name] = shown
    return seen


def timed(blobs: list[GoldenBlob]) -> set[str]:
    return {blob.name.rstrip("/") for blob in blobs if "modtime" in blob.metadata}
