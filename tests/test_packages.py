"""Installed as users install it, on a Debian that has nothing else, and removed."""

import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest

import blobfs
from blobfs.envelope import write_key_set
from tests import packaging
from tests.azurite import Azurite
from tests.machine import machine
from tests.mounts import PLAINTEXT_MARKER, ROOT
from tests.packaging import CleanMachine

pytestmark = pytest.mark.mount

FLIT = "from flit_core import buildapi; import sys; print(buildapi.build_sdist(sys.argv[1]))"
DEB = f"blobfs_{blobfs.__version__}_*.deb"


class Packages:
    """The wheel, the sdist and the Debian package, of a copy of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheels = folder / "wheels"  # a clean machine has this folder, too
        shutil.copytree(packaging.wheelhouse(), self.wheels)
        self.checkout = packaging.checkout(folder)
        before = sorted(self.checkout.rglob("*"))
        env = packaging.offline(self.wheels)
        # fmt: off
        packaging.run(
            packaging.PYTHON, self._pip(), "wheel", "--no-deps", "--wheel-dir", folder,
            self.checkout, env=env,
        )
        # fmt: on
        (self.wheel,) = folder.glob("blobfs-*.whl")
        (flit,) = self.wheels.glob("flit_core-*.whl")
        packaging.run(
            *(packaging.PYTHON, "-c", FLIT, folder),
            cwd=self.checkout,
            env={"PYTHONPATH": str(flit), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        (self.sdist,) = folder.glob("blobfs-*.tar.gz")
        self.left_by_builds = sorted(set(self.checkout.rglob("*")) - set(before))

    def deb(self) -> Path:
        quick = {"DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"}
        env = packaging.offline(self.wheels) | quick
        packaging.run(self.checkout / "scripts/build-deb", self.folder, env=env)
        (deb,) = self.folder.glob(DEB)
        return deb

    @staticmethod
    def _pip() -> Path:
        (wheel,) = Path("/usr/share/python-wheels").glob("pip-*.whl")
        return wheel / "pip"


class Container:
    """A container, and how to mount it on /mnt/x of a clean machine."""

    def __init__(self, azurite: Azurite, folder: Path) -> None:
        self.name = azurite.new_container()
        self._azurite = azurite
        keys, token = folder / f"{self.name}.keys", folder / f"{self.name}.sas"
        write_key_set(keys)
        token.touch(0o600)
        token.write_text(azurite.sas(self.name))
        options = f"sas_file={token},key_file={keys}"
        self.mount = (
            f"mkdir -p /mnt/x; mount -t blobfs {azurite.url(self.name)} /mnt/x -o {options}"
        )

    def content(self, blob: str) -> bytes:
        return self._azurite.sdk(self.name).download_blob(blob).readall()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture
def box(azurite: Azurite, packages: Packages) -> Container:
    return Container(azurite, packages.folder)


@pytest.fixture(scope="module")
def clean(packages: Packages) -> Iterator[CleanMachine]:
    """Debian, and what it takes to install Python packages on it."""
    with machine(packages.folder, root=packaging.clean_root()) as made:
        clean = CleanMachine(made, packages.wheels)
        clean.apt_install("fuse3", "python3-venv", "python3-pip", "pipx")
        # one of Debian's packages that is too old
        clean.sh("cd /usr/lib/python3/dist-packages; mkdir trio; echo 1/0 >trio/__init__.py")
        yield clean


@pytest.fixture(scope="module")
def deb(packages: Packages) -> Path:
    return packages.deb()


@pytest.fixture(scope="module")
def debian(packages: Packages, deb: Path) -> Iterator[CleanMachine]:
    """Debian with the package, and with nothing of it when it was purged."""
    with machine(packages.folder, root=packaging.clean_root()) as made:
        debian = CleanMachine(made, packages.wheels)
        needs = packaging.run("dpkg-deb", "--field", deb, "Depends").strip()
        debian.sh(f"apt-get satisfy -y --no-install-recommends '{needs}'")
        before = debian.files()
        debian.sh(f"dpkg --install {deb}")
        yield debian
        debian.sh("dpkg --purge blobfs")
        assert debian.files() == before


def use(clean: CleanMachine, box: Container, program: str = "blobfs") -> None:
    """Mount, write, unmount; mount again, read; and the service has none of it in the clear."""
    assert clean.sh(f"{program} --version") == f"blobfs {blobfs.__version__}\n"
    clean.sh(f"{box.mount}; cat >/mnt/x/file; umount /mnt/x", stdin=PLAINTEXT_MARKER.decode())
    assert clean.sh(f"{box.mount}; cat /mnt/x/file; umount /mnt/x") == PLAINTEXT_MARKER.decode()
    clean.sh("rmdir /mnt/x")
    assert PLAINTEXT_MARKER not in box.content("file")


# --- what is in them -------------------------------------------------------------------------


def test_building_leaves_nothing_in_the_checkout(packages: Packages) -> None:
    assert packages.left_by_builds == []


def test_the_wheel_has_every_file_of_the_package_and_its_licence(packages: Packages) -> None:
    with zipfile.ZipFile(packages.wheel) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = message_from_string(wheel.read(metadata).decode())
    package = packages.checkout / "blobfs"
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(packages.checkout)) for path in files} <= names
    assert {"py.typed", "SECURITY.md", "SEMANTICS.md"} <= {path.name for path in files}
    assert (fields["Version"], fields["License-Expression"]) == (blobfs.__version__, "MIT")
    assert fields["License-File"] == "blobfs/LICENSE"


# --- pip and pipx ----------------------------------------------------------------------------

PIP = "python3 -m pip install --break-system-packages"
UNINSTALL = "python3 -m pip freeze --local | cut -d' ' -f1 | cut -d= -f1 | "
UNINSTALL += "xargs python3 -m pip uninstall --break-system-packages -y"

# What is installed how: the commands that install, its program, the commands that remove.
WAYS = {
    "the checkout, in a virtual environment": (
        "python3 -m venv /opt/blobfs; /opt/blobfs/bin/pip install {checkout}",
        "/opt/blobfs/bin/blobfs",
        "rm -r /opt/blobfs",
    ),
    "the wheel, in the system's Python": (
        f"{PIP} {{wheel}}",
        "/usr/local/bin/blobfs",
        UNINSTALL,
    ),
    "the sdist, by pipx": (
        "pipx install {sdist}",
        "/root/.local/bin/blobfs",
        "pipx uninstall blobfs; rm -r /root/.local/pipx",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_pip_installs_it_and_nothing_is_left_when_it_is_removed(
    clean: CleanMachine, packages: Packages, box: Container, way: str
) -> None:
    install, program, remove = WAYS[way]
    before = clean.files()
    clean.sh(install.format_map(vars(packages)))
    said = clean.sh(f"{program} install")
    assert "wrote /sbin/mount.blobfs\n" in said
    use(clean, box, program)
    clean.sh(f"{program} uninstall")
    clean.sh(remove)
    assert clean.files() == before


# --- Debian's --------------------------------------------------------------------------------


def test_the_debian_package_says_nothing_of_the_machine_that_built_it(
    deb: Path, packages: Packages
) -> None:
    packaging.run("dpkg-deb", "-x", deb, packages.folder / "content")
    places = (str(packages.folder), os.environ.get("TMPDIR", "/tmp") + "/tmp.", "/root/", str(ROOT))
    found = subprocess.run(
        [*("grep", "-rlF"), *(f"-e{place}" for place in places), packages.folder / "content"],
        capture_output=True,
        text=True,
    )
    ours = [name for name in found.stdout.splitlines() if "/site-packages/trio/" not in name]
    assert ours == []


def test_the_debian_package_needs_what_it_says(debian: CleanMachine, box: Container) -> None:
    version = debian.sh("dpkg-query --show --showformat '${Version}' blobfs")
    assert version == blobfs.__version__
    use(debian, box)
    assert debian.sh("dpkg --verify blobfs") == ""


def test_install_leaves_the_packages_files_to_the_package(debian: CleanMachine) -> None:
    before = debian.files()
    assert debian.sh("blobfs install").endswith("as all the other files are\n")
    assert "kept /sbin/mount.blobfs" in debian.sh("blobfs uninstall")
    assert debian.files() == before


def test_mount_says_that_the_helper_has_lost_its_interpreter(
    debian: CleanMachine, box: Container
) -> None:
    debian.sh("mv /usr/lib/blobfs/bin /usr/lib/blobfs/away")
    done = debian.machine.run("bash", "-c", box.mount, env=debian.env, check=False)
    debian.sh("mv /usr/lib/blobfs/away /usr/lib/blobfs/bin; rmdir /mnt/x")
    said = "blobfs: /sbin/mount.blobfs cannot run /usr/lib/blobfs/bin/python3: it is gone"
    assert (done.returncode, done.stderr.startswith(said)) == (32, True), done


def test_a_mount_and_what_was_never_stored_outlive_upgrade_and_purge(
    debian: CleanMachine, deb: Path, box: Container
) -> None:
    debian.sh(f"{box.mount}; echo before >/mnt/x/before")
    debian.sh("mkdir -p /var/lib/blobfs; echo ciphertext >/var/lib/blobfs/x.blobfs-recovery")
    debian.sh(f"dpkg --install {deb}; cat /mnt/x/before; echo upgraded >/mnt/x/upgraded")
    said = debian.sh("dpkg --purge blobfs 2>&1")
    assert "blobfs: kept /var/lib/blobfs: there are files in it that were never stored" in said
    debian.sh("rm /var/lib/blobfs/x.blobfs-recovery; rmdir /var/lib/blobfs")
    debian.sh("cd /mnt/x; echo removed >removed; mkdir d; mv before d")
    found = debian.sh("cd /mnt/x; cat d/before removed; ls; ! cat missing")
    assert found == "before\nremoved\nd\nremoved\nupgraded\n"
    debian.sh("umount /mnt/x; rmdir /mnt/x")
    assert box.content("removed")
