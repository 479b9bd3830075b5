"""`blobfs install`, `uninstall` and `units`: at home on a Linux system."""

import argparse
import os
from itertools import chain
from pathlib import Path

from blobfs.cli import mounting, unmounting
from blobfs.cli.verbs import Verbs, add_source_arguments
from blobfs.errors import OptionError
from blobfs.options import check_options, option_rows, split_options
from blobfs.source import split_source
from blobfs.system import files, updatedb
from blobfs.system.completion import completions
from blobfs.system.files import File
from blobfs.system.layout import LOCAL, PACKAGED
from blobfs.system.manual import pages
from blobfs.system.units import Mount, automount_unit, fstab_line, mount_unit, service_template
from blobfs.system.wrappers import wrappers


def add(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "install",
        help="put what mount(8), man, shells and systemd look for in its places",
        description="Put the helpers of mount(8) and umount(8), man pages, shell completion, the "
        "template blobfs@.service and a hint for updatedb in their places. What is there already "
        "and not from blobfs install stays.",
    )
    verb.set_defaults(run=_install)
    _add_root(verb)
    verb.add_argument(
        "--package",
        dest="layout",
        action="store_const",
        const=PACKAGED,
        default=LOCAL,
        help="make the files of a package: in /usr, where uninstall leaves them alone",
    )
    verb = verbs.add_parser(
        "uninstall", help="undo install", description="Remove all that blobfs install has put."
    )
    verb.set_defaults(run=_uninstall, layout=LOCAL)
    _add_root(verb)
    verb = verbs.add_parser(
        "units",
        help="write units of systemd, and a line for fstab",
        description="Print a mount unit, an automount unit, and the line for /etc/fstab that does "
        "the same. Nothing is mounted, and no file that the options name is read.",
    )
    add_source_arguments(verb)
    verb.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path, help="a whole path")
    verb.add_argument(
        "--idle",
        metavar="TIME",
        default="10min",
        help="unmounted when unused for so long (default: %(default)s; 0: never)",
    )
    verb.add_argument(
        "--write", metavar="DIRECTORY", type=Path, help="write the units to files in DIRECTORY"
    )
    verb.set_defaults(run=_units)


def _add_root(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--root", metavar="DIR", type=Path, default=Path("/"), help="of the system (default: /)"
    )


def _files(chosen: argparse.Namespace, root: Path) -> list[File]:
    rows = option_rows()
    helpers = mounting.helper_parser(), unmounting.helper_parser()
    return [
        *wrappers(root, chosen.layout),
        *pages(chosen.program, *helpers, rows, chosen.layout),
        *completions(chosen.program, rows, chosen.layout),
        service_template(chosen.layout),
    ]


def _install(chosen: argparse.Namespace) -> int:
    return _in_root(chosen, wanted=True)


def _uninstall(chosen: argparse.Namespace) -> int:
    return _in_root(chosen, wanted=False)


def _in_root(chosen: argparse.Namespace, *, wanted: bool) -> int:
    root = chosen.root.absolute()
    if not root.is_dir():
        raise OptionError(f"--root {root} is not a directory")
    work = files.install if wanted else files.uninstall
    done = work(root, _files(chosen, root), chosen.layout.mark)
    packaged = root / f"{PACKAGED.programs}/blobfs".lstrip("/")
    try:
        if wanted and chosen.layout is LOCAL and files.is_marked(packaged, PACKAGED.mark):
            done = [f"kept {packaged}: it is from the package, as all the other files are"]
        for line in chain(done, updatedb.set_hint(root, wanted=wanted)):
            print(line)
    except OSError as exc:
        what = "cannot install into" if wanted else "cannot uninstall from"
        raise OptionError(f"{what} {exc.filename or root}: {exc.strerror}") from None
    if wanted and root == Path("/") and os.path.isdir("/run/systemd/system"):
        print("run: systemctl daemon-reload")
    return 0


def _units(chosen: argparse.Namespace) -> int:
    mount = _checked(chosen)
    units = mount_unit(mount), automount_unit(mount)
    try:
        for unit in units:
            if chosen.write:
                files.write(chosen.write / unit.path, unit.content, unit.mode)
                print(f"wrote {chosen.write / unit.path}")
            else:
                print(f"# /etc/systemd/system/{unit.path}\n{unit.content}")
    except OSError as exc:
        raise OptionError(f"cannot write to {chosen.write}: {exc.strerror}") from None
    print(f"# /etc/fstab, instead of the units\n{fstab_line(mount)}")
    return 0


def _checked(chosen: argparse.Namespace) -> Mount:
    source, token = split_source(chosen.source)
    check_options(chosen.options)
    secret = token is not None
    for name, value in chain.from_iterable(map(split_options, chosen.options)):
        secret |= name == "sas"
        if name.endswith(("_file", "_dir")) and not (value or "").startswith("/"):
            raise OptionError(f"{name}={value} is no whole path: begin it with /")
    if secret:
        raise OptionError("units and fstab are read by all: put the token into a file, sas_file=")
    if not chosen.mountpoint.is_absolute():
        raise OptionError(f"{chosen.mountpoint} is no whole path: begin it with /")
    return Mount(
        source.display, str(chosen.mountpoint), ",".join(chosen.options) or "rw", chosen.idle
    )
