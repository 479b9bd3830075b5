"""A service that is faster than any client: nginx, ready answers and no disk.

It serves one encrypted file, takes every upload and forgets it, and lists a folder of many files.
The token is not looked at.
"""

import base64
import email.utils
import hashlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

from azure.storage.blob import generate_container_sas

from blobfs.attributes import Attributes, Kind, write_attributes
from blobfs.envelope import METADATA_KEY, SEAL_KEY, BodyWriter, KeySet, Protocol, load_key_set
from blobfs.options import MountOptions
from scripts.benchmarks import machine
from scripts.benchmarks.services import Traffic
from scripts.benchmarks.sources import MIB, Scale

PAGE = 5000
START_LIMIT_S = 10

_CONF = """
daemon off;
worker_processes 1;
user root;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    log_format traffic '$request_length $bytes_sent';
    access_log traffic.log traffic;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    client_max_body_size 0;
    keepalive_requests 1000000;
    sendfile on;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port};
        root www;
        add_header x-ms-request-id ceiling;
        location ~ ^/account/[a-z]+$ {{
            default_type application/xml;
            try_files $uri-list$arg_marker.xml =404;
        }}
        location / {{
            if ($request_method = PUT) {{
                add_header x-ms-request-id ceiling;
                add_header ETag '"0x2"';
                add_header Last-Modified "{now}";
                return 201;
            }}
            add_header x-ms-request-id ceiling;
            add_header x-ms-blob-type BlockBlob;
            try_files $uri @written;
        }}
        # A mount asks for the version of its own write before it writes again.
        location @written {{
            if ($request_method != HEAD) {{ return 404; }}
            add_header x-ms-request-id ceiling;
            add_header x-ms-blob-type BlockBlob;
            add_header ETag '"0x2"';
            add_header Last-Modified "{now}";
            return 200;
        }}
    }}
}}
"""

_LISTING = """<?xml version="1.0" encoding="utf-8"?>
<EnumerationResults ContainerName="ceiling"><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker>
</EnumerationResults>"""

# What Azure says of a block blob.
_BLOB = (
    "<Blob><Name>{name}</Name><Properties><Creation-Time>{time}</Creation-Time>"
    "<Last-Modified>{time}</Last-Modified><Etag>{etag}</Etag><Content-Length>{size}</Content-Length>"
    "<Content-Type>application/octet-stream</Content-Type><Content-Encoding /><Content-Language />"
    "<Content-CRC64 /><Content-MD5>{md5}</Content-MD5><Cache-Control /><Content-Disposition />"
    "<BlobType>BlockBlob</BlobType><AccessTier>Hot</AccessTier>"
    "<AccessTierInferred>true</AccessTierInferred><LeaseStatus>unlocked</LeaseStatus>"
    "<LeaseState>available</LeaseState><ServerEncrypted>true</ServerEncrypted></Properties>"
    "<Metadata>{metadata}</Metadata></Blob>"
)


def region_size(options: Sequence[str]) -> int:
    """The one that a mount with these options writes."""
    (field,) = [field for field in fields(MountOptions) if field.name == "region_size"]
    given = [option.partition("=")[2] for option in options if option.startswith("region_size=")]
    parse = field.metadata["option"].parse
    return int(parse(given[-1]) if given else parse(field.metadata["option"].default))


class Ceiling:
    """One container of it, `big`, `huge` or `listed`; the two former hold `file`."""

    name = "ceiling"

    def __init__(self, origin: str, container: str, log: Path, file: Path) -> None:
        self.file = file
        """Where the bytes of the blob `file` are."""
        self.url = f"{origin}/account/{container}"
        self.sas: str = generate_container_sas(
            "account",
            container,
            base64.b64encode(secrets.token_bytes(32)).decode(),
            permission="racwdl",
            expiry=datetime.now(UTC) + timedelta(days=1),
        )
        self._log = log
        self._before = (0, 0)

    def start_counting(self) -> None:
        self._before = self._counts()

    def traffic(self) -> Traffic:
        (requests, count), before = self._counts(), self._before
        return Traffic(requests - before[0], count - before[1])

    def _counts(self) -> tuple[int, int]:
        return self._log.read_bytes().count(b"\n"), machine.loopback_bytes()


