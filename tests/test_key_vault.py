"""key_vault: Azure's own client, with a vault in this process at the other end."""

import builtins
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA1

from blobfs.envelope import EncryptionData, Kek, KeySet, Protocol, WrappedKey, pack_cek
from blobfs.errors import (
    BlobfsError,
    KeyRefused,
    KeyUnavailable,
    KeyUnknown,
    OptionError,
    WrongKey,
)
from blobfs.keyring import Keyring
from blobfs.providers import Outside, VaultProvider
from tests.vault import HOST, TOKEN, Credential, Vault

PAYLOAD = bytes(range(40))
LIMIT = 20.0


@pytest.fixture(scope="module")
def one_vault() -> Vault:
    return Vault()


@pytest.fixture
def vault(one_vault: Vault) -> Iterator[Vault]:
    one_vault.calls.clear()
    yield one_vault
    one_vault.fails.clear()
    one_vault.answers.set()
    one_vault.is_there = True


def provider(vault: Vault, identifier: str, limit: float = LIMIT) -> Outside:
    inner = VaultProvider(
        identifier, limit=limit, credential=Credential(), transport=vault.transport()
    )
    return Outside(inner, limit=limit, trusted=True)


async def test_the_key_id_is_the_keys_identifier_as_azures_sdks_have_it(vault: Vault) -> None:
    keyring = Keyring(None, provider(vault, vault.url("v1")))
    wrapped = await keyring.wrap(PAYLOAD)
    assert (wrapped.key_id, wrapped.algorithm) == (vault.url("v1"), "RSA-OAEP-256")
    assert await Keyring(None, provider(vault, vault.url("v1"))).unwrap(wrapped) == PAYLOAD
    await keyring.aclose()


async def test_the_first_wrap_is_proved_and_later_ones_ask_nobody(vault: Vault) -> None:
    keyring = Keyring(None, provider(vault, vault.url("v1")))
    await keyring.probe()
    assert vault.calls == ["get v1", "unwrapkey v1"]
    for _ in range(3):
        await keyring.wrap(PAYLOAD)
    assert vault.calls == ["get v1", "unwrapkey v1"]


async def test_without_a_version_the_newest_wraps_and_all_unwrap(vault: Vault) -> None:
    old = await provider(vault, vault.url("v1")).wrap(PAYLOAD)
    keyring = Keyring(None, provider(vault, vault.url()))
    new = await keyring.wrap(PAYLOAD)
    assert new.key_id == vault.url("v2")
    assert await keyring.unwrap(old) == PAYLOAD


async def test_without_the_right_to_read_the_key_the_vault_wraps(vault: Vault) -> None:
    vault.fails["get"] = 403, "no keys/get"
    wrapped = await provider(vault, vault.url("v1")).wrap(PAYLOAD)
    assert vault.calls == ["get v1", "wrapkey v1", "unwrapkey v1"]
    assert wrapped.key_id == vault.url("v1")
    with pytest.raises(KeyRefused, match="names no version"):
        await provider(vault, vault.url()).wrap(PAYLOAD)


async def test_keys_wrapped_with_sha1_are_unwrapped(vault: Vault) -> None:
    keyring = Keyring(None, provider(vault, vault.url("v1")))
    public_key = vault.keys["v1"].public_key()
    encrypted = public_key.encrypt(PAYLOAD, OAEP(MGF1(SHA1()), SHA1(), None))
    assert await keyring.unwrap(WrappedKey(vault.url("v1"), "RSA-OAEP", encrypted)) == PAYLOAD
    with pytest.raises(WrongKey, match="does not unwrap 'RSA1_5'"):
        await keyring.unwrap(WrappedKey(vault.url("v1"), "RSA1_5", encrypted))


