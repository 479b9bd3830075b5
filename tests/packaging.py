"""What the tests of packages need: a root with nothing but Debian in it, and the Python packages
that blobfs depends on. Both come from the network once, and stay in .cache."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.machine import Machine
from tests.mounts import ROOT

CACHE = ROOT / ".cache"
PYTHON = "/usr/bin/python3"  # Debian's, as in the clean root

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root/.local/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

_INSTALL_LIMIT_S = 300

# what is installed in a clean root, beside what the packages of the tests depend on
_DEBIAN_PACKAGES = ("fuse3", "pipx", "python3-pip", "python3-venv")
# pipx and pip's isolated builds ask for these
_BUILD_PACKAGES = ("flit_core", "pip", "setuptools", "wheel")


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """A program on this machine; its standard output. What it said is in the failure."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=2 * _INSTALL_LIMIT_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made if it is not there; half of one is never seen."""
    place = CACHE / name
    if not place.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}.") as new:
            make(Path(new) / "made")
            for older in CACHE.glob(f"{name.rpartition('-')[0]}-*"):
                if not older.name.startswith(f"{name}."):
                    shutil.rmtree(older)
            (Path(new) / "made").rename(place)
    return place


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def clean_root() -> Path:
    """The least Debian that apt makes, of this machine's release. The archives of the packages
    that the tests install there are in it, so that they need no network."""
    script = 'chroot "$1" apt-get install -y --no-install-recommends --download-only '
    script += " ".join(_DEBIAN_PACKAGES)
    release = run("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").strip()

    def make(place: Path) -> None:
        # fmt: off
        run(
            "mmdebstrap", "--quiet", "--variant=minbase", "--skip=cleanup/apt",
            "--dpkgopt=force-unsafe-io", f"--customize-hook={script}", release, place,
        )
        # fmt: on

    return _cached(f"clean_root-{_digest(release, script)}", make)


def wheelhouse() -> Path:
    """Wheels of all that blobfs depends on, for Debian's Python, and of what builds it."""
    project = (ROOT / "pyproject.toml").read_text()

    def make(place: Path) -> None:
        environment = place.with_name("environment")
        run(PYTHON, "-m", "venv", environment)
        pip = environment / "bin/pip"
        wanted = [f"{checkout(place.parent)}[keyvault]", *_BUILD_PACKAGES]
        # no cache: in it may be a pyfuse3 that was compiled for another Python
        run(pip, "wheel", "--no-cache-dir", "--wheel-dir", place, *wanted)
        for wheel in place.glob("blobfs-*.whl"):
            wheel.unlink()

    return _cached(f"wheels-{_digest(project, run(PYTHON, '-VV'))}", make)


def checkout(folder: Path) -> Path:
    """A copy of what is, or is to be, committed."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z"]
    place = folder / "checkout"
    for name in run(*git, "--cached", "--others", "--exclude-standard").split("\0")[:-1]:
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def offline(wheels: Path) -> dict[str, str]:
    """The environment in which pip takes packages from `wheels` alone."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


class CleanMachine:
    """A machine from the clean root."""

    def __init__(self, machine: Machine, wheels: Path) -> None:
        self.machine = machine
        self.env = ENVIRONMENT | offline(wheels)

    def sh(self, script: str, *, stdin: str = "") -> str:
        """Run a shell script there; its standard output. A failure has all that it said."""
        return self.machine.sh(script, env=self.env, stdin=stdin, limit=_INSTALL_LIMIT_S)

    def apt_install(self, *packages: str | Path) -> None:
        self.sh(
            "apt-get install -y --no-install-recommends "
            f"-o Dpkg::Options::=--force-unsafe-io {' '.join(map(str, packages))}"
        )

    def files(self) -> dict[str, str]:
        """Everything but directories on its disk, with type, mode, size and link target; without
        the notes of dpkg and apt on what they did."""
        found = self.sh(r"find / -xdev ! -type d -printf '%p\0%y %m %s %l\0'").split("\0")
        entries = zip(found[::2], found[1::2], strict=False)
        own = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/")
        return {path: what for path, what in entries if not path.startswith(own)}
