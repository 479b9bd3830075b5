"""Whose key it is, how often it is asked for, and what an installed package can add."""

import base64
import sys
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfs import sas
from blobfs.envelope import EncryptionData, Kek, KeySet, Protocol, WrappedKey, pack_cek
from blobfs.errors import (
    BlobfsError,
    Corrupt,
    KeyFileError,
    KeyRefused,
    KeyUnavailable,
    KeyUnknown,
    OptionError,
    WrongKey,
)
from blobfs.keyring import Keyring
from blobfs.options import parse_mount
from blobfs.providers import CommandProvider, KeyProvider, LocalKeys, Outside, VaultProvider
from blobfs.session import open_keyring
from tests import keycommand

PAYLOAD = pack_cek(Protocol.V2_1, bytes(range(32)))
NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Remote:
    """A provider that keeps its key elsewhere; `behave` is what happens there at each call."""

    name = "remote"

    def __init__(self, key_id: str = "r", *, can_wrap: bool = True) -> None:
        self.key_id: str | None = key_id
        self.algorithm = "A256KW"
        self.can_wrap = can_wrap
        self.kek = Kek(key_id, bytes(32))
        self.calls: list[str] = []
        self.behave: Callable[[], object] = lambda: None
        self.is_closed = False

    def serves(self, key_id: str) -> bool:
        return key_id == self.kek.key_id

    async def wrap(self, payload: bytes) -> WrappedKey:
        self.calls.append("wrap")
        await self._happens()
        return self.kek.wrap(payload)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        self.calls.append("unwrap")
        await self._happens()
        return self.kek.unwrap(wrapped)

    async def _happens(self) -> None:
        await trio.lowlevel.checkpoint()
        outcome = self.behave()
        if isinstance(outcome, trio.Event):
            await outcome.wait()

    async def aclose(self) -> None:
        self.is_closed = True


def raises(exc: Exception) -> Callable[[], object]:
    def behave() -> object:
        raise exc

    return behave


def key_set(*keys: Kek) -> KeySet:
    return KeySet(keys, keys[0])


# Whose key it is


async def test_the_own_key_comes_first_then_the_set_then_the_providers() -> None:
    first, second = Remote("r"), Remote("s")
    ring = Keyring(key_set(Kek("f", b"f" * 32), Kek("r", bytes(32))), first, second, wrapping=first)
    by_key = {key_id: Kek(key_id, b"f" * 32 if key_id == "f" else bytes(32)) for key_id in "frs"}
    assert (await ring.wrap(PAYLOAD)).key_id == "r"
    for key_id, kek in by_key.items():
        assert await ring.unwrap(kek.wrap(PAYLOAD[::-1])) == PAYLOAD[::-1], key_id
    assert (first.calls, second.calls) == (["wrap", "unwrap"], ["unwrap"])

    ring = Keyring(key_set(Kek("r", bytes(32))), first)  # now the set has it as its own
    assert await ring.unwrap(by_key["r"].wrap(PAYLOAD)) == PAYLOAD
    assert (await ring.wrap(PAYLOAD)).key_id == "r"
    assert first.calls == ["wrap", "unwrap"]


async def test_a_key_that_nobody_has_is_unknown_by_its_id() -> None:
    remote = Remote()
    stranger = Kek("stranger", bytes(32)).wrap(PAYLOAD)
    for ring in (Keyring(None), Keyring(None, remote), Keyring(key_set(Kek("f", bytes(32))))):
        with pytest.raises(KeyUnknown, match="none of the mount's keys is 'stranger'"):
            await ring.unwrap(stranger)
    assert remote.calls == []


async def test_nothing_is_wrapped_under_an_id_that_leads_elsewhere() -> None:
    class Forgetful(Remote):
        def serves(self, key_id: str) -> bool:
            return False

    same, forgetful = Remote("f"), Forgetful()
    same.key_id = forgetful.key_id = None  # told by what they wrap
    taken = Keyring(key_set(Kek("f", b"f" * 32)), same, wrapping=same)
    with pytest.raises(WrongKey, match="remote wraps under the id 'f', which is that of another"):
        await taken.wrap(PAYLOAD)
    with pytest.raises(KeyUnknown, match="none of the mount's keys is 'r'"):
        await Keyring(None, forgetful).wrap(PAYLOAD)


async def test_without_a_key_nothing_is_encrypted() -> None:
    for ring in (Keyring(None), Keyring(None, Remote(can_wrap=False))):
        assert not ring.can_write
        with pytest.raises(KeyUnknown, match="no key to encrypt with"):
            await ring.probe()


