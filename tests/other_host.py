"""Another host: changes a folder of a container through the Azure SDK, past any mount."""

import os
from dataclasses import dataclass
from pathlib import Path

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient, ContentSettings

Metadata = dict[str, str]

_SETTINGS = ContentSettings(content_type="application/octet-stream")


class OtherHost:
    """Paths are relative to `folder`; `encrypting` and `plain` are clients of one container."""

    def __init__(self, encrypting: ContainerClient, plain: ContainerClient, folder: str) -> None:
        self._encrypting = encrypting
        self._plain = plain
        self._folder = folder

    def _name(self, path: str) -> str:
        return f"{self._folder}/{path}"

    def _blobs(self, path: str) -> list[str]:
        """The blob of this name and those below it."""
        below = self._plain.list_blob_names(name_starts_with=self._name(path) + "/")
        own = self._plain.get_blob_client(self._name(path))
        return [*below, *([self._name(path)] if own.exists() else [])]

    def exists(self, path: str) -> bool:
        return bool(self._blobs(path))

    def version(self, path: str) -> str:
        """What no two contents have in common; "" where there is no file."""
        try:
            properties = self._plain.get_blob_client(self._name(path)).get_blob_properties()
        except ResourceNotFoundError:
            return ""
        return str(properties.metadata.get("encryptiondata", ""))

    def put(self, path: str, data: bytes, metadata: Metadata) -> None:
        self._encrypting.upload_blob(
            self._name(path), data, overwrite=True, metadata=metadata, content_settings=_SETTINGS
        )

    def mark(self, path: str, metadata: Metadata) -> None:
        """Make a directory's marker."""
        self._plain.upload_blob(
            self._name(path),
            b"",
            metadata={"hdi_isfolder": "true", **metadata},
            content_settings=_SETTINGS,
        )

    def set_metadata(self, path: str, changes: Metadata) -> None:
        """Change these keys of a file or directory, and nothing else."""
        blob = self._plain.get_blob_client(self._name(path))
        if blob.exists():
            blob.set_blob_metadata({**blob.get_blob_properties().metadata, **changes})
        else:
            self.mark(path, changes)  # the directory exists by its entries alone

    def delete(self, path: str) -> None:
        """A file, or a directory with all in it."""
        for name in self._blobs(path):
            self._plain.delete_blob(name)

    def rename(self, old: str, new: str) -> None:
        """A file, over another or not, or a directory with all in it."""
        for name in self._blobs(old):
            source = self._plain.get_blob_client(name)
            target = self._name(new) + name.removeprefix(self._name(old))
            self._plain.get_blob_client(target).start_copy_from_url(source.url)
            source.delete_blob()


@dataclass(frozen=True)
class Given:
    """Attributes that another host gives a blob; None: no key says so."""

    mode: int | None = None
    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None

    def metadata(self, kind: int) -> Metadata:
        """The keys that AzCopy would write; `kind` is the `S_IFMT` part of the mode."""
        keys = {}
        if self.mode is not None:
            keys["permissions"] = str(kind | self.mode)
        if self.owner is not None:
            keys["posix_owner"], keys["posix_group"] = map(str, self.owner)
        if self.mtime_ns is not None:
            keys["modtime"] = str(self.mtime_ns)
        return keys

    def apply(self, path: Path) -> None:
        """The same to a local file."""
        if self.owner is not None:
            os.chown(path, *self.owner)
        if self.mode is not None:
            os.chmod(path, self.mode)
        if self.mtime_ns is not None:
            os.utime(path, ns=(self.mtime_ns, self.mtime_ns))
