"""A command as a key provider, for any key management service or security module.

For each call it is started without a shell, in a session of its own, gets one JSON object on
standard input, and prints one:

    {"operation": "wrap", "kid": K, "key": PAYLOAD}          → {"kid": K, "alg": A, "key": WRAPPED}
    {"operation": "unwrap", "kid": K, "alg": A, "key": WRAPPED}           → {"key": PAYLOAD}

Keys are in padded Base64. A wrap has no "kid" when no option names one: the command chooses. What
it cannot do it answers as {"error": …}, one of `unknown`, `wrong`, `refused`, `unavailable`. Any
other end of it (status, output) counts as unavailable. No key is ever in its arguments or
environment.
"""

import base64
import binascii
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence

import trio

from blobfs.envelope import WrappedKey
from blobfs.errors import (
    BlobfsError,
    KeyRefused,
    KeyUnavailable,
    KeyUnknown,
    OptionError,
    WrongKey,
)
from blobfs.sas import redact

MAX_PROCESSES = 4
"""Commands at once; more wait, within the time that each call has."""

MAX_OUTPUT = 64 * 1024
"""Bytes that an answer may have: it needs some 5 KiB at most."""

_SHOWN = 300  # characters of its standard error in a message
_REAP_TIME = 5.0
# Keys in Base64, base64url or hexadecimal: 32 bytes have 43 characters and more.
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")

_ERRORS: dict[object, tuple[type[BlobfsError], str]] = {
    "unknown": (KeyUnknown, "has no key"),
    "wrong": (WrongKey, "says that this was not wrapped with key"),
    "refused": (KeyRefused, "refuses the use of key"),
    "unavailable": (KeyUnavailable, "cannot reach key"),
}


class CommandProvider:
    """A `KeyProvider`, to be used behind `Outside`, which limits its time and checks it."""

    name = "key_command"
    can_wrap = True

    def __init__(self, command: Sequence[str], key_id: str | None) -> None:
        """`key_id` is what wraps, if the command is not to choose. Raises OptionError when there
        is no such program."""
        program = shutil.which(command[0])
        if program is None:
            raise OptionError(f"the key_command {command[0]} is not there or not executable")
        self._command = [os.path.abspath(program), *command[1:]]
        self._slots = trio.CapacityLimiter(MAX_PROCESSES)
        self.key_id = key_id
        self.algorithm: str | None = None

    def serves(self, key_id: str) -> bool:
        """It is asked for every key that nobody else has."""
        return True

    async def wrap(self, payload: bytes) -> WrappedKey:
        request = {"operation": "wrap", "key": _encode(payload)}
        if self.key_id is not None:
            request["kid"] = self.key_id
        answer = await self._ask(request)
        kid, algorithm = answer.get("kid"), answer.get("alg")
        encrypted = _decode(answer.get("key"))
        if not isinstance(kid, str) or not isinstance(algorithm, str) or encrypted is None:
            raise KeyUnavailable('key_command answered a wrap without "kid", "alg" and "key"')
        self.algorithm = algorithm
        return WrappedKey(kid, algorithm, encrypted)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        answer = await self._ask(
            {
                "operation": "unwrap",
                "kid": wrapped.key_id,
                "alg": wrapped.algorithm,
                "key": _encode(wrapped.encrypted_key),
            }
        )
        payload = _decode(answer.get("key"))
        if payload is None:
            raise KeyUnavailable('key_command answered an unwrap without "key"')
        return payload

    async def aclose(self) -> None:
        """Nothing of it outlives a call."""

    async def _ask(self, request: dict[str, str]) -> dict[str, object]:
        async with self._slots:
            status, output, trouble = await _run(self._command, json.dumps(request).encode())
        if status != 0:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise KeyUnavailable(f"key_command ended with {how}{_shown(trouble)}")
        answer = _object(output)
        if answer is None:
            raise KeyUnavailable(f"key_command did not print one JSON object{_shown(trouble)}")
        if "error" in answer:
            default = KeyUnavailable, 'gave an "error" that is not known, for key'
            kind, text = _ERRORS.get(_text(answer["error"]), default)
            kid = request.get("kid", "of its own")
            raise kind(f"key_command {text} {kid!r}{_shown(trouble)}")
        return answer


async def _run(command: Sequence[str], request: bytes) -> tuple[int, bytes, bytes]:
    """Its exit status, what it printed, and how its standard error begins.

    However this ends, the command and all that it started in its session has been killed by then.
    """
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )
    except OSError as exc:
        raise KeyUnavailable(f"key_command cannot be started: {exc.strerror}") from None
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, trouble = bytearray(), bytearray()

    async def feed(stream: trio.abc.SendStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # it need not read
            await stream.send_all(request)
        await stream.aclose()

    async def collect(stream: trio.abc.ReceiveStream, into: bytearray, most: int) -> None:
        while chunk := await stream.receive_some(4096):
            into += chunk
            if len(into) > most:
                _kill_group(process.pid)
                return

    async def collect_beginning(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
        while chunk := await stream.receive_some(4096):
            into += chunk[: MAX_OUTPUT - len(into)]

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed, process.stdin)
            nursery.start_soon(collect, process.stdout, output, MAX_OUTPUT)
            nursery.start_soon(collect_beginning, process.stderr, trouble)
            await _wait_for_exit(process.pid)
            # What it left behind would keep the pipes open.
            _kill_group(process.pid)
    finally:
        # It has not been waited for yet, so the group's number is still its own.
        _kill_group(process.pid)
        with trio.move_on_after(_REAP_TIME, shield=True):
            for stream in (process.stdin, process.stdout, process.stderr):
                await stream.aclose()
            await process.wait()
    if len(output) > MAX_OUTPUT:
        raise KeyUnavailable(f"key_command printed more than {MAX_OUTPUT} bytes")
    if process.returncode is None:
        raise KeyUnavailable("key_command cannot be ended")
    return process.returncode, bytes(output), bytes(trouble)


async def _wait_for_exit(pid: int) -> None:
    """Return when the process has ended, and leave its status to be waited for."""
    descriptor = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _object(output: bytes) -> dict[str, object] | None:
    # The parser's exception holds the whole text, so it must not live on as a context.
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(output)
        if isinstance(answer, dict):
            return answer
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")


def _decode(value: object) -> bytes | None:
    with contextlib.suppress(ValueError, binascii.Error):
        return base64.b64decode(_text(value), validate=True) or None
    return None


def _shown(trouble: bytes) -> str:
    """The beginning of its standard error in one line, without anything that could be a key."""
    text = "".join(char if char.isprintable() else " " for char in trouble.decode(errors="replace"))
    text = _KEY_LIKE.sub("REDACTED", redact(" ".join(text.split())))
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "…"
    return f": {text}" if text else ""