def opened(tmp_path: Path, *options: str) -> Keyring:
    token = sas.create("acct", "a2V5", "cont", permissions="rl", expiry=NOW + timedelta(days=1))
    texts = (f"sas={token}", *options)
    where = "https://acct.blob.core.windows.net/cont"
    return open_keyring(parse_mount(where, str(tmp_path), texts, now=NOW))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    keys = ", ".join(
        f'{{"kty": "oct", "kid": "{kid}", "k": "{base64.urlsafe_b64encode(size * b"k").decode()}"}}'
        for kid, size in (("short", 16), ("file", 32))
    )
    path.write_text(f'{{"keys": [{keys}]}}'.replace("=", ""))
    return path


@pytest.mark.parametrize(
    ("options", "key_id"),
    [
        ("", keycommand.KEY_ID),  # outside of the file before it
        (f"key_id={keycommand.KEY_ID}", keycommand.KEY_ID),
        ("key_id=file", "file"),
    ],
)
async def test_beside_a_key_file_a_command_wraps_unless_key_id_names_a_key_of_the_file(
    tmp_path: Path, key_file: Path, options: str, key_id: str
) -> None:
    command = f"key_command={keycommand.install(tmp_path)}"
    ring = opened(tmp_path, f"key_file={key_file}", command, *filter(None, [options]))
    assert (await ring.wrap(PAYLOAD)).key_id == key_id
    assert await ring.unwrap(Kek("file", b"k" * 32).wrap(PAYLOAD)) == PAYLOAD


def test_a_key_that_only_unwraps_cannot_be_named(tmp_path: Path, key_file: Path) -> None:
    command = f"key_command={keycommand.install(tmp_path)}"
    with pytest.raises(KeyFileError, match="key 'short' only unwraps"):
        opened(tmp_path, f"key_file={key_file}", command, "key_id=short")


def test_a_name_that_no_key_has_is_refused(tmp_path: Path, key_file: Path) -> None:
    vault = "key_vault=https://v.vault.azure.net/keys/mine/v1"
    with pytest.raises(KeyFileError, match="no key has the kid 'v2'"):
        opened(tmp_path, f"key_file={key_file}", vault, "key_id=v2")


# How often it is asked for


def encrypted(kek: Kek) -> EncryptionData:
    return EncryptionData(Protocol.V2_1, kek.wrap(PAYLOAD), 65536, b"")


async def test_a_provider_is_called_once_however_many_ask_at_once_and_later() -> None:
    remote = Remote()
    ring = Keyring(None, remote)
    data = encrypted(remote.kek)
    gate = trio.Event()
    remote.behave = lambda: gate
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ring.content_key, data)
        await wait_all_tasks_blocked()
        gate.set()
    assert await ring.content_key(data) == bytes(range(32))
    assert remote.calls == ["unwrap"]


async def test_what_was_wrapped_here_is_not_asked_for() -> None:
    remote = Remote()
    ring = Keyring(None, remote)
    assert await ring.unwrap(await ring.wrap(PAYLOAD)) == PAYLOAD
    assert remote.calls == ["wrap"]


async def test_a_failure_is_everybodys_and_not_remembered() -> None:
    remote = Remote()
    ring = Keyring(None, remote)
    data = encrypted(remote.kek)
    remote.behave = raises(KeyUnavailable("away"))
    failed = []

    async def ask() -> None:
        with pytest.raises(KeyUnavailable, match="away"):
            await ring.content_key(data)
        failed.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert (len(failed), remote.calls) == (5, ["unwrap"])
    remote.behave = lambda: None
    assert await ring.content_key(data) == bytes(range(32))


