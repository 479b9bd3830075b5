"""Files and sockets of this machine: key files, recovery files, the status socket."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blobfs import control, logs
from blobfs.envelope import load_key_set
from blobfs.errors import KeyFileError, RecoveryError
from blobfs.recovery import RecoveryFile, read_description
from blobfs.status import MountStatus, Report


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """A private file with this content, in memory."""
    descriptor = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def jwk(data: bytes) -> None:
    """A key file that is accepted wraps, and unwraps what it has wrapped. One that is refused is
    refused in one line with no key in it."""
    with _file(data) as path:
        refusal = ""
        try:
            keys = load_key_set(path)
        except KeyFileError as exc:
            refusal = str(exc)
    if refusal:
        assert "\n" not in refusal
        assert not [secret for secret in _secrets(data) if secret in refusal]
        return
    assert keys.key_ids
    payload = b"p" * 40
    wrapped = keys.wrap(payload)
    assert keys.wrapping is not None
    if keys.wrapping.can_unwrap:
        assert keys.unwrap(wrapped) == payload


def _secrets(data: bytes) -> Iterator[str]:
    """What could be key material: the members k, d, p and q of each key."""
    root: Any = None
    with suppress(ValueError, RecursionError):
        root = json.loads(data)
    keys = root.get("keys", [root]) if isinstance(root, dict) else []
    for key in keys if isinstance(keys, list) else []:
        for name in ("k", "d", "p", "q"):
            value = key.get(name) if isinstance(key, dict) else None
            if isinstance(value, str) and len(value) >= 20:
                yield value


def recovery_file(data: bytes) -> None:
    """What is accepted describes a blob that can be put at the service: text where text belongs,
    holes within the content, and the content as long as it says."""
    with _file(data) as path:
        try:
            file = read_description(path)
        except RecoveryError:
            return
    _check(file, len(data))


def _check(file: RecoveryFile, size: int) -> None:
    assert 0 <= file.blob_size < size
    assert all(0 <= start <= start + length <= file.plain_size for start, length in file.unknown)
    texts = [file.container_url, file.name, file.etag, file.reason, file.created, file.seal]
    properties = file.properties
    texts += [*properties.metadata, *properties.metadata.values(), properties.tier or ""]
    texts += [*(properties.tags or {}), *(properties.tags or {}).values()]
    "".join(texts).encode()


class _Mount(MountStatus):
    """A mount without anything in it: only how it is asked is looked at here."""

    def __init__(self) -> None:
        pass

    def report(self) -> Report:
        return {"version": "some"}


def status_socket(data: bytes) -> None:
    """Whoever asks gets one line of JSON, and no request is a bug; what a daemon answers is an
    object or refused."""
    level = logs.level()
    try:
        line = control.reply_to(data, _Mount().answer)
    finally:
        logs.set_level(level)
    assert "\n" not in line
    assert "a bug in blobfs" not in line
    answer: Mapping[str, Any] = control.parse_answer(line.encode())
    assert answer.keys() & {"error", "version", "log_level"}
    with suppress(ValueError):
        assert isinstance(control.parse_answer(data), dict)
