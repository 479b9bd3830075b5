"""One mount from start to end: the composition root, and the process around it.

The process that was started forks before it does anything. The child checks the token, mounts,
and only then leaves the session: under systemd's automount the kernel lets just the helper's
process group pass, so a mount from a new session would wait for itself. The parent stays until
the mount answers, or says in one line why there is none.
"""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from blobfs import control, logs
from blobfs.attributes import Defaults, Kind, kind_of
from blobfs.blobs import BlobInfo, Client, Container, RetryPolicy
from blobfs.draft import PAGE, PagePool
from blobfs.ending import Ending
from blobfs.envelope import Protocol
from blobfs.errors import (
    BlobfsError,
    Denied,
    MountRefused,
    NotFound,
    OptionError,
    SasTimeError,
    TokenRefused,
    Unavailable,
    Untrusted,
    UsageError,
    root_cause,
)
from blobfs.fs import Filesystem, Store, StorePolicy, Volume
from blobfs.fs.store import ATTRIBUTE_DELAY, RETRY_DELAY
from blobfs.fuse import Operations
from blobfs.keeper import keep
from blobfs.keyring import Keyring
from blobfs.mountinfo import blobfs_at, is_automount, is_dead, unmount
from blobfs.options import MountOptions, kernel_options
from blobfs.probing import granted
from blobfs.reader import Reader, ReadPolicy
from blobfs.renewal import Renewal
from blobfs.sas import check, clock_note, redact, untimely
from blobfs.selfread import read_some
from blobfs.service import Service
from blobfs.session import open_keyring
from blobfs.spool import Spool
from blobfs.status import MountStatus
from blobfs.writer import WritePolicy

log = logging.getLogger(__name__)

EXIT_USAGE = 1
EXIT_FAILURE = 32
"""mount(8)'s exit statuses."""

LAST_CHANGES_TIME = 300.0
"""Seconds, at the end of a mount, for attributes that are not stored yet and deletions under way.
What closes have not stored has as long as it takes."""

READ_AHEAD_KIB = 1024
"""The kernel's largest FUSE read; without it, it asks for 128 KiB at a time."""

MAX_TASKS = 256
"""FUSE requests in hand at once: 64 stalled readers must leave room for others."""


def mount(options: MountOptions) -> int:
    """Mount, and return the exit status: when the mount answers, or in the foreground when it
    has ended."""
    if options.foreground:
        return _run(options, _say_nothing)
    receiver, sender = os.pipe()
    if os.fork() == 0:
        os.close(receiver)
        status = EXIT_FAILURE
        if is_automount(options.mountpoint):
            keep(options, sender)
        try:
            status = _run(options, lambda: _detach(sender))
        finally:
            os._exit(status)
    os.close(sender)
    # The child writes one byte when the mount answers; when it ends without, so does the pipe.
    if os.read(receiver, 1):
        return 0
    _, wait_status = os.wait()
    return os.waitstatus_to_exitcode(wait_status) or EXIT_FAILURE


def _say_nothing() -> None:
    """The foreground has nobody to tell that it is ready."""