@pytest.mark.parametrize(
    "key_id",
    [
        f"https://{HOST}.evil.test/keys/mine/v1",
        f"https://evil.test/keys/mine/v1?{HOST}",
        f"https://user@{HOST}/keys/mine/v1",
        f"https://{HOST}:444/keys/mine/v1",
        f"http://{HOST}/keys/mine/v1",
        f"https://{HOST}/keys/other/v1",
        f"https://{HOST}/keys/mine/v1/unwrapkey",
        f"https://{HOST}/keys/mine/../other/v1",
        f"https://{HOST}/keys/mine",
        f"https://{HOST}/secrets/mine/v1",
        f"https://{HOST}/keys/mine/v1#",
        "https://[/keys/mine/v1",
        "kms-1",
    ],
)
async def test_a_key_id_that_a_blob_names_leads_to_no_other_place(
    vault: Vault, key_id: str
) -> None:
    keyring = Keyring(None, provider(vault, vault.url("v1")))
    with pytest.raises(KeyUnknown, match="none of the mount's keys"):
        await keyring.unwrap(WrappedKey(key_id, "RSA-OAEP-256", bytes(256)))
    assert vault.calls == []


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, KeyRefused, "no login that the vault accepts"),
        (403, KeyRefused, "refuses the use of 'https://.*/v1'.*ask Ann"),
        (404, KeyUnknown, "has no key 'https://.*/v1'.*ask Ann"),
        (400, WrongKey, "does not unwrap this key.*ask Ann"),
        (409, KeyUnavailable, "cannot be used now.*ask Ann"),
        (503, KeyUnavailable, "cannot be used now.*ask Ann"),
    ],
)
async def test_what_the_vault_refuses_is_told_apart(
    vault: Vault,
    caplog: pytest.LogCaptureFixture,
    status: int,
    kind: type[BlobfsError],
    message: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    asked = provider(vault, vault.url("v1"))
    wrapped = await asked.wrap(PAYLOAD)
    vault.fails["unwrapkey"] = status, "ask Ann\nfor it"
    with pytest.raises(kind, match=message) as caught:
        await asked.unwrap(wrapped)
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert TOKEN not in str(caught.value) + caplog.text


async def test_a_key_that_the_vault_does_not_unwrap_is_the_wrong_one(vault: Vault) -> None:
    with pytest.raises(WrongKey, match="Decryption failed"):
        await provider(vault, vault.url("v1")).unwrap(
            WrappedKey(vault.url("v1"), "RSA-OAEP-256", bytes(256))
        )


async def test_a_vault_that_cannot_be_reached_may_be_asked_again(vault: Vault) -> None:
    asked = provider(vault, vault.url("v1"))
    wrapped = await asked.wrap(PAYLOAD)
    vault.is_there = False
    with pytest.raises(KeyUnavailable, match="key_vault cannot be reached: no route") as caught:
        await asked.unwrap(wrapped)
    assert caught.value.__context__ is None
    vault.is_there = True
    assert await asked.unwrap(wrapped) == PAYLOAD


async def test_a_vault_that_does_not_answer_is_given_up_in_time(vault: Vault) -> None:
    asked = provider(vault, vault.url("v1"), limit=0.3)
    vault.answers.clear()
    with pytest.raises(KeyUnavailable, match=r"key_vault gave no answer within 0\.3 s"):
        await asked.wrap(PAYLOAD)
    vault.answers.set()


async def test_many_readers_of_a_file_are_one_request(vault: Vault) -> None:
    payload = pack_cek(Protocol.V2_1, bytes(32))
    wrapped = await provider(vault, vault.url("v1")).wrap(payload)
    data = EncryptionData(Protocol.V2_1, wrapped, 65536, b"")
    keyring = Keyring(None, provider(vault, vault.url("v1")))
    vault.calls.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(keyring.content_key, data)
    assert await keyring.content_key(data) == bytes(32)
    assert [call for call in vault.calls if call.startswith("unwrapkey")] == ["unwrapkey v1"]


async def test_beside_a_key_file_each_has_its_own_files(vault: Vault) -> None:
    kek = Kek("old", bytes(32))
    asked = provider(vault, vault.url("v1"))
    keyring = Keyring(KeySet([kek], kek), asked, wrapping=asked)
    assert await keyring.unwrap(kek.wrap(PAYLOAD)) == PAYLOAD
    assert vault.calls == []
    assert (await keyring.wrap(PAYLOAD)).key_id == vault.url("v1")


@pytest.mark.parametrize(
    "identifier",
    ["mine", f"https://{HOST}", f"http://{HOST}/keys/mine/v1", f"https://{HOST}/keys/a/b/c"],
)
def test_what_is_no_identifier_is_refused(identifier: str) -> None:
    with pytest.raises(OptionError, match="key_vault is wrong: write https://VAULT"):
        VaultProvider(identifier, limit=LIMIT)


def test_without_the_extra_the_command_that_helps_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("azure.keyvault"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for module in [name for name in sys.modules if name.startswith("azure.keyvault")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(OptionError, match=r"pip install 'blobfs\[keyvault\]'"):
        VaultProvider(f"https://{HOST}/keys/mine/v1", limit=LIMIT)
