"""Man pages (man(7)) of the commands and the mount options."""

import argparse
import re
from collections.abc import Iterable, Sequence

from blobfs.system.commands import Command, command_of, help_of, metavar
from blobfs.system.files import File
from blobfs.system.layout import Layout

Row = tuple[str, str, str]
"""A mount option as users write it, its default and its meaning."""


def pages(
    program: argparse.ArgumentParser,
    helper: argparse.ArgumentParser,
    umount_helper: argparse.ArgumentParser,
    rows: Sequence[Row],
    layout: Layout,
) -> list[File]:
    mount_8 = [
        f'.\\" {layout.mark}',
        *_head("mount.blobfs", 8, "mount an Azure Blob container, encrypted on the client"),
        *_usage([helper, umount_helper]),
        ".SH DESCRIPTION",
        *_prose(
            "mount.blobfs is called by mount(8) for file systems of the types blobfs and "
            "fuse.blobfs, umount.blobfs by umount(8). The mount is there when mount returns, and "
            "everything is stored when umount returns."
        ),
        *_remounting(),
        ".SH ARGUMENTS",
        *_arguments(command_of(helper)),
        *_mount_options(rows),
        *_exit_status(),
        *_fstab(),
        *_see_also("blobfs(1), mount(8), fstab(5), systemd.automount(5), fusermount3(1)"),
    ]
    tree = command_of(program)
    blobfs_1 = [
        f'.\\" {layout.mark}',
        *_head("blobfs", 1, "an Azure Blob container as an encrypted file system"),
        *_usage([program]),
        ".SH DESCRIPTION",
        *_prose(program.description or ""),
        *_prose(program.epilog or ""),
        ".SH COMMANDS",
        *(line for verb in tree.walk() if verb.words for line in _command(verb)),
        *_mount_options(rows),
        *_exit_status(),
        *_see_also("mount.blobfs(8), mount(8), fusermount3(1)"),
    ]
    umount_8 = [f'.\\" {layout.mark}', ".so man8/mount.blobfs.8"]
    return [
        File(f"{layout.share}/man/man1/blobfs.1", _text(blobfs_1)),
        File(f"{layout.share}/man/man8/mount.blobfs.8", _text(mount_8)),
        File(f"{layout.share}/man/man8/umount.blobfs.8", _text(umount_8)),
    ]


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text of ours as roff: it shows a bare - as a hyphen, which cannot be pasted into a shell."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return re.sub(r"(?m)^(?=[.'])", r"\\&", text)


def _bold(text: str) -> str:
    return f"\\fB{_escape(text)}\\fR"


def _prose(text: str) -> list[str]:
    return [".PP", _escape(" ".join(text.split()))] if text else []


def _head(name: str, section: int, what: str) -> list[str]:
    return [
        f'.TH {_escape(name.upper())} {section} "" "blobfs" "blobfs"',
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(what)}",
    ]


def _usage(parsers: Iterable[argparse.ArgumentParser]) -> list[str]:
    lines = [".SH SYNOPSIS"]
    for parser in parsers:
        words = " ".join(parser.format_usage().split()).removeprefix("usage: ")
        name, _, rest = words.partition(" ")
        lines += [".PP", f"{_bold(name)} {_escape(rest)}"]
    return lines


def _command(command: Command) -> list[str]:
    usage = " ".join(command.parser.format_usage().split()).removeprefix("usage: ")
    return [
        f'.SS "{_escape(" ".join(("blobfs", *command.words)))}"',
        _escape(usage),
        *_prose(command.parser.description or command.help),
        *_arguments(command),
    ]


def _arguments(command: Command) -> list[str]:
    lines = []
    for action in command.arguments:
        if action.help in (argparse.SUPPRESS, None):
            continue
        value = metavar(action)
        names = ", ".join(map(_bold, action.option_strings))
        shown = f"{names} \\fI{_escape(value)}\\fR" if names and value else names or _bold(value)
        lines += [".TP", shown, _escape(help_of(action, command.parser))]
    return lines


def _mount_options(rows: Sequence[Row]) -> list[str]:
    lines = [
        ".SH MOUNT OPTIONS",
        *_prose(
            "After -o, separated by commas. Sizes take K, M, G and T, times s, m and h. A value "
            "with a comma in it is put in double quotes."
        ),
    ]
    for name, default, text in rows:
        end = f" Default: {default}." if default else ""
        lines += [".TP", _bold(name), _escape(f"{text}.{end}")]
    return [
        *lines,
        *_prose(
            "What mount(8), fstab and systemd add (_netdev, nofail, noauto, user, x-systemd.…, "
            "nosuid, noatime and the like) is accepted."
        ),
    ]


def _remounting() -> list[str]:
    return _prose(
        "With -o remount what the kernel enforces can change: ro, rw, nosuid, nodev, noexec, "
        "sync, the treatment of access times. Everything else needs a new mount. A mount that "
        "began read-only goes on to refuse changes with EROFS after remount,rw."
    )


def _exit_status() -> list[str]:
    return [
        ".SH EXIT STATUS",
        *_prose("0 it is done; 1 something given is wrong; 32 the service or the system refused."),
    ]


def _fstab() -> list[str]:
    line = (
        "https://ACCOUNT.blob.core.windows.net/CONTAINER /mnt/data blobfs "
        "_netdev,nofail,sas_file=/etc/blobfs/data.sas,key_file=/etc/blobfs/keys.json 0 0"
    )
    return [
        ".SH FSTAB",
        *_prose("blobfs units writes the line, and units of systemd, for given options:"),
        ".nf",
        _escape(line),
        ".fi",
    ]


def _see_also(pages: str) -> list[str]:
    return [".SH SEE ALSO", _escape(pages)]