class Ceilings:
    """A running nginx; its containers are made when they are first asked for."""

    def __init__(self, root: Path, origin: str, scale: Scale, keys: KeySet, region: int) -> None:
        self._root = root
        self._origin = origin
        self._scale = scale
        self._keys = keys
        self._region = region
        self._made: dict[str, Ceiling] = {}

    def container(self, name: str) -> Ceiling:
        if name not in self._made:
            folder = self._root / "www/account" / name
            folder.mkdir(parents=True)
            if name == "listed":
                self._make_listing(self._scale.listed)
            else:
                self._make_file(folder, getattr(self._scale, name))
            self._made[name] = Ceiling(
                self._origin, name, self._root / "traffic.log", folder / "file"
            )
        return self._made[name]

    def _make_file(self, folder: Path, size: int) -> None:
        path = folder / "file"
        writer = BodyWriter(Protocol.V2_1, self._region)
        block = os.urandom(MIB)
        with path.open("wb") as file:
            for end in range(MIB, size + 1, MIB):
                file.write(writer.encrypt(block, final=end == size))
        stat = path.stat()
        metadata = {
            METADATA_KEY: writer.encryption_data(self._keys.wrap(writer.cek_payload)).serialize(),
            SEAL_KEY: writer.seal("file"),
        }
        # nginx makes its ETags of these two, and blobfs asks for the version that was listed
        blob = self._blob(
            "file", f"{int(stat.st_mtime):x}-{stat.st_size:x}", stat.st_size, metadata
        )
        self._write_page(folder.name, "", blob, "")

    def _make_listing(self, count: int) -> None:
        """Of files that are alike and not the same: each has its own key, seal, ETag and time."""
        for first in range(0, count, PAGE):
            numbers = range(first, min(first + PAGE, count))
            blobs = "".join(self._small_blob(n) for n in numbers)
            following = first + PAGE
            self._write_page(
                "listed",
                str(first) if first else "",
                blobs,
                str(following) if following < count else "",
            )

    def _small_blob(self, number: int) -> str:
        writer = BodyWriter(Protocol.V2_1, self._region)
        body = writer.encrypt(b"x" * 1000, final=True)
        written = 1_790_000_000_000_000_000 + number * 1_234_567
        attributes = Attributes(Kind.FILE, 0o644, 1000, 1000, written, written, written)
        metadata = write_attributes(
            {
                METADATA_KEY: writer.encryption_data(
                    self._keys.wrap(writer.cek_payload)
                ).serialize(),
                SEAL_KEY: writer.seal("file"),
            },
            attributes,
        )
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        return self._blob(f"file{number:07}", f"0x8DE{number:012X}", len(body), metadata, md5)

    def _blob(
        self, name: str, etag: str, size: int, metadata: dict[str, str], md5: str = ""
    ) -> str:
        return _BLOB.format(
            md5=md5,
            name=name,
            etag=etag,
            size=size,
            time=email.utils.formatdate(usegmt=True),
            metadata="".join(f"<{key}>{escape(text)}</{key}>" for key, text in metadata.items()),
        )

    def _write_page(self, container: str, marker: str, blobs: str, following: str) -> None:
        path = self._root / "www/account" / f"{container}-list{marker}.xml"
        path.write_text(_LISTING.format(blobs=blobs, next=following))


@contextmanager
def ceilings(root: Path, scale: Scale, key_file: Path, region: int) -> Iterator[Ceilings]:
    (root / "www").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (root / "nginx.conf").write_text(
        _CONF.format(port=port, now=email.utils.formatdate(usegmt=True))
    )
    argv = ["nginx", "-p", str(root), "-c", "nginx.conf"]
    with machine.running(argv, root / "log") as process:
        _wait_for(port, process, root / "log")
        keys = load_key_set(key_file)
        yield Ceilings(root, f"http://127.0.0.1:{port}", scale, keys, region)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx does not answer: {log.read_text()}") from None
        time.sleep(0.02)
