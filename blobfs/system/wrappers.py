"""The programs, where other programs look for them.

A helper of mount(8) runs without PATH or HOME, with any umask, and maybe as root for somebody
else: so each names its interpreter, and takes nothing from the environment (`python -I`).
"""

import shlex
import sys
from pathlib import Path

from blobfs.system.files import File
from blobfs.system.layout import Layout

# Name -> function of blobfs.cli.
_HELPERS = {
    "mount.blobfs": "mount_helper",
    "mount.fuse.blobfs": "mount_helper",
    "umount.blobfs": "umount_helper",
    "umount.fuse.blobfs": "umount_helper",
}
_MOUNT_FAILURE = 32  # mount(8), exit status


def wrappers(root: Path, layout: Layout) -> list[File]:
    interpreter = _inside(root, Path(sys.executable))
    packages = _inside(root, Path(__file__).parents[2])
    programs = {f"{layout.helpers}/{name}": function for name, function in _HELPERS.items()}
    programs[f"{layout.programs}/blobfs"] = "main"
    return [
        File(path, _script(interpreter, packages, function, layout.mark), 0o755)
        for path, function in programs.items()
    ]


def _script(interpreter: str, packages: str, function: str, mark: str) -> str:
    # For Python, the lines between the quotes are a string; sh never comes to the second ones.
    # Without sh an interpreter that is gone would have mount(8) fail without a word, and a path
    # with a blank could not be named.
    run = shlex.quote(interpreter)
    return f"""#!/bin/sh
# {mark}
''':'
[ -x {run} ] && exec {run} -I "$0" "$@"
echo "blobfs: $0 cannot run" {run}": it is gone, or closed to this user" >&2
exit {_MOUNT_FAILURE}
'''
import sys
if {packages!r} not in sys.path:  # a checkout, or for one user: before the system's packages
    sys.path.insert(0, {packages!r})
from blobfs.cli import {function}
sys.exit({function}())
"""


def _inside(root: Path, path: Path) -> str:
    """`path` as it is called once `root` is the root. Links are kept: a virtual environment's
    interpreter is one."""
    path = path.absolute()
    if path.is_relative_to(root):
        return "/" + str(path.relative_to(root))
    return str(path)
