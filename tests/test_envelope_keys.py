"""KEKs and the key file."""

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA1
from jwcrypto.jwk import JWK

from blobfs.envelope import Kek, WrappedKey, generate_key_set, load_key_set, write_key_set
from blobfs.errors import KeyFileError, KeyUnknown, WrongKey

RSA = generate_private_key(65537, 2048)
RSA_JWK: dict[str, Any] = JWK.from_pyca(RSA).export(as_dict=True)
RSA_PUBLIC_JWK: dict[str, Any] = JWK.from_pyca(RSA.public_key()).export(as_dict=True)
SMALL_RSA_JWK: dict[str, Any] = JWK.from_pyca(generate_private_key(65537, 1024)).export(
    as_dict=True
)
PAYLOADS = [bytes(range(32)), bytes(range(40))]

KeyFile = Callable[[Any], Path]


def oct_key(kid: str, size: int = 32, /, **more: Any) -> dict[str, Any]:
    key: dict[str, Any] = JWK.generate(kty="oct", size=8 * size, kid=kid).export(as_dict=True)
    return key | more


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    def write(content: Any) -> Path:
        path = tmp_path / "keys.json"
        path.touch(0o600)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


# Wrapping


@pytest.mark.parametrize("payload", PAYLOADS, ids=len)
@pytest.mark.parametrize(
    ("kek", "algorithm"), [(Kek("a", bytes(32)), "A256KW"), (Kek("a", RSA), "RSA-OAEP-256")]
)
def test_kek_unwraps_what_it_wrapped(kek: Kek, algorithm: str, payload: bytes) -> None:
    wrapped = kek.wrap(payload)
    assert (wrapped.key_id, wrapped.algorithm) == ("a", algorithm)
    assert payload not in wrapped.encrypted_key
    assert kek.unwrap(wrapped) == payload


@pytest.mark.parametrize(
    ("kek", "wrapped", "payload"),
    [  # RFC 3394 sections 4.1, 4.2 and 4.6
        (
            "000102030405060708090A0B0C0D0E0F",
            "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5",
            "00112233445566778899AABBCCDDEEFF",
        ),
        (
            "000102030405060708090A0B0C0D0E0F1011121314151617",
            "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D",
            "00112233445566778899AABBCCDDEEFF",
        ),
        (
            "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F",
            "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21",
            "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F",
        ),
    ],
)
def test_aes_keys_of_every_length_unwrap(kek: str, wrapped: str, payload: str) -> None:
    key = Kek("a", bytes.fromhex(kek))
    assert key.algorithm == f"A{4 * len(kek)}KW"
    unwrapped = key.unwrap(WrappedKey("a", key.algorithm, bytes.fromhex(wrapped)))
    assert unwrapped == bytes.fromhex(payload)


@pytest.mark.parametrize("size", [16, 24])
def test_short_aes_keys_do_not_wrap(size: int) -> None:
    kek = Kek("a", bytes(size))
    assert not kek.can_wrap
    with pytest.raises(ValueError, match="only unwraps"):
        kek.wrap(PAYLOADS[0])


@pytest.mark.parametrize("algorithm", ["RSA-OAEP", "RSA"])
def test_rsa_keys_unwrap_oaep_with_sha1_under_both_its_names(algorithm: str) -> None:
    oaep = padding.OAEP(padding.MGF1(SHA1()), SHA1(), None)
    encrypted = RSA.public_key().encrypt(PAYLOADS[1], oaep)
    assert Kek("a", RSA).unwrap(WrappedKey("a", algorithm, encrypted)) == PAYLOADS[1]


def test_public_key_wraps_for_the_private_one_and_does_not_unwrap() -> None:
    wrapped = Kek("a", RSA.public_key()).wrap(PAYLOADS[1])
    assert Kek("a", RSA).unwrap(wrapped) == PAYLOADS[1]
    with pytest.raises(KeyUnknown, match="public half"):
        Kek("a", RSA.public_key()).unwrap(wrapped)


AES_WRAPPED = Kek("a", bytes(32)).wrap(PAYLOADS[1]).encrypted_key
RSA_WRAPPED = Kek("a", RSA).wrap(PAYLOADS[1]).encrypted_key
PKCS1 = RSA.public_key().encrypt(PAYLOADS[1], padding.PKCS1v15())


