"""An RSA private key in PEM or PKCS#8 as the key file, and `blobfs keys show`."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwcrypto.jwk import JWK

from blobfs import cli
from blobfs.envelope import Kek, load_key_set
from blobfs.errors import KeyFileError
from tests.azurite import Azurite
from tests.mounts import MountFailed, mounted
from tests.sdk import RsaKek, content, download, encrypting

RSA = generate_private_key(65537, 2048)
PASSPHRASE = b"correct horse \xe2\x82\xac"
ENCRYPTED = BestAvailableEncryption(PASSPHRASE)
PAYLOAD = bytes(range(40))

Write = Callable[[str, bytes], Path]


def serialized(
    key: Any = RSA,
    encoding: Encoding = Encoding.PEM,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    data: bytes = key.private_bytes(encoding, form, encryption or NoEncryption())
    return data


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.touch(0o600)
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def passphrase(write: Write) -> Path:
    return write("passphrase", PASSPHRASE + b"\n")


def thumbprint() -> str:
    """RFC 7638, section 3: over the required members in the order of their names, unspaced."""
    public = JWK.from_pyca(RSA.public_key()).export(as_dict=True)
    text = f'{{"e":"{public["e"]}","kty":"RSA","n":"{public["n"]}"}}'
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def test_the_id_is_the_one_that_is_named_or_the_keys_thumbprint(write: Write) -> None:
    path = write("key.pem", serialized())
    assert load_key_set(path, "mine").wrapping_key_id == "mine"
    assert load_key_set(path).wrapping_key_id == thumbprint()
    # Beside other providers, where key_id may be a key of theirs.
    beside = load_key_set(path, "theirs", alone=False)
    assert (beside.key_ids, beside.wrapping_key_id) == ((thumbprint(),), None)


@pytest.mark.parametrize(
    "content",
    [
        serialized(),
        serialized(form=PrivateFormat.TraditionalOpenSSL),
        serialized(encoding=Encoding.DER),
        b"localKeyID: 01\n" + serialized().replace(b"\n", b"\r\n"),
        RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        + serialized(),
    ],
    ids=["pkcs8", "pkcs1", "der", "attributes-crlf", "public-beside"],
)
def test_every_usual_form_is_read(write: Write, content: bytes) -> None:
    keys = load_key_set(write("key", content), "k")
    wrapped = keys.wrap(PAYLOAD)
    assert (wrapped.key_id, wrapped.algorithm) == ("k", "RSA-OAEP-256")
    assert Kek("k", RSA).unwrap(wrapped) == PAYLOAD


@pytest.mark.parametrize(
    "content",
    [
        serialized(encryption=ENCRYPTED),
        serialized(form=PrivateFormat.TraditionalOpenSSL, encryption=ENCRYPTED),
        serialized(encoding=Encoding.DER, encryption=ENCRYPTED),
    ],
    ids=["pkcs8", "pkcs1", "der"],
)
def test_an_encrypted_key_takes_its_passphrase_from_a_file(
    write: Write, passphrase: Path, content: bytes
) -> None:
    path = write("key", content)
    keys = load_key_set(path, "k", passphrase_file=passphrase)
    assert keys.unwrap(Kek("k", RSA).wrap(PAYLOAD)) == PAYLOAD
    with pytest.raises(KeyFileError, match="is encrypted: give its passphrase with key_pass"):
        load_key_set(path)
    passphrase.write_bytes(b"wrong horse")
    with pytest.raises(KeyFileError, match="cannot be opened: the passphrase is wrong, or"):
        load_key_set(path, passphrase_file=passphrase)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_a_passphrase_may_be_a_systemd_credential(
    write: Write, passphrase: Path, mode: int
) -> None:
    passphrase.chmod(mode)
    path = write("key", serialized(encryption=ENCRYPTED))
    assert load_key_set(path, "k", passphrase_file=passphrase).key_ids == ("k",)


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o602])
def test_a_passphrase_that_others_can_use_is_refused(
    write: Write, passphrase: Path, mode: int
) -> None:
    passphrase.chmod(mode)
    with pytest.raises(KeyFileError, match=f"can be used by others; run: chmod 600 {passphrase}"):
        load_key_set(write("key", serialized(encryption=ENCRYPTED)), passphrase_file=passphrase)


def test_a_passphrase_file_must_have_one_and_be_needed(write: Write, passphrase: Path) -> None:
    for nothing in (b"", b"\n"):
        with pytest.raises(KeyFileError, match="is empty, and was to hold the passphrase"):
            load_key_set(write("key", serialized()), passphrase_file=write("none", nothing))
    with pytest.raises(KeyFileError, match="is not encrypted: leave out key_passphrase_file="):
        load_key_set(write("key", serialized()), passphrase_file=passphrase)
    with pytest.raises(KeyFileError, match="is a JSON Web Key Set, which has no passphrase"):
        load_key_set(write("key", b'{"keys": []}'), passphrase_file=passphrase)


BODY = base64.encodebytes(bytes(range(200))).decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (serialized(generate_private_key(65537, 1024)), "is RSA of 1024 bits; under 2048"),
        (serialized(ec.generate_private_key(ec.SECP256R1())), "is no RSA key"),
        (serialized(ed25519.Ed25519PrivateKey.generate()), "is no RSA key"),
        (
            RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "has no private key in it",
        ),
        (serialized() * 2, "has several private keys: keep one"),
        (serialized(form=PrivateFormat.OpenSSH), "convert a copy with: ssh-keygen -p -m PKCS8"),
        (serialized()[:-60], "has no private key in it"),
        (serialized().replace(b"M", b"N", 5), "is malformed"),
        (serialized(encoding=Encoding.DER)[:-1], "is malformed"),
        (f"-----BEGIN PRIVATE KEY-----\n{BODY}-----END PRIVATE KEY-----\n".encode(), "malformed"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_without_the_key(
    write: Write, content: bytes, message: str
) -> None:
    path = write("key", content)
    with pytest.raises(KeyFileError) as caught:
        load_key_set(path)
    said = str(caught.value)
    assert message in said
    assert said.startswith(str(path))
    assert "\n" not in said
    assert caught.value.__context__ is None


# keys show


def test_keys_show_lists_the_keys_and_nothing_secret(
    write: Write, passphrase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = JWK.from_pyca(RSA).export(as_dict=True)
    public = JWK.from_pyca(RSA.public_key()).export(as_dict=True)
    keys = [
        json.loads(JWK.generate(kty="oct", size=256, kid="a").export()),
        json.loads(JWK.generate(kty="oct", size=128, kid="b").export()),
        {**private, "kid": "c"},
        {**private, "kid": "d", "key_ops": ["unwrapKey"]},
        {**public, "kid": "e"},
    ]
    path = write("keys.json", json.dumps({"keys": keys}).encode())
    assert cli.main(["keys", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        f"{path}: a  oct 256  A256KW  wraps and unwraps",
        f"{path}: b  oct 128  A128KW  only unwraps",
        f"{path}: c  RSA 2048  RSA-OAEP-256  wraps and unwraps",
        f"{path}: d  RSA 2048  RSA-OAEP-256  only unwraps",
        f"{path}: e  RSA 2048  RSA-OAEP-256  only wraps",
    ]
    pem = write("key.pem", serialized(encryption=ENCRYPTED))
    assert cli.main(["keys", "show", str(pem), "--passphrase-file", str(passphrase)]) == 0
    said = capsys.readouterr().out
    assert said == f"{pem}: {thumbprint()}  RSA 2048  RSA-OAEP-256  wraps and unwraps\n"


def test_keys_show_says_what_is_wrong(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("key.pem", serialized(encryption=ENCRYPTED))
    assert cli.main(["keys", "show", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"blobfs: {path} is encrypted: give its passphrase")


# In a mount


@pytest.mark.mount
def test_a_mount_with_an_encrypted_pem_key_and_the_sdk_read_each_other(
    azurite: Azurite, container: str, tmp_path: Path, write: Write, passphrase: Path
) -> None:
    key_file = write("key.pem", serialized(encryption=ENCRYPTED))
    kek = RsaKek("team-key", RSA)
    encrypting(azurite, container, kek).upload_blob("theirs", content(5_000_000))
    options = (f"key_passphrase_file={passphrase}", "key_id=team-key")
    with mounted(azurite, container, tmp_path, *options, key_file=key_file) as mount:
        assert (mount.path / "theirs").read_bytes() == content(5_000_000)
        (mount.path / "ours").write_bytes(content(300_000))
    assert download(encrypting(azurite, container, kek), "ours") == content(300_000)


@pytest.mark.mount
def test_a_wrong_passphrase_makes_no_mount_and_says_so(
    azurite: Azurite, container: str, tmp_path: Path, write: Write
) -> None:
    key_file = write("key.pem", serialized(encryption=ENCRYPTED))
    wrong = f"key_passphrase_file={write('passphrase', b'wrong')}"
    with (
        pytest.raises(MountFailed, match="cannot be opened: the passphrase is wrong") as caught,
        mounted(azurite, container, tmp_path, wrong, key_file=key_file),
    ):
        pass
    assert caught.value.status == 1