def _detach(sender: int) -> None:
    """Become a daemon and let the parent go."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.write(sender, b"1")
    os.close(sender)


def _run(options: MountOptions, ready: Callable[[], None]) -> int:
    os.umask(0o077)
    try:
        logs.configure(
            options.log_level,
            options.log_file,
            foreground=options.foreground,
            fields={
                "BLOBFS_MOUNTPOINT": str(options.mountpoint),
                "BLOBFS_SOURCE": options.source.display,
            },
        )
        keyring = open_keyring(options)
        _check_mountpoint(options.mountpoint)
        for note in options.notes:
            print(f"blobfs: {note}", file=sys.stderr)
        trio.run(_serve, options, keyring, ready)
    except BaseException as exc:
        cause = root_cause(exc)
        if not isinstance(cause, BlobfsError | OSError):
            log.critical("a bug in blobfs", exc_info=exc)
        print(f"blobfs: {_explain(cause)}", file=sys.stderr)
        return EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILURE
    return 0


def _explain(exc: BaseException) -> str:
    """Why there is no mount, and what to do, in one line."""
    text = redact(str(exc)) or type(exc).__name__
    if isinstance(exc, TokenRefused):
        text += "; get a new token and put it into sas_file"
    elif isinstance(exc, Denied):
        text += "; the token needs at least the permissions r and l"
    elif isinstance(exc, Untrusted):
        text += "; nothing was sent; see The network in the README"
    return " ".join(text.split())


def _check_mountpoint(path: Path) -> None:
    if blobfs_at(path) is not None:
        if not is_dead(path):
            raise OptionError(f"{path} has a blobfs mount already; unmount it with: umount {path}")
        log.warning("the daemon of an earlier mount on %s was killed; its mount is removed", path)
        unmount(path, "-l")
    try:
        is_directory = path.is_dir()
    except OSError as exc:
        raise OptionError(f"the mount point {path} cannot be used: {exc.strerror}") from None
    if not is_directory:
        raise OptionError(f"the mount point {path} is not a directory; make it with: mkdir {path}")


async def _serve(options: MountOptions, keyring: Keyring, ready: Callable[[], None]) -> None:
    """Run the mount until it is unmounted or told to end."""
    spool = Spool(options.spool_dir, PAGE, options.spool_size)
    async with (
        aclosing(keyring),
        Client(
            connections=options.connections, retry=RetryPolicy.within(options.timeout)
        ) as client,
        trio.open_nursery() as nursery,
    ):
        tokens = [Renewal(client, access, patience=options.timeout) for access in options.accesses]
        markers, volumes = await _volumes(client, tokens, options, keyring)
        if not any(volume.writable for volume in volumes):
            options = replace(options, read_only=True)
        if not options.read_only:
            await keyring.probe()
        pool = PagePool(spool, options.buffer_size)
        fs = _build(options, volumes, keyring, pool, nursery)
        if options.sas_dir is None and markers[0] is not None:
            marker = fs.store.entry(Kind.DIRECTORY, markers[0])
            fs.store.take_up(fs.store.inodes.root, marker, fs.store.fresh_until())
        operations = Operations(fs, options.timeout)
        status = MountStatus(
            options,
            lambda: [token.access for token in tokens],
            keyring,
            client,
            pool,
            fs,
            operations,
        )
        if options.metrics is not None:
            from blobfs.prometheus import Endpoint  # 0.1 s that other mounts need not wait

            nursery.start_soon(Endpoint(options.metrics).serve, status)
        service = Service(lambda: _status(options, fs, tokens), lambda: _reload(options))
        end = Ending()
        unmounted = False
        # What is there by now stays. Without it a full collection, such as the listing of a
        # thousand files has, takes less than a millisecond instead of 14.
        gc.collect()
        gc.freeze()
        _init(operations, options)
        try:
            nursery.start_soon(_end_on_signal)
            nursery.start_soon(_save_attributes, fs)
            nursery.start_soon(_retry, fs)
            nursery.start_soon(service.run)
            for token in tokens:
                nursery.start_soon(token.watch)
            nursery.start_soon(_announce, options, status, tokens, service, end, nursery, ready)
            await pyfuse3.main(max_tasks=MAX_TASKS)
            unmounted = blobfs_at(options.mountpoint) is None
        finally:
            service.stopping()
            end.let_go()
            await _drain(fs, unmounted=unmounted)
            pyfuse3.close(unmount=True)
        nursery.cancel_scope.cancel()
    spool.close()
    log.info("unmounted %s", options.mountpoint)


async def _volumes(
    client: Client, tokens: list[Renewal], options: MountOptions, keyring: Keyring
) -> tuple[list[BlobInfo | None], list[Volume]]:
    """What the tokens give access to, looked at; and the blobs that hold their roots' attributes.

    Raises ServiceError, or OptionError, SasError for what cannot be mounted so.
    """
    try:
        with trio.fail_after(options.timeout):
            markers = [await _check_source(client, token) for token in tokens]
            volumes = [await _volume(token, options, keyring) for token in tokens]
            return markers, volumes
    except Untrusted:
        raise
    except (trio.TooSlowError, Unavailable) as exc:
        last = f"; the last attempt: {exc}" if isinstance(exc, Unavailable) else ""
        raise Unavailable(
            f"{options.source.display} gave no answer within {options.timeout:g} s: "
            f"check the name and the network{last}"
        ) from None


def _init(operations: Operations, options: MountOptions) -> None:
    """Raises MountRefused; libfuse and fusermount3 have printed their reason."""
    try:
        pyfuse3.init(operations, str(options.mountpoint), kernel_options(options))
    except RuntimeError:
        raise MountRefused(
            "the kernel or fusermount3 refused the mount, see the line above: "
            "blobfs doctor looks for the reason"
        ) from None


async def _check_source(client: Client, token: Renewal) -> BlobInfo | None:
    """The marker of the folder to be mounted, if it has one.

    Raises what the service says, or OptionError when the folder is not there.
    """
    # Not the token's own container: there is nobody yet who could wait for another token.
    container = Container(client, token.container.url, token.token)
    prefix = token.access.source.prefix
    try:
        page = await container.list(prefix and prefix + "/", max_results=1)
    except NotFound:
        raise NotFound(
            f"{container.url} does not exist: check the names, or make the container first"
        ) from None
    except TokenRefused:
        if problem := untimely(token.access.sas, token.now()):
            note = clock_note(client.clock_skew)
            raise SasTimeError(f"{problem}; {note}" if note else problem) from None
        raise
    if not prefix:
        return None
    try:
        marker = await container.head(prefix)
    except NotFound:
        marker = None
    if marker is not None and kind_of(marker.metadata, marker.size) is Kind.DIRECTORY:
        return marker
    if not (page.blobs or page.prefixes or page.next_marker):
        if marker is not None:
            raise OptionError(f"{prefix!r} is a file, and only a folder can be mounted")
        raise OptionError(
            f"the container has no folder {prefix!r}; mount the container and mkdir it"
        )
    return None


async def _volume(token: Renewal, options: MountOptions, keyring: Keyring) -> Volume:
    """Raises SasError when a stored access policy does not give what a mount needs."""
    source, sas = token.access.source, token.access.sas
    rights = sas.permissions
    if rights is None:
        rights = await granted(token.container, source.prefix)
        known = replace(sas, permissions=rights)
        for note in check(
            known,
            now=None,
            scheme=source.scheme,
            prefix=source.prefix,
            read_only=options.read_only,
        ):
            print(f"blobfs: {note}", file=sys.stderr)
    return Volume(
        token.container,
        source.prefix,
        writable=not options.read_only and "w" in rights and keyring.can_write,
        may_tag="t" in rights,
        may_delete=lambda: "d" in (token.access.sas.permissions or rights),
    )


def _build(
    options: MountOptions,
    volumes: list[Volume],
    keyring: Keyring,
    pool: PagePool,
    nursery: trio.Nursery,
) -> Filesystem:
    defaults = Defaults(options.file_mode, options.dir_mode, options.uid, options.gid)
    reader = Reader(
        keyring,
        ReadPolicy(
            require_encryption=options.require_encryption,
            require_seal=options.require_seal,
            min_protocol=Protocol(options.min_protocol),
            cache_size=options.cache_size,
            readahead=options.readahead,
            timeout=options.timeout,
        ),
        nursery,
    )
    store = Store(
        reader=reader,
        keyring=keyring,
        pool=pool,
        policy=StorePolicy(
            defaults=defaults,
            metadata_ttl=options.metadata_ttl,
            overwrite_on_conflict=options.on_conflict == "overwrite",
            recovery_dir=options.spool_dir,
        ),
        write_policy=WritePolicy(
            protocol=Protocol(options.protocol),
            region_size=options.region_size,
            uploads=max(1, options.connections // 2),
            timeout=options.timeout,
        ),
        nursery=nursery,
        now_ns=time.time_ns,
    )
    root = store.inodes.root
    if options.sas_dir is None:
        (root.volume,) = volumes
    else:
        for access, volume in zip(options.accesses, volumes, strict=True):
            name = access.source.container
            store.inodes.add(root, name, store.bare_directory()).volume = volume
    reader.on_protocol_1 = lambda name: store.log_once(
        logging.WARNING,
        "this container has blobs of protocol 1.0, which cannot detect tampering; "
        "min_protocol=2.0 refuses them",
    )
    return Filesystem(store, options.list_page)


async def _announce(
    options: MountOptions,
    status: MountStatus,
    tokens: list[Renewal],
    service: Service,
    end: Ending,
    nursery: trio.Nursery,
    ready: Callable[[], None],
) -> None:
    """Once the mount and its status socket answer, say so, and until when its tokens are valid."""
    root = await trio.to_thread.run_sync(os.stat, options.mountpoint, abandon_on_cancel=True)
    _raise_read_ahead(root.st_dev)
    status.fs.primer.read_some = partial(read_some, options.mountpoint, root.st_dev)
    await nursery.start(control.serve, root.st_dev, status.answer)
    try:
        await end.hold(root.st_dev)
    except OSError as exc:
        log.warning("umount %s will not wait for the daemon: %s", options.mountpoint, exc)
    log.info("mounted %s on %s", options.source.display, options.mountpoint)
    if note := clock_note(status.client.clock_skew):
        log.warning("%s: expiry is judged by the service's", note)
    for token in tokens:
        log.info("%s", token.expiry_line())
    service.ready()
    ready()


def _status(options: MountOptions, fs: Filesystem, tokens: list[Renewal]) -> str:
    """What `systemctl status` shows; of several tokens the first to end."""
    first = min(tokens, key=lambda token: token.expiry or datetime.max.replace(tzinfo=UTC))
    unsaved = sum(draft.dirty for draft in list(fs.store.pool.drafts))
    stored = f"{unsaved} not stored yet" if unsaved else "all stored"
    return (
        f"{options.source.display}: {fs.inodes.open_handles} open, {stored}; {first.expiry_line()}"
    )


def _reload(options: MountOptions) -> None:
    """A log file that was rotated is opened anew; the level stays what it was made meanwhile.

    Tokens are looked at all the time, and keys stay those of the mount.
    """
    try:
        if options.log_file is not None:
            logs.configure(logs.level(), options.log_file, foreground=options.foreground)
    except OSError as exc:
        log.error("the log stays as it is: %s", exc)
    else:
        log.info("reloaded")


def _raise_read_ahead(device: int) -> None:
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD_KIB))
    except OSError as exc:
        log.debug("the kernel's read-ahead stays as it is: %s", exc)  # only root may raise it


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            pyfuse3.terminate()


async def _save_attributes(fs: Filesystem) -> None:
    while True:
        await trio.sleep(ATTRIBUTE_DELAY / 2)
        await fs.store.save_overdue(ATTRIBUTE_DELAY)


async def _retry(fs: Filesystem) -> None:
    while True:
        await trio.sleep(RETRY_DELAY)
        await fs.files.retry()


async def _drain(fs: Filesystem, *, unmounted: bool) -> None:
    if unmounted and fs.inodes.open_handles:
        # Ours or the kernel's: an unmount does not wait for releases of files closed just before.
        log.info("leaked handles: %d", fs.inodes.open_handles)
    await fs.files.drain()
    with trio.move_on_after(LAST_CHANGES_TIME, shield=True):
        await fs.store.save_last()
        await fs.store.deletions.drain()