@pytest.mark.parametrize(
    ("kek", "algorithm", "encrypted"),
    [
        (Kek("a", b"\1" * 32), "A256KW", AES_WRAPPED),
        (Kek("a", bytes(32)), "A256KW", AES_WRAPPED[:-8]),
        (Kek("a", bytes(32)), "A256KW", AES_WRAPPED[:-1]),
        (Kek("a", bytes(32)), "A256KW", b"x"),
        (Kek("a", bytes(32)), "A256KW", bytes([AES_WRAPPED[0] ^ 1]) + AES_WRAPPED[1:]),
        (Kek("a", bytes(32)), "A128KW", AES_WRAPPED),
        (Kek("a", bytes(32)), "RSA-OAEP-256", RSA_WRAPPED),
        (Kek("a", RSA), "A256KW", AES_WRAPPED),
        (Kek("a", RSA), "RSA-OAEP", RSA_WRAPPED),
        (Kek("a", RSA), "RSA-OAEP-256", RSA_WRAPPED[:-1]),
        (Kek("a", RSA), "RSA-OAEP-256", bytes(256)),
        (Kek("a", RSA), "RSA1_5", PKCS1),
        (Kek("a", RSA), "none", PAYLOADS[1]),
    ],
)
def test_key_that_does_not_unwrap_is_wrong_whatever_the_reason(
    kek: Kek, algorithm: str, encrypted: bytes
) -> None:
    with pytest.raises(WrongKey) as caught:
        kek.unwrap(WrappedKey("a", algorithm, encrypted))
    assert str(caught.value) == f"key 'a' does not unwrap this {algorithm!r} key"


def test_repr_shows_ids_and_no_key(key_file: KeyFile) -> None:
    key = oct_key("mine")
    path = key_file({"keys": [key]})
    assert repr(load_key_set(path)) == "KeySet(['mine'], wrapping='mine')"
    assert repr(Kek("mine", bytes(32))) == "Kek('mine', A256KW)"


# Key sets


def test_every_key_unwraps_and_the_first_wraps(key_file: KeyFile) -> None:
    keys = [oct_key("one"), {**RSA_JWK, "kid": "two"}, oct_key("three", 16)]
    path = key_file({"keys": keys})
    key_set = load_key_set(path)
    assert key_set.key_ids == ("one", "two", "three")
    assert key_set.wrapping_key_id == key_set.wrap(PAYLOADS[0]).key_id == "one"
    wrapped = Kek("two", RSA).wrap(PAYLOADS[0])
    assert key_set.unwrap(wrapped) == PAYLOADS[0]


def test_key_id_names_the_key_that_wraps(key_file: KeyFile) -> None:
    path = key_file({"keys": [oct_key("one"), {**RSA_JWK, "kid": "two"}]})
    wrapped = load_key_set(path, "two").wrap(PAYLOADS[0])
    assert (wrapped.key_id, wrapped.algorithm) == ("two", "RSA-OAEP-256")


def test_single_jwk_is_a_set_of_one(key_file: KeyFile) -> None:
    assert load_key_set(key_file(oct_key("one"))).key_ids == ("one",)


def test_public_rsa_key_alone_wraps(key_file: KeyFile) -> None:
    wrapped = load_key_set(key_file({**RSA_PUBLIC_JWK, "kid": "two"})).wrap(PAYLOADS[1])
    assert Kek("two", RSA).unwrap(wrapped) == PAYLOADS[1]


def test_unknown_key_id_names_the_id(key_file: KeyFile) -> None:
    key_set = load_key_set(key_file(oct_key("one")))
    with pytest.raises(KeyUnknown, match="'elsewhere'"):
        key_set.unwrap(WrappedKey("elsewhere", "A256KW", AES_WRAPPED))


def without(key: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in key.items() if k != name}


