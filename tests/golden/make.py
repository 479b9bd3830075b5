"""Makes the golden container of this version: `python -m tests.golden.make`.

It needs root and /dev/fuse, and refuses to touch a folder that exists. Afterwards
`sha256sum` of the new files is appended to SHA256SUMS.
"""

import json
import os
import stat
import tempfile
from hashlib import sha256
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric import rsa

from blobfs import __version__
from blobfs.attributes import Kind
from blobfs.blobs import ContentHeaders
from blobfs.envelope import load_key_set
from blobfs.keyring import Keyring
from blobfs.recovery import keep_for_recovery
from blobfs.writer import Properties, WritePolicy
from tests.azurite import Azurite
from tests.golden import HERE, dump, look, timed
from tests.mounts import mounted
from tests.sdk import AesKek, RsaKek, content, encrypting, write_key_file

SMALL = (0, 1, 16, 33)


def fill(root: Path) -> None:
    """Every kind of entry, attribute and size, as blobfs itself writes them."""
    (root / "dir").mkdir(mode=0o750)
    (root / "dir/an empty one").mkdir()
    for size in (*SMALL, 70_000):
        (root / f"dir/{size}").write_bytes(content(size, 1))
    (root / "dir/naïve café ☃").write_bytes(b"named")
    (root / "dir/file.blobfs-conflict-20260101T000000Z-abcdef").write_bytes(b"the other version")
    (root / "link").symlink_to("dir/70000")
    (root / "long link").symlink_to("../" * 200 + "nowhere")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    os.mknod(root / "character", stat.S_IFCHR | 0o620, os.makedev(5, 1))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    attributed = root / "attributed"
    attributed.write_bytes(b"with attributes")
    os.chmod(attributed, 0o4751)
    os.chown(attributed, 1234, 4321)
    os.setxattr(attributed, "user.comment", b"a comment")
    os.setxattr(attributed, "user.binary", bytes(range(256)))
    os.setxattr(attributed, "user.empty", b"")
    os.setxattr(attributed, "user.azure.metadata.project", b"golden")
    os.setxattr(attributed, "user.azure.content_type", b"text/plain")
    os.setxattr(root / "dir", "user.of_a_directory", b"yes")
    os.utime(attributed, ns=(1_000_000_000_123_456_789, 1_111_111_111_987_654_321))
    os.utime(root / "dir/33", ns=(0, -5_000_000_001))
    os.utime(root / "link", ns=(1, 2), follow_symlinks=False)


def make(directory: Path) -> None:
    aes, private = AesKek("golden:aes", os.urandom(32)), rsa.generate_private_key(65537, 2048)
    rsa_key = RsaKek("golden:rsa", private)
    keys = write_key_file(directory / "keys.json", aes, rsa_key)
    azurite = Azurite(directory / "azurite")
    try:
        container = azurite.new_container()
        with mounted(azurite, container, directory, key_file=keys) as mount:
            fill(mount.path)
        for options, name in (
            (("protocol=1.0",), "protocol 1.0"),
            (("protocol=2.0",), "protocol 2.0"),
            (("region_size=16",), "regions of 16"),
            (("region_size=4K",), "regions of 4K"),
            (("key_id=golden:rsa",), "under RSA"),
        ):
            with mounted(azurite, container, directory, *options, key_file=keys) as mount:
                (mount.path / name).mkdir()
                for size in SMALL if name != "regions of 4K" else (3 * 4096 + 5, 4096):
                    (mount.path / name / str(size)).write_bytes(content(size, 2))
                (mount.path / name / "link").symlink_to("target")
                os.setxattr(mount.path / name, "user.key", b"that of this mount")
        for version in ("1.0", "2.0"):
            for kek, kind in ((aes, "AES"), (rsa_key, "RSA")):
                sdk = encrypting(azurite, container, kek, version)
                for size in SMALL:
                    sdk.upload_blob(f"SDK {version} {kind}/{size}", content(size, 3))
        raw = azurite.sdk(container)
        raw.upload_blob("of another tool", b"", metadata={"hdi_isfolder": "true"})
        raw.upload_blob("of another tool/slash/", b"")
        blobs = dump(raw)
        with mounted(azurite, container, directory, "ro", key_file=keys) as mount:
            mount.expect_log("WARNING .* protocol 1.0, which cannot detect tampering")
            seen = look(mount.path, timed(blobs))
    finally:
        azurite.stop()
    folder = HERE / __version__
    folder.mkdir()
    (folder / "blobs.jsonl").write_text("".join(blob.line() for blob in blobs))
    (folder / "seen.json").write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
    (folder / "keys.json").write_text(keys.read_text() + "\n")
    trio.run(keep, folder, keys)
    with (HERE / "SHA256SUMS").open("a") as sums:
        for path in sorted(folder.iterdir()):
            digest = sha256(path.read_bytes()).hexdigest()
            sums.write(f"{digest}  {path.relative_to(HERE)}\n")


async def keep(folder: Path, keys: Path) -> None:
    """A recovery file, of a file that lacks its first four bytes."""
    plain = content(5000, 4)

    async def read(offset: int, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        return plain[offset : offset + size], [(0, 4)] if offset == 0 else []

    path = await keep_for_recovery(
        folder,
        container_url="https://account.blob.core.windows.net/container",
        name="dir/kept",
        etag="0x8DE000000000000",
        kind=Kind.FILE,
        size=len(plain),
        read=read,
        properties=Properties({"project": "golden"}, ContentHeaders("text/plain"), None, None),
        keyring=Keyring(load_key_set(keys)),
        policy=WritePolicy(),
        reason="made for the tests",
    )
    path.rename(folder / "kept.blobfs-recovery")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="blobfs-golden-") as scratch:
        make(Path(scratch))
