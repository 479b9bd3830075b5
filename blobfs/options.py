"""What a mount is asked to do: the source and every `-o` option, checked before anything happens.

`MountOptions` is the one table of options. Parsing, negation (`no…`), the suggestion for a
misspelt name and the README's table are all read off its fields.
"""

import difflib
import itertools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from blobfs import values
from blobfs.access import Access, accesses_in, read_sas_file, run_sas_command, token_for
from blobfs.address import Address, parse_address
from blobfs.envelope import REGION_LENGTH_2_0
from blobfs.errors import OptionError
from blobfs.logs import LEVELS
from blobfs.sas import Sas, check, redact
from blobfs.source import EXAMPLE, Source, split_source

# --- the table -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Option:
    name: str  # "" for the name of the field
    parse: Callable[[str], Any] | None  # None for a flag, which takes no value
    default: str  # as the README shows it
    help: str


def _option(parse: Callable[[str], Any] | None, default: str, help: str, name: str = "") -> Any:
    return {"option": _Option(name, parse, default, help)}


def _value(parse: Callable[[str], Any], default: str, help: str) -> Any:
    """A field whose default is written, and shown, as a user would write it."""
    return field(default=parse(default), metadata=_option(parse, default, help))


def _flag(default: bool, help: str, name: str = "") -> Any:
    shown = "on" if default else "off"
    return field(default=default, metadata=_option(None, shown, help, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """One mount, validated. Sizes are bytes, times seconds, paths absolute.

    `umask` has been taken off `file_mode` and `dir_mode`. `read_only` is also set when the token
    cannot write. `accesses` are the containers and their tokens; `notes` is what the user should
    be told; `fuse_options` go to the kernel.
    """

    source: Source
    mountpoint: Path
    accesses: tuple[Access, ...] = ()
    notes: tuple[str, ...] = ()
    fuse_options: tuple[str, ...] = ()

    sas: Sas | None = field(
        default=None, metadata=_option(str, "", "the container SAS itself; prefer sas_file")
    )
    sas_file: Path | None = field(
        default=None, metadata=_option(values.path, "", "file with the SAS, not readable by others")
    )
    sas_dir: Path | None = field(
        default=None,
        metadata=_option(values.path, "", "directory of CONTAINER.sas files: mounts all of these"),
    )
    sas_command: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_option(
            values.command, "", "program, with arguments, that prints the SAS; no shell"
        ),
    )
    key_file: Path | None = field(
        default=None,
        metadata=_option(
            values.path, "", "file with the keys: a JSON Web Key Set, or an RSA key in PEM"
        ),
    )
    key_passphrase_file: Path | None = field(
        default=None,
        metadata=_option(values.path, "", "file with the passphrase of a PEM key_file"),
    )
    key_vault: str | None = field(
        default=None,
        metadata=_option(str, "", "key in Azure: https://VAULT.vault.azure.net/keys/NAME/VERSION"),
    )
    key_provider: str | None = field(
        default=None, metadata=_option(str, "", "NAME or NAME:ARGUMENT of a package's key provider")
    )
    key_command: tuple[str, ...] | None = field(
        default=None, metadata=_option(values.words, "", "program that wraps and unwraps keys")
    )
    key_command_timeout: float | None = field(
        default=None,
        metadata=_option(values.timeout, "half of timeout", "longest run of key_command"),
    )
    key_id: str | None = field(
        default=None,
        metadata=_option(str, "", "the key that wraps; else the first of the file, see Keys"),
    )
    protocol: str = _value(
        values.choice("1.0", "2.0", "2.1"), "2.1", "client-side encryption protocol to write"
    )
    region_size: int = _value(
        values.region_size,
        "64K",
        "bytes encrypted as one region by protocol 2.1 (2.0 has always 4M)",
    )
    min_protocol: str = _value(
        values.choice("1.0", "2.0", "2.1"),
        "1.0",
        "oldest protocol to read; older blobs give EACCES",
    )
    require_encryption: bool = _flag(True, "refuse to read blobs that are not encrypted")
    require_seal: bool = _flag(False, "refuse to read encrypted blobs without blobfs's seal")
    read_only: bool = _flag(False, "mount read-only", name="ro")
    uid: int = field(
        default_factory=os.getuid,
        metadata=_option(values.numeric_id, "the mounting user", "owner of files that store none"),
    )
    gid: int = field(
        default_factory=os.getgid,
        metadata=_option(values.numeric_id, "its group", "group of files that store none"),
    )
    file_mode: int = _value(values.mode, "0644", "mode of files that store none")
    dir_mode: int = _value(values.mode, "0755", "mode of directories that store none")
    umask: int = _value(values.mode, "0000", "bits taken off file_mode and dir_mode")
    allow_other: bool = _flag(False, "let other users in, as the modes permit")
    metadata_ttl: float = _value(
        values.seconds, "10s", "how long attributes and listings are served from memory"
    )
    cache_size: int = _value(values.size, "128M", "memory for decrypted regions")
    readahead: int = _value(values.size, "32M", "most bytes read ahead for one open file")
    buffer_size: int = _value(
        values.size, "64M", "memory for bytes not yet stored, before the spool"
    )
    spool_dir: Path = field(
        default_factory=values.default_spool_dir,
        metadata=_option(
            values.path,
            "/var/lib/blobfs, or ~/.local/state/blobfs",
            "directory for encrypted spool and recovery files",
        ),
    )
    spool_size: int = _value(values.size, "1T", "most bytes in the spool; ENOSPC beyond")
    list_page: int = _value(
        values.list_page, "5000", "most entries asked for in one listing request"
    )
    connections: int = _value(
        values.connections, "16", "most requests at once that move contents, and as many others"
    )
    timeout: float = _value(values.timeout, "60s", "deadline of one operation, retries included")
    on_conflict: str = _value(
        values.choice("keep", "overwrite"),
        "keep",
        "when another client changed the file meanwhile: keep both, or overwrite",
    )
    log_level: str = _value(
        values.choice(*LEVELS), "info", "least severity that is logged; blobfs status changes it"
    )
    log_file: Path | None = field(
        default=None, metadata=_option(values.path, "", "file to log to; else the system log")
    )
    metrics: Address | None = field(
        default=None,
        metadata=_option(parse_address, "", "where Prometheus asks: 127.0.0.1:PORT or unix:PATH"),
    )
    foreground: bool = _flag(False, "stay in the foreground")


# Option name -> (field of MountOptions, option).
_OPTIONS: dict[str, tuple[str, _Option]] = {
    f.metadata["option"].name or f.name: (f.name, f.metadata["option"])
    for f in fields(MountOptions)
    if "option" in f.metadata
}
# Instructions to mount(8), systemd and the like, and what a FUSE mount is anyway.
_IGNORED = frozenset(
    """_netdev _rnetdev auto comment default_permissions defaults diratime fail group helper
    lazytime loud noauto nodiratime nofail nogroup nolazytime noowner norelatime nostrictatime
    nouser nousers owner relatime silent strictatime uhelper user users""".split()  # noqa: SIM905 (as a list these are thirty lines)
)
# Handed on to libfuse, which knows no others (mount.c); of a pair the last one given.
_FUSE = frozenset(
    """allow_root async atime dev dirsync exec noatime nodev noexec nosuid suid sync""".split()  # noqa: SIM905
)
# Name that turns a flag off -> the flag.
_NEGATED = {
    "rw" if name == "ro" else f"no{name}": name
    for name, (_, option) in _OPTIONS.items()
    if option.parse is None
}
_KNOWN = sorted({*_OPTIONS, *_NEGATED, *_IGNORED, *_FUSE})


def option_rows() -> list[tuple[str, str, str]]:
    """Each mount option (`name=`, or `name, noname`), its default and its meaning."""
    negations = {flag: off for off, flag in _NEGATED.items()}
    return [
        (f"{name}=" if option.parse else f"{name}, {negations[name]}", option.default, option.help)
        for name, (_, option) in _OPTIONS.items()
    ]


def option_table() -> str:
    """The same as a Markdown table, for the README."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for shown, default, meaning in option_rows():
        names = ", ".join(f"`{name}`" for name in shown.split(", "))
        rows.append(f"| {names} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


# --- parsing ---------------------------------------------------------------------------------


def split_options(text: str) -> list[tuple[str, str | None]]:
    """The text after one `-o` as (name, value or None for a bare name), in order.

    Commas separate. One inside a value is written `\\,` (and a backslash `\\\\`), or the value
    is put in double quotes; inside a SAS (`spr=https,http`) it may stand as it is. `%` means
    nothing here. Raises OptionError for an unclosed quote or an option without a name.
    """
    options: list[tuple[str, str | None]] = []
    for piece in _pieces(text):
        name, has_value, value = piece.partition("=")
        if options and options[-1][0] == "sas" and _continues_sas(options[-1][1] or "", piece):
            options[-1] = "sas", f"{options[-1][1]},{piece}"
        elif not name:
            raise OptionError("an option has no name in front of its =")
        else:
            options.append((name.strip(), value if has_value else None))
    return options


def _pieces(text: str) -> list[str]:
    """`text` split at its commas, with quotes and escapes resolved; empty pieces dropped."""
    pieces, piece, quoted = [], "", False
    position = 0
    while position < len(text):
        char, pair = text[position], text[position : position + 2]
        if pair in ("\\,", "\\\\"):
            piece += pair[1]
            position += 1
        elif char == '"' and (quoted or piece.find("=") == len(piece) - 1 >= 0):
            quoted = not quoted
        elif char == "," and not quoted:
            pieces.append(piece)
            piece = ""
        else:
            piece += char
        position += 1
    if quoted:
        raise OptionError("an option's value has an opening quote without a closing one")
    return [piece for piece in (*pieces, piece) if piece.strip()]


def _continues_sas(token: str, piece: str) -> bool:
    """Whether `piece`, after a comma, belongs to `token`: `http&sig=…` or the `http` at its end.

    A misspelt option after a whole token has neither, and is reported by its name.
    """
    if _is_known(piece.partition("=")[0]):
        return False
    return "&" in piece or "sig=" not in token or re.split("[;&]", piece)[0] in ("http", "https")


def _is_known(name: str) -> bool:
    return name in _KNOWN or name.startswith(("x-", "X-"))


def _collect(texts: Sequence[str], *, sloppy: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Field of MountOptions -> parsed value, and the options for libfuse. The last one wins."""
    given: dict[str, Any] = {}
    fuse: dict[str, str] = {}
    for name, text in itertools.chain.from_iterable(map(split_options, texts)):
        if not _is_known(name):
            if sloppy:
                continue
            raise _unknown(name)
        if name in _FUSE:
            fuse[re.sub("^no|^a(?=sync)", "", name)] = name
        flag = _NEGATED.get(name, name)
        if flag not in _OPTIONS:
            continue
        target, option = _OPTIONS[flag]
        if option.parse is None:
            if text is not None:
                raise OptionError(f"the option {name} takes no value")
            given[target] = flag == name
        elif not text:
            raise OptionError(f"the option {name} needs a value: write {name}=…")
        else:
            try:
                given[target] = option.parse(text)
            except ValueError as exc:
                shown = redact(repr(text))
                raise OptionError(f"the option {name}={shown} is wrong: write {exc}") from None
    return given, tuple(fuse.values())


def check_options(texts: Sequence[str]) -> None:
    """Raise OptionError for names and values that no mount takes; no file is read."""
    _collect(texts, sloppy=False)


def _unknown(name: str) -> OptionError:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", name):
        return OptionError("one of the options is not NAME or NAME=VALUE")  # may be a secret
    if re.fullmatch("sv|s[a-z]|sip|spr|sig|sk[a-z]+", name):
        return OptionError(f"unknown option {name}: if it begins a SAS token, write sas= before it")
    nearest = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "see blobfs mount --help"
    return OptionError(f"unknown option {name}: {hint}")


def parse_mount(
    source: str,
    mountpoint: str,
    options: Sequence[str],
    *,
    now: datetime | None,
    sloppy: bool = False,
) -> MountOptions:
    """The mount that `source`, `mountpoint` and the texts of all `-o` ask for.

    Reads the `sas_file` or runs the `sas_command`, if there is one, and nothing else. A key must
    be named unless the mount is read-only and `norequire_encryption`, as whatever is written is
    encrypted. `now` None leaves it to the service whether the token is valid at this time.
    `sloppy` passes over options that nobody knows, as mount(8) asks for with -s. Raises
    OptionError or SasError, each with one line to show.
    """
    if not mountpoint:
        raise OptionError("the mount point is missing")
    chosen = parse_source(source, options, now=now, sloppy=sloppy)
    return replace(chosen, mountpoint=Path(mountpoint).absolute())


def parse_source(
    source: str, options: Sequence[str], *, now: datetime | None, sloppy: bool = False
) -> MountOptions:
    """The same for commands that work on the containers without mounting them."""
    where, token = split_source(source)
    given, fuse_options = _collect(options, sloppy=sloppy)
    text = given.pop("sas", None)
    sas_file, sas_dir = given.get("sas_file"), given.get("sas_dir")
    sas_command = given.get("sas_command")
    if sum(given is not None for given in (token, text, sas_file, sas_dir, sas_command)) != 1:
        raise OptionError(
            "give the SAS token once: as sas_file=, as sas_command=, as sas=, in the source, or in "
            "a sas_dir="
        )
    if (sas_dir is None) != bool(where.container):
        raise OptionError(
            f"the source {where.display!r} names "
            + (f"no container: write {EXAMPLE}" if sas_dir is None else "one: sas_dir has several")
        )
    if sas_file is not None:
        text = read_sas_file(sas_file)
    if sas_command is not None:
        text = run_sas_command(sas_command)
    if text is not None:
        token = token_for(where, text)
    chosen = MountOptions(
        source=where,
        mountpoint=Path("/"),
        fuse_options=fuse_options,
        sas=token,
        **given,
    )
    if sas_dir is not None:
        accesses, notes = accesses_in(sas_dir, where, now=now, read_only=chosen.read_only)
    else:
        assert token is not None
        accesses = [Access(where, token, sas_file, sas_command or ())]
        notes = check(
            token, now=now, scheme=where.scheme, prefix=where.prefix, read_only=chosen.read_only
        )
    chosen = replace(
        chosen,
        accesses=tuple(accesses),
        notes=tuple(notes),
        read_only=chosen.read_only or not any(access.may_write for access in accesses),
        file_mode=chosen.file_mode & ~chosen.umask,
        dir_mode=chosen.dir_mode & ~chosen.umask,
    )
    if chosen.protocol != "2.1":
        always = "2.0", REGION_LENGTH_2_0
        if "region_size" in given and (chosen.protocol, chosen.region_size) != always:
            raise OptionError(
                "region_size goes with protocol=2.1: 2.0 always has regions of 4M, 1.0 has none"
            )
        chosen = replace(chosen, region_size=REGION_LENGTH_2_0)
    _check_together(chosen)
    return chosen


def _check_together(chosen: MountOptions) -> None:
    """Raise OptionError for options that contradict each other."""
    if chosen.protocol < chosen.min_protocol:
        raise OptionError(
            f"protocol={chosen.protocol} would write what min_protocol={chosen.min_protocol} "
            "refuses to read"
        )
    if chosen.allow_other and "allow_root" in chosen.fuse_options:
        raise OptionError("allow_other and allow_root exclude each other: give one")
    if chosen.key_file is None and chosen.key_passphrase_file is not None:
        raise OptionError("key_passphrase_file is for a key_file: give key_file=, too")
    if chosen.key_command is None and chosen.key_command_timeout is not None:
        raise OptionError("key_command_timeout is for a key_command: give key_command=, too")
    if not (chosen.key_file or chosen.key_vault or chosen.key_provider or chosen.key_command):
        if chosen.key_id is not None:
            raise OptionError("key_id chooses a key of the key_file: give key_file=, too")
        if not chosen.read_only or chosen.require_encryption:
            raise OptionError(
                "key_file= is missing: make one with blobfs keys generate FILE, or give "
                "key_vault=, key_provider= or key_command= "
                "(only ro,norequire_encryption needs none)"
            )


def kernel_options(chosen: MountOptions) -> set[str]:
    """The options for `pyfuse3.init`, which passes each as one `-o` in ASCII to libfuse."""
    name = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b",\\" else f"\\{byte:03o}"
        for byte in chosen.source.display.encode()
    )
    options = {f"fsname={name}", "subtype=blobfs", "default_permissions", *chosen.fuse_options}
    if chosen.allow_other:
        options.add("allow_other")
    if chosen.read_only:
        options.add("ro")
    return options