async def test_one_who_asks_and_leaves_leaves_the_others_their_answer() -> None:
    remote = Remote()
    ring = Keyring(None, remote)
    data = encrypted(remote.kek)
    remote.behave = trio.Event
    answers = []
    leaving = trio.CancelScope()

    async def leave() -> None:
        with leaving:
            await ring.content_key(data)

    async def stay() -> None:
        answers.append(await ring.content_key(data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(stay)
        await wait_all_tasks_blocked()
        remote.behave = lambda: None
        leaving.cancel()
    assert answers == [bytes(range(32))] * 3
    assert remote.calls == ["unwrap"] * 2


async def test_the_deadline_of_an_operation_covers_the_call(autojump_clock: MockClock) -> None:
    remote = Remote()
    remote.behave = trio.Event
    ring = Keyring(None, Outside(remote, limit=100))
    with pytest.raises(trio.TooSlowError), trio.fail_after(3):
        await ring.wrap(PAYLOAD)
    assert trio.current_time() < 4


async def test_a_cached_key_still_answers_for_its_protocol() -> None:
    remote = Remote()
    ring = Keyring(None, remote)
    data = encrypted(remote.kek)
    assert await ring.content_key(data) == bytes(range(32))
    with pytest.raises(Corrupt, match=r"not made for protocol 2\.0"):
        await ring.content_key(EncryptionData(Protocol.V2_0, data.wrapped, 4 << 20, b""))


async def test_a_key_file_is_asked_without_a_checkpoint() -> None:
    kek = Kek("f", bytes(32))
    ring = Keyring(key_set(kek))
    with trio.CancelScope() as scope:
        scope.cancel()  # the next checkpoint would end this
        assert await ring.unwrap(kek.wrap(PAYLOAD)) == PAYLOAD
        assert await ring.content_key(encrypted(kek)) == bytes(range(32))
        assert (await ring.wrap(PAYLOAD)).key_id == "f"
    assert not scope.cancelled_caught


async def test_keys_are_dropped_and_providers_closed_at_the_end() -> None:
    class Keys(KeySet):
        """With room for a weak reference."""

    remote, keys = Remote(), Keys([Kek("f", bytes(32))], None)
    alive = weakref.ref(keys)
    ring = Keyring(keys, Outside(remote, limit=1))
    del keys
    wrapped = await ring.wrap(PAYLOAD)
    await ring.aclose()
    assert alive() is None
    assert remote.is_closed
    with pytest.raises(KeyUnknown):
        await ring.unwrap(wrapped)


async def test_a_provider_that_does_not_close_does_not_stop_the_end(
    autojump_clock: MockClock,
) -> None:
    class Stuck(Remote):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    class Broken(Remote):
        async def aclose(self) -> None:
            raise RuntimeError

    last = Remote()
    outside = [Outside(each, limit=60) for each in (Stuck("a"), Broken("b"), last)]
    await Keyring(None, *outside).aclose()
    assert last.is_closed
    assert trio.current_time() < 10


# While the provider is away


async def test_what_could_not_be_stored_is_kept_without_asking_anybody() -> None:
    remote = Remote()
    ring = Keyring(None, Outside(remote, limit=9))
    await ring.probe()
    remote.calls.clear()
    remote.behave = raises(KeyUnavailable("away"))
    kept = [await ring.wrap_to_keep(PAYLOAD), await ring.wrap_to_keep(PAYLOAD[::-1])]
    assert remote.calls == []
    later = Remote()
    ring = Keyring(None, Outside(later, limit=9))
    assert [await ring.unwrap(wrapped) for wrapped in kept] == [PAYLOAD, PAYLOAD[::-1]]
    assert later.calls == ["unwrap"]
    assert kept[0].key_id == "r"
    assert PAYLOAD not in kept[0].encrypted_key


async def test_with_a_key_file_what_is_kept_is_wrapped_as_what_is_stored() -> None:
    ring = Keyring(key_set(Kek("f", bytes(32))))
    await ring.probe()
    assert (await ring.wrap_to_keep(PAYLOAD)).algorithm == "A256KW"


@pytest.mark.parametrize(
    ("algorithm", "encrypted"),
    [
        ("A256KW", b""),
        ("A256KW", b"\0"),
        ("A256KW", b"\0\x30" + bytes(48)),
        ("A256KW", b"\xff\xff" + bytes(96)),
        ("A256KW", b"\0\0" + bytes(48)),
        ("A256KW", b"\0\x30" + bytes(96)),
        ("", b"\0\x30" + bytes(96)),
        ("blobfs-standby:A256KW", b"\0\x30" + bytes(96)),
        ("A256KW", b"\0\x30" + Kek("f", bytes(32)).wrap(PAYLOAD).encrypted_key + bytes(48)),
    ],
)
async def test_a_malformed_standby_form_is_the_wrong_key(algorithm: str, encrypted: bytes) -> None:
    ring = Keyring(key_set(Kek("f", bytes(32))))
    with pytest.raises(WrongKey):
        await ring.unwrap(WrappedKey("f", f"blobfs-standby:{algorithm}", encrypted))


# What is outside of this process


@pytest.mark.parametrize("kind", [KeyUnknown, WrongKey, KeyRefused, KeyUnavailable])
async def test_what_the_contract_names_is_passed_on(kind: type[BlobfsError]) -> None:
    remote = Remote()
    remote.behave = raises(kind("why"))
    for call in (
        Outside(remote, limit=9).wrap(PAYLOAD),
        Outside(remote, limit=9).unwrap(remote.kek.wrap(PAYLOAD)),
    ):
        with pytest.raises(kind, match="why") as caught:
            await call
        assert caught.value.__context__ is None


async def test_any_other_failure_shows_its_type_and_no_text() -> None:
    remote = Remote()
    remote.behave = raises(ValueError(f"cannot wrap {PAYLOAD!r}"))
    with pytest.raises(KeyUnavailable) as caught:
        await Outside(remote, limit=9).wrap(PAYLOAD)
    assert str(caught.value) == "remote failed with ValueError"
    assert caught.value.__context__ is None


async def test_a_provider_of_the_wrong_kind_is_no_more_than_of_no_use() -> None:
    class Synchronous(Remote):
        def wrap(self, payload: bytes) -> WrappedKey:  # type: ignore[override]
            raise ValueError(repr(payload))

    class Vague(Remote):
        async def wrap(self, payload: bytes) -> WrappedKey:
            return None  # type: ignore[return-value]

    with pytest.raises(KeyUnavailable, match="remote failed with ValueError"):
        await Outside(Synchronous(), limit=9).wrap(PAYLOAD)
    with pytest.raises(KeyUnavailable, match="answered with something that is no wrapped key"):
        await Outside(Vague(), limit=9).wrap(PAYLOAD)


async def test_a_slow_provider_is_given_up(autojump_clock: MockClock) -> None:
    remote = Remote()
    remote.behave = trio.Event
    with pytest.raises(KeyUnavailable, match="remote gave no answer within 9 s"):
        await Outside(remote, limit=9).unwrap(remote.kek.wrap(PAYLOAD))


async def test_a_trusted_provider_is_proved_once_a_key_and_others_every_time() -> None:
    for trusted, calls in ((True, ["wrap", "unwrap", "wrap"]), (False, ["wrap", "unwrap"] * 2)):
        remote = Remote()
        outside = Outside(remote, limit=9, trusted=trusted)
        await outside.wrap(PAYLOAD)
        await outside.wrap(PAYLOAD)
        assert remote.calls == calls


# Packages

MODULE = """
from blobfs.envelope import Kek
from blobfs.errors import OptionError
from blobfs.providers import LocalKeys
from blobfs.envelope import KeySet

class Provider(LocalKeys):
    name = "acme"

def factory(argument, key_id):
    if argument == "bad":
        raise OptionError("acme: give a region")
    if argument == "bug":
        raise RuntimeError("secret")
    if argument == "none":
        return object()
    kek = Kek(key_id or f"acme/{argument}", bytes(32))
    return Provider(KeySet([kek], kek))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip leaves it, with a provider `acme` and one that is broken."""
    site = tmp_path / "site"
    info = site / "blobfs_acme-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "blobfs_acme.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blobfs-acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[blobfs.key_providers]\nacme = blobfs_acme:factory\nbroken = no_such_module:factory\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "blobfs_acme", raising=False)


@pytest.mark.usefixtures("package")
async def test_a_package_adds_a_provider(tmp_path: Path) -> None:
    ring = opened(tmp_path, "key_provider=acme:eu-1:x")
    wrapped = await ring.wrap(PAYLOAD)
    assert wrapped.key_id == "acme/eu-1:x"
    assert await opened(tmp_path, "key_provider=acme:eu-1:x").unwrap(wrapped) == PAYLOAD
    named = opened(tmp_path, "key_provider=acme", "key_id=mine")
    assert (await named.wrap(PAYLOAD)).key_id == "mine"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("acne", "there is no key_provider acne: there is acme, broken"),
        ("acme:bad", "acme: give a region"),
        ("acme:bug", "the key_provider acme cannot be used: RuntimeError"),
        ("acme:none", "the key_provider acme is none: it lacks methods of the contract"),
        ("broken", "the key_provider broken cannot be used: ModuleNotFoundError"),
    ],
)
def test_a_provider_that_cannot_be_used_is_said_at_once(
    tmp_path: Path, option: str, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        opened(tmp_path, f"key_provider={option}")
    assert str(caught.value) == message
    assert caught.value.__context__ is None


def test_without_any_package_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no key_provider acme: no installed package has any"):
        opened(tmp_path, "key_provider=acme")


def test_all_providers_keep_the_contract() -> None:
    vault = VaultProvider("https://v.vault.azure.net/keys/k/1", limit=1, credential=object())
    for provider in (
        LocalKeys(key_set(Kek("f", bytes(32)))),
        CommandProvider([sys.executable], None),
        vault,
        Outside(vault, limit=1),
    ):
        assert isinstance(provider, KeyProvider)
