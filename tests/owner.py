"""Acting on a mount as the user that it belongs to: FUSE lets nobody else in, not even root.

Without the capability that `tests.mounts.as_user` leaves a daemon: what is done here is done by
an ordinary user, whom every permission bit applies to.
"""

import functools
import hashlib
import os
import pickle
import stat
import subprocess
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tests.mounts import Mount, fstypes_at

P = ParamSpec("P")
R = TypeVar("R")

COMMAND_LIMIT_S = 60

# No configuration of the machine's, and times as everybody prints them.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


class CommandFailed(Exception):
    """A program ended with another status than 0; carries what it wrote to stderr."""


class Place:
    """A directory of a test's own in a mount (`path`), and one beside the mount (`local`)."""

    def __init__(self, mount: Mount, name: str) -> None:
        self.mount = mount
        self.user = mount.user
        self.path = mount.path / name
        self.local = mount.state_dir / "local" / name

    def make(self) -> None:
        assert fstypes_at(self.mount.path), "an earlier test has ended the mount"
        self.act(lambda: (self.path.mkdir(), self.local.mkdir(parents=True)))

    def act(self, function: Callable[[], R]) -> R:
        """Call it as the owner of the mount; its result or exception, which must be picklable."""
        return function() if self.user is None else acting_as(self.user, function)

    def run(self, *command: str | Path, text: str = "") -> str:
        """Run a program in `path` with `text` as its input; what it wrote to standard output."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(word) for word in command],
                cwd=self.path,
                env={**ENVIRONMENT, "HOME": str(self.local)},
                input=text,
                capture_output=True,
                text=True,
                timeout=COMMAND_LIMIT_S,
            )

        done = self.act(run)
        if done.returncode != 0:
            raise CommandFailed(f"{command[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def sh(self, script: str) -> str:
        return self.run("sh", "-euc", script)


def by_owner(test: Callable[P, R]) -> Callable[P, R]:
    """Run the body of a test that has a `place` as the owner of the mount."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        place = kwargs["place"]
        assert isinstance(place, Place)
        return place.act(lambda: test(*args, **kwargs))

    return run


def acting_as(user: int, function: Callable[[], R]) -> R:
    """Fork, become the user for good, and send back what came of it."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; those of other tests are idle and hold no lock of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            os.close(receiver)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            with os.fdopen(sender, "wb") as pipe:
                pipe.write(_outcome(function))
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        sent = pipe.read()
    os.waitpid(pid, 0)
    result, exc, trace = pickle.loads(sent)
    if exc is not None:
        exc.add_note(trace)
        raise exc
    return result


def _outcome(function: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps((function(), None, ""))
    except BaseException as exc:
        trace = traceback.format_exc()
        try:
            return pickle.dumps((None, exc, trace))
        except Exception:  # an exception that cannot be sent: its text can
            return pickle.dumps((None, AssertionError(repr(exc)), trace))


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below `root` that a faithful copy has as well: names, types, modes, owners,
    modification times in nanoseconds, sizes, link targets, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = (
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            content,
        )
    return found
