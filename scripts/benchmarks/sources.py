"""The files that workloads store and read, made once in a run, all with fixed contents."""

import os
import random
import subprocess
from functools import cached_property
from pathlib import Path

MIB = 1024 * 1024

_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")


class Scale:
    """How large everything is."""

    def __init__(self, *, quick: bool) -> None:
        self.big = (64 if quick else 1024) * MIB
        self.one_of_four = (32 if quick else 1024) * MIB
        self.huge = (128 if quick else 4096) * MIB
        self.grown = (16 if quick else 100) * MIB
        self.small_files = 100 if quick else 1000
        self.directories = 10 if quick else 100
        self.per_directory = 50 if quick else 100
        self.listed = 20_000 if quick else 100_000
        self.repository_files = 100 if quick else 3000
        self.random_reads = 64 if quick else 1024


class Sources:
    """Each a path below `root`, made when it is first asked for."""

    def __init__(self, root: Path, scale: Scale) -> None:
        self._root = root
        self.scale = scale
        self._random = random.Random("blobfs")
        root.mkdir(parents=True)

    def tree(self, name: str) -> Path:
        """The folder of a fixture's files."""
        path: Path = getattr(self, name)
        return path

    @cached_property
    def big(self) -> Path:
        folder = self._folder("big")
        self._fill(folder / "file", self.scale.big)
        return folder

    @cached_property
    def four(self) -> Path:
        folder = self._folder("four")
        for number in range(4):
            self._fill(folder / f"file{number}", self.scale.one_of_four)
        return folder

    @cached_property
    def grown(self) -> Path:
        folder = self._folder("grown")
        self._fill(folder / "file", self.scale.grown)
        return folder

    @cached_property
    def small(self) -> Path:
        folder = self._folder("small")
        for number in range(self.scale.small_files):
            self._fill(folder / f"file{number:04}", 8192)
        return folder

    @cached_property
    def many(self) -> Path:
        root = self._folder("many")
        for number in range(self.scale.directories):
            folder = root / f"directory{number:03}"
            folder.mkdir()
            for file in range(self.scale.per_directory):
                self._fill(folder / f"file{file:03}", 100)
        return root

    @cached_property
    def repository(self) -> Path:
        folder = self._folder("repository")
        for number in range(self.scale.repository_files):
            directory = folder / f"part{number % 40:02}"
            directory.mkdir(exist_ok=True)
            text = self._random.randbytes(self._random.randrange(200, 6000)).hex()
            (directory / f"file{number:04}.txt").write_text(text)
        self._git(folder, "init", "--quiet", "--initial-branch=main")
        self._git(folder, "add", ".")
        self._git(folder, "commit", "--quiet", "--message=all")
        self._git(folder, "repack", "-adq")
        return folder

    @cached_property
    def archive(self) -> Path:
        path = self._root / "archive.tar"
        subprocess.run(
            ["tar", "-C", self.repository, "--exclude=.git", "-cf", path, "."], check=True
        )
        return path

    def _folder(self, name: str) -> Path:
        folder = self._root / name
        folder.mkdir()
        return folder

    def _fill(self, path: Path, size: int) -> None:
        block = self._random.randbytes(min(MIB, size))
        with path.open("wb") as file:
            for start in range(0, size, MIB):
                file.write(block[: size - start])

    def _git(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        subprocess.run([*_GIT, *arguments], cwd=folder, check=True, env=environment)
