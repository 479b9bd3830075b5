"""The fewest requests that a workload can do with, made by curl: what the service itself takes.

No file system, no encryption, no waiting for programs: nobody can be faster on this service than
this, but for what can be asked for in parallel. It shows how much of a ratio is left to win.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.services import Service
from scripts.benchmarks.sources import Sources

_SETTINGS = "silent\nshow-error\nfail\noutput = /dev/null\n"


@dataclass(frozen=True)
class Place:
    """Where to ask: a folder of the container, and what lies there before."""

    service: Service
    folder: str
    sources: Sources
    target: str
    """A name in the folder that nobody has used."""


@dataclass(frozen=True)
class Transfer:
    """One request; `upload` is a file to be sent."""

    url: str
    upload: Path | None = None

    def config(self) -> str:
        lines = f'{_SETTINGS}url = "{self.url}"\n'
        if self.upload is not None:
            lines += f'upload-file = "{self.upload}"\nheader = "Expect:"\n'
            lines += 'header = "x-ms-blob-type: BlockBlob"\n'
        return lines


def blob(place: Place, name: str, upload: Path | None = None) -> Transfer:
    return Transfer(f"{place.service.url}/{place.folder}/{name}?{place.service.sas}", upload)


def listing(place: Place, name: str) -> Transfer:
    query = "restype=container&comp=list&include=metadata&maxresults=5000&delimiter=/"
    prefix = f"{place.folder}/{name}".strip("/") + "/"
    return Transfer(f"{place.service.url}?{query}&prefix={prefix}&{place.service.sas}")


def files(folder: Path) -> list[str]:
    """The paths of the files below it."""
    return sorted(
        str(path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file()
    )


def command(transfers: Sequence[Transfer], config: Path, *, parallel: bool) -> list[str | Path]:
    """curl making them, one after the other unless `parallel`; the token is in the file alone."""
    config.write_text("next\n".join(transfer.config() for transfer in transfers))
    return ["curl", *(["--parallel"] if parallel else []), "--config", config]
