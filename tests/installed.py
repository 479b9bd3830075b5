"""A machine with blobfs installed, and a container that it may mount on /mnt/x."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from blobfs.envelope import write_key_set
from tests.azurite import Azurite
from tests.machine import Machine, machine

MNT = "/mnt/x"


class Installed:
    """`options` name the token and the keys, in /etc/blobfs as `data.sas` and `data.keys`."""

    options = "sas_file=/etc/blobfs/data.sas,key_file=/etc/blobfs/data.keys"

    def __init__(self, machine: Machine, azurite: Azurite, tmp_path: Path) -> None:
        self.machine = machine
        self.azurite = azurite
        self.container = azurite.new_container()
        self.source = azurite.url(self.container)
        self._keys = tmp_path / "keys"
        write_key_set(self._keys)
        machine.run(sys.executable, "-m", "blobfs", "install")
        machine.sh(f"mkdir {MNT} /etc/blobfs; cp -p {self._keys} /etc/blobfs/data.keys")
        self.set_token(azurite.sas(self.container))

    def set_token(self, token: str) -> None:
        self.machine.sh("umask 077; cat >/etc/blobfs/data.sas", stdin=token)

    def expire_token(self) -> None:
        self.set_token(self.azurite.sas(self.container, expiry=timedelta(hours=-1)))

    @property
    def is_mounted(self) -> bool:
        return self.machine.fstypes_at(MNT)[-1:] == ["fuse.blobfs"]

    @property
    def daemons(self) -> list[int]:
        return self.machine.processes(f"mount.blobfs.* {MNT}|blobfs mount.* {MNT}")

    def blobs(self) -> set[str]:
        return set(self.azurite.sdk(self.container).list_blob_names())


@contextmanager
def installed(azurite: Azurite, tmp_path: Path, *, systemd: bool = False) -> Iterator[Installed]:
    with machine(tmp_path, systemd=systemd) as made:
        yield Installed(made, azurite, tmp_path)
