"""The containers of a mount and the SAS token for each: from a file, a directory of files, or an
external program."""

import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import trio

from blobfs.errors import OptionError, SasError
from blobfs.sas import Sas, check, redact, split_url, writable
from blobfs.source import Source

SUFFIX = ".sas"

COMMAND_TIME = 30.0
"""Seconds that a sas_command may take."""

_REAP_TIME = 5.0
_LONGEST = 64 * 1024  # a token is some 200 bytes, a connection string under 2 KiB


@dataclass(frozen=True, slots=True)
class Access:
    """One container, or a folder in it, and the token for it; `file` or `command` is where that
    came from, and where the next one will."""

    source: Source
    sas: Sas
    file: Path | None = None
    command: tuple[str, ...] = field(default=(), repr=False)

    @property
    def may_write(self) -> bool:
        """False only when the token says that it cannot."""
        return writable(self.sas) is not False

    @property
    def may_tag(self) -> bool:
        return self.sas.permissions is None or "t" in self.sas.permissions


def read_sas_file(path: Path) -> str:
    """The text of a `sas_file`. Raises SasError when it cannot be read or is not kept secret."""
    shown = redact(str(path))
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise SasError(f"cannot read the sas_file {shown}: not a regular file")
            content = file.read(_LONGEST + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a path"
        raise SasError(f"cannot read the sas_file {shown}: {reason}") from None
    # Its group may read it: a systemd credential of a service with User= has mode 0440.
    if mode & (stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        what = "written" if mode & (stat.S_IWGRP | stat.S_IWOTH) else "read"
        raise SasError(f"the sas_file {shown} can be {what} by others: chmod 600 it")
    if len(content) > _LONGEST:
        raise SasError(f"the sas_file {shown} is too long to hold a SAS token")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise SasError(f"the sas_file {shown} is not plain ASCII text") from None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO must not wait for a writer


async def ask_sas_command(command: Sequence[str]) -> str:
    """What the program prints on its standard output. Raises SasError.

    It runs without a shell, in a session of its own with nothing on its standard input, and is
    killed with its process group when it takes over `COMMAND_TIME`, prints too much, or this is
    cancelled. What it says on standard error goes where our own goes, never to the log. Messages
    have its name and not its arguments, which may be secret.
    """
    name = f"the sas_command {redact(os.path.basename(command[0]))}"
    try:
        process = await trio.lowlevel.open_process(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a program"
        raise SasError(f"{name} cannot be run: {reason}") from None
    ended = False
    output = bytearray()
    assert process.stdout is not None
    try:
        with trio.fail_after(COMMAND_TIME):
            async for chunk in process.stdout:
                output += chunk
                if len(output) > _LONGEST:
                    raise SasError(f"{name} prints too much to be a SAS token")
            status = await process.wait()
        ended = True
    except trio.TooSlowError:
        raise SasError(f"{name} gave no token within {COMMAND_TIME:g} s and was ended") from None
    finally:
        with trio.move_on_after(_REAP_TIME, shield=True):
            await process.stdout.aclose()
            if not ended:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    if status != 0:
        how = f"status {status}" if status > 0 else f"signal {-status}"
        raise SasError(f"{name} gave no token: it ended with {how}")
    try:
        return output.decode("ascii")
    except UnicodeDecodeError:
        raise SasError(f"{name} prints something that is not plain ASCII text") from None


def run_sas_command(command: Sequence[str]) -> str:
    """As `ask_sas_command`, where no event loop runs yet."""
    return trio.run(ask_sas_command, command)


def token_for(source: Source, text: str) -> Sas:
    """The token in `text`, which must not name another container than the source's.

    Only a SAS URL or a connection string say what they are for. Raises SasError.
    """
    url, token = split_url(text)
    if token is None:
        raise SasError("the SAS URL has no token: copy it with all that follows its ?")
    if url:
        try:
            other = Source.parse(url)
        except OptionError as exc:
            raise SasError(f"the SAS is for a place that cannot be mounted: {exc}") from None
        if other.endpoint != source.endpoint:
            raise SasError(f"the SAS is for {other.endpoint}, the source is {source.endpoint}")
        if other.container and other.container != source.container:
            raise SasError(
                f"the SAS is for the container {other.container}, "
                f"the source is the container {source.container}"
            )
    return token


def accesses_in(
    directory: Path, endpoint: Source, *, now: datetime | None, read_only: bool
) -> tuple[list[Access], list[str]]:
    """The containers of the account that have a usable `CONTAINER.sas` in `directory`, and what
    the user should be told of those and the others. Raises SasError when none is usable.
    """
    shown = redact(str(directory))
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except OSError as exc:
        raise SasError(f"cannot read the sas_dir {shown}: {exc.strerror}") from None
    accesses, notes = [], []
    for file in files:
        try:
            source = Source.parse(f"{endpoint.endpoint}/{file.stem}")
            token = token_for(source, read_sas_file(file))
            said = check(token, now=now, scheme=source.scheme, prefix="", read_only=read_only)
        except (OptionError, SasError) as exc:
            notes.append(f"{file.name} is left out: {exc}")
        else:
            accesses.append(Access(replace(source, prefix=""), token, file))
            notes += [f"{file.name}: {note}" for note in said]
    if not accesses:
        why = f": {notes[0]}" if notes else ""
        raise SasError(f"the sas_dir {shown} has no usable file CONTAINER{SUFFIX}{why}")
    return accesses, notes