MALFORMED = "is malformed"
REFUSALS: list[tuple[Any, str]] = [
    ("", "is not JSON"),
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ([], "is not JSON"),
    ({"keys": []}, "has no key"),
    ({"keys": {}}, "not a list"),
    ({"keys": ["x"]}, "not a list"),
    (without(oct_key("a"), "kid"), 'has no "kid"'),
    (oct_key("a", kid=""), 'has no "kid"'),
    (oct_key("a", kid=7), 'has no "kid"'),
    ({"keys": [oct_key("a"), oct_key("a")]}, "two keys have the kid 'a'"),
    (oct_key("a", kty="EC"), "of kty 'EC'"),
    (without(oct_key("a"), "kty"), "of kty None"),
    (without(oct_key("a"), "k"), MALFORMED),
    (oct_key("a", k=7), MALFORMED),
    (oct_key("a", k="*" * 43), MALFORMED),
    (without(oct_key("a"), "k") | {"generate": "oct"}, MALFORMED),
    (oct_key("a", 20), "has 160 bits"),
    (oct_key("a", 64), "has 512 bits"),
    ({**SMALL_RSA_JWK, "kid": "a"}, "RSA of 1024 bits"),
    ({**without(RSA_JWK, "p"), "kid": "a"}, MALFORMED),
    ({**without(RSA_PUBLIC_JWK, "n"), "kid": "a"}, MALFORMED),
    ({**RSA_JWK, "kid": "a", "q": RSA_JWK["p"]}, MALFORMED),
    (oct_key("a", use="sig"), '"use" is not "enc"'),
    (oct_key("a", alg="A128KW"), '"alg" other than A256KW'),
    (oct_key("a", alg="HS256"), '"alg" other than A256KW'),
    ({**RSA_JWK, "kid": "a", "alg": "RS256"}, '"alg" other than RSA-OAEP-256 or RSA-OAEP'),
    (oct_key("a", key_ops=["sign"]), '"key_ops" without unwrapKey'),
    (oct_key("a", key_ops="unwrapKey"), '"key_ops" without unwrapKey'),
    ({**RSA_PUBLIC_JWK, "kid": "a", "key_ops": ["verify"]}, '"key_ops" without wrapKey'),
    (oct_key("a", 16), "only unwraps"),
    (oct_key("a", key_ops=["unwrapKey"]), "only unwraps"),
    ({**RSA_JWK, "kid": "a", "alg": "RSA-OAEP"}, "only unwraps"),
]


@pytest.mark.parametrize(("content", "message"), REFUSALS)
def test_bad_key_file_is_refused_in_one_line_that_names_it_and_no_key(
    key_file: KeyFile, content: Any, message: str
) -> None:
    path = key_file(content)
    with pytest.raises(KeyFileError) as caught:
        load_key_set(path)
    said = str(caught.value)
    assert message in said
    assert said.startswith(str(path))
    assert "\n" not in said
    if isinstance(content, dict) and isinstance(content.get("k"), str):
        assert content["k"] not in said
    # Chained exceptions would show the key in a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_keys_that_only_unwrap_are_fine_beside_one_that_wraps(key_file: KeyFile) -> None:
    path = key_file({"keys": [oct_key("old", 16), oct_key("new", use="enc", alg="A256KW")]})
    assert load_key_set(path, "new").wrapping_key_id == "new"


def test_key_id_that_the_file_lacks_is_refused(key_file: KeyFile) -> None:
    path = key_file(oct_key("one"))
    with pytest.raises(KeyFileError, match=r"no key has the kid 'two'; it has 'one'"):
        load_key_set(path, "two")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_file_that_others_can_use_is_refused_with_the_command_that_helps(
    key_file: KeyFile, mode: int
) -> None:
    path = key_file(oct_key("one"))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=re.escape(f"chmod 600 {path}")):
        load_key_set(path)


def test_file_of_another_user_is_refused(
    key_file: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key_file(oct_key("one"))
    real = os.fstat

    def other_owner(fd: int) -> os.stat_result:
        fields = list(real(fd))
        fields[stat.ST_UID] = os.geteuid() + 4711
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", other_owner)
    with pytest.raises(KeyFileError, match="belongs to uid"):
        load_key_set(path)


def test_missing_file_directory_and_fifo_are_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        load_key_set(tmp_path / "none")
    with pytest.raises(KeyFileError, match="directory"):
        load_key_set(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_key_set(tmp_path / "fifo")


def test_huge_file_is_refused(key_file: KeyFile) -> None:
    with pytest.raises(KeyFileError, match="over 1048576 bytes"):
        load_key_set(key_file(" " * (1024 * 1024 + 1)))


# Generating


def test_generated_key_file_loads_is_private_and_wraps(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    kid = write_key_set(path)
    assert re.fullmatch(r"blobfs-\d{4}-\d\d-\d\d-[0-9a-f]{8}", kid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key_set = load_key_set(path)
    assert key_set.wrapping_key_id == kid
    assert key_set.unwrap(key_set.wrap(PAYLOADS[1])) == PAYLOADS[1]


def test_every_generated_key_is_another() -> None:
    keys = [json.loads(generate_key_set())["keys"] for _ in range(10)]
    assert all(len(one) == 1 for one in keys)
    assert len({one[0]["k"] for one in keys}) == len({one[0]["kid"] for one in keys}) == 10


def test_existing_key_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    write_key_set(path)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        write_key_set(path)
    assert path.read_bytes() == before


def test_key_file_in_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        write_key_set(tmp_path / "none" / "new.json")
