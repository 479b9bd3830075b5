"""Key-encryption keys, and the file that holds them: a JSON Web Key Set (RFC 7517), or one RSA
private key in PEM or PKCS#8 (`pem`).

Messages name the file, and keys by their id, never what is in them.
"""

import base64
import contextlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from blobfs.envelope.data import WrappedKey
from blobfs.envelope.pem import is_pem_or_der, load_rsa, thumbprint
from blobfs.envelope.private import read_passphrase, read_private
from blobfs.errors import KeyFileError, KeyUnknown, WrongKey

MIN_RSA_BITS = 2048

_AES_ALGORITHM = {16: "A128KW", 24: "A192KW", 32: "A256KW"}
_RSA_ALGORITHM = "RSA-OAEP-256"

_CONSTRAINTS = {"use", "alg", "key_ops"}
"""Members that say what a key is for: checked here, each with a message of its own."""


def _oaep(algorithm: hashes.HashAlgorithm) -> OAEP:
    return OAEP(MGF1(algorithm), algorithm, None)


_OAEP = {
    _RSA_ALGORITHM: _oaep(hashes.SHA256()),
    "RSA-OAEP": _oaep(hashes.SHA1()),
    "RSA": _oaep(hashes.SHA1()),  # the name in the Python SDK's sample
}


class Kek:
    """One key-encryption key."""

    def __init__(
        self, key_id: str, key: bytes | RSAPrivateKey | RSAPublicKey, *, may_wrap: bool = True
    ) -> None:
        """`key` is 16, 24 or 32 bytes for AES Key Wrap (RFC 3394), or an RSA key."""
        self.key_id = key_id
        self._key = key
        self._may_wrap = may_wrap
        self.algorithm = _AES_ALGORITHM[len(key)] if isinstance(key, bytes) else _RSA_ALGORITHM
        """The algorithm for wrapping, under its JSON Web Algorithms name (RFC 7518)."""

    def __repr__(self) -> str:
        return f"Kek({self.key_id!r}, {self.algorithm})"

    @property
    def bits(self) -> int:
        return 8 * len(self._key) if isinstance(self._key, bytes) else self._key.key_size

    @property
    def can_unwrap(self) -> bool:
        """False for the public half of an RSA key."""
        return not isinstance(self._key, RSAPublicKey)

    @property
    def can_wrap(self) -> bool:
        """False for AES keys under 256 bits, which open old blobs and protect no new ones, and
        for keys whose file says so."""
        return self._may_wrap and self.algorithm in ("A256KW", _RSA_ALGORITHM)

    def wrap(self, payload: bytes) -> WrappedKey:
        """`payload` is 32 or 40 bytes (`cek_payload`). Raises ValueError unless `can_wrap`."""
        if not self.can_wrap:
            raise ValueError(f"key {self.key_id!r} only unwraps")
        if isinstance(self._key, bytes):
            encrypted = aes_key_wrap(self._key, payload)
        else:
            key = self._key
            public = key.public_key() if isinstance(key, RSAPrivateKey) else key
            encrypted = public.encrypt(payload, _OAEP[self.algorithm])
        return WrappedKey(self.key_id, self.algorithm, encrypted)

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The payload. Raises WrongKey when this key does not unwrap it, for whatever reason,
        KeyUnknown when this is only the public half of the key."""
        if isinstance(self._key, RSAPublicKey):
            raise KeyUnknown(f"of key {self.key_id!r} the key file has only the public half")
        try:
            if isinstance(self._key, bytes):
                if wrapped.algorithm == self.algorithm:
                    return aes_key_unwrap(self._key, wrapped.encrypted_key)
            elif wrapped.algorithm in _OAEP:
                return self._key.decrypt(wrapped.encrypted_key, _OAEP[wrapped.algorithm])
        except (InvalidUnwrap, ValueError):
            pass
        raise WrongKey(f"key {self.key_id!r} does not unwrap this {wrapped.algorithm[:20]!r} key")


class KeySet:
    """The keys of a key file: all of them unwrap, one of them wraps unless it is only for reading
    what was written under it before."""

    def __init__(self, keys: Sequence[Kek], wrapping: Kek | None) -> None:
        self._keys = {key.key_id: key for key in keys}
        self._wrapping = wrapping

    def __repr__(self) -> str:
        return f"KeySet({list(self._keys)!r}, wrapping={self.wrapping_key_id!r})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def wrapping(self) -> Kek | None:
        return self._wrapping

    @property
    def wrapping_key_id(self) -> str | None:
        return None if self._wrapping is None else self._wrapping.key_id

    def wrap(self, payload: bytes) -> WrappedKey:
        """Raises KeyUnknown when no key of the set wraps."""
        if self._wrapping is None:
            raise KeyUnknown("no key of the key file is to encrypt with")
        return self._wrapping.wrap(payload)

    def unwrap(self, wrapped: WrappedKey) -> bytes:
        """Raises KeyUnknown when the set has no key of that id (compared exactly), WrongKey."""
        key = self._keys.get(wrapped.key_id)
        if key is None:
            raise KeyUnknown(f"the key file has no key {wrapped.key_id!r}")
        return key.unwrap(wrapped)


def load_keys(
    path: str | os.PathLike[str],
    *,
    pem_key_id: str | None = None,
    passphrase_file: str | os.PathLike[str] | None = None,
) -> list[Kek]:
    """The keys of a JSON Web Key Set, a single JSON Web Key, or a PEM or PKCS#8 RSA private key,
    told apart by their content; in the file's order.

    A key of the last kind has the id `pem_key_id`, else its thumbprint (RFC 7638); its passphrase
    is in `passphrase_file`. Raises KeyFileError, with one line that says what is wrong and what
    to do.
    """
    content = read_private(path)
    passphrase = None if passphrase_file is None else read_passphrase(passphrase_file)
    if is_pem_or_der(content):
        private = load_rsa(path, content, passphrase)
        _check_rsa(f"{path}", private)
        return [Kek(pem_key_id or thumbprint(private), private)]
    if passphrase is not None:
        raise KeyFileError(f"{path} is a JSON Web Key Set, which has no passphrase")
    keys: dict[str, Kek] = {}
    for number, fields in enumerate(_parse(path, content), 1):
        key = _key(path, number, fields)
        if key.key_id in keys:
            raise KeyFileError(f"{path}: two keys have the kid {key.key_id!r}; rename one")
        keys[key.key_id] = key
    return list(keys.values())


def load_key_set(
    path: str | os.PathLike[str],
    key_id: str | None = None,
    *,
    passphrase_file: str | os.PathLike[str] | None = None,
    alone: bool = True,
) -> KeySet:
    """Read a key file as `load_keys` does. The key named `key_id` wraps, else the first.

    `alone` is whether the file has the mount's only keys. If so, a PEM key takes `key_id` as its
    id, and a file that has no such key, or whose key only unwraps, is refused. If not, then a
    file without the key named wraps nothing. Raises KeyFileError.
    """
    keys = load_keys(path, pem_key_id=key_id if alone else None, passphrase_file=passphrase_file)
    named = [key for key in keys if key_id in (None, key.key_id)]
    if not named and alone:
        shown = ", ".join(repr(key.key_id) for key in keys)
        raise KeyFileError(f"{path}: no key has the kid {key_id!r}; it has {shown}")
    wrapping = named[0] if named else None
    if wrapping is not None and not wrapping.can_wrap:
        if alone or key_id is not None:
            raise KeyFileError(
                f"{path}: key {wrapping.key_id!r} only unwraps, by its length, alg or key_ops; "
                "name another with key_id"
            )
        wrapping = None
    return KeySet(keys, wrapping)


def generate_key_set() -> str:
    """A new key set as JSON text: one 256-bit `oct` key, its kid dated and unique."""
    return _generate()[1]


def write_key_set(path: str | os.PathLike[str]) -> str:
    """Write a new key set to a new file that only its owner can read; return the key's id.

    The file and its name are on the disk when this returns. Raises KeyFileError, above all when
    the file exists: a key that was overwritten takes everything encrypted under it along.
    """
    kid, text = _generate()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists; a key file is never overwritten") from None
    except OSError as exc:
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise KeyFileError(f"{path}: {exc.strerror}") from exc
    return kid


def _generate() -> tuple[str, str]:
    kid = f"blobfs-{time.strftime('%Y-%m-%d', time.gmtime())}-{secrets.token_hex(4)}"
    key = JWK.generate(kty="oct", size=256, kid=kid, use="enc", alg="A256KW")
    return kid, json.dumps({"keys": [key.export(as_dict=True)]}, indent=2) + "\n"


def _parse(path: str | os.PathLike[str], content: bytes) -> list[dict[str, object]]:
    """The members of each key, in the file's order, which jwcrypto's own JWKSet does not keep."""
    root: object = None
    # The parser's exception holds the whole text, so it must not live on as a context.
    with contextlib.suppress(ValueError, RecursionError):
        root = json.loads(content)
    if not isinstance(root, dict):
        raise KeyFileError(f"{path} is not JSON; `blobfs keys generate FILE` makes a key file")
    keys = root.get("keys", [root])
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeyFileError(f'{path}: "keys" is not a list of JSON Web Keys')
    if not keys:
        raise KeyFileError(f"{path} has no key; `blobfs keys generate FILE` makes a key file")
    return keys


def _key(path: str | os.PathLike[str], number: int, fields: dict[str, object]) -> Kek:
    kid = fields.get("kid")
    if not isinstance(kid, str) or not kid:
        raise KeyFileError(f'{path}: key {number} has no "kid"')
    where = f"{path}: key {kid!r}"
    kty = fields.get("kty")
    if kty not in ("oct", "RSA"):
        raise KeyFileError(f"{where} is of kty {kty!r}; only oct and RSA keys wrap keys")
    if fields.get("use", "enc") != "enc":
        raise KeyFileError(f'{where} is not for encryption: its "use" is not "enc"')
    key = _material(fields)
    if key is None:
        raise KeyFileError(f"{where} is malformed: it is not a JSON Web Key of kty {kty}")
    if isinstance(key, bytes):
        if len(key) not in _AES_ALGORITHM:
            raise KeyFileError(f"{where} has {8 * len(key)} bits; it takes 256 (or 128, 192)")
        algorithms: tuple[str, ...] = (_AES_ALGORITHM[len(key)],)
    else:
        _check_rsa(where, key)
        algorithms = (_RSA_ALGORITHM, "RSA-OAEP")
    operations = fields.get("key_ops", ["wrapKey", "unwrapKey"])
    needed = "wrapKey" if isinstance(key, RSAPublicKey) else "unwrapKey"
    if not isinstance(operations, list) or needed not in operations:
        raise KeyFileError(f'{where} has "key_ops" without {needed}')
    algorithm = fields.get("alg", algorithms[0])
    if algorithm not in algorithms:
        raise KeyFileError(f'{where} has an "alg" other than {" or ".join(algorithms)}')
    return Kek(kid, key, may_wrap=algorithm == algorithms[0] and "wrapKey" in operations)


def _check_rsa(where: str, key: RSAPrivateKey | RSAPublicKey) -> None:
    if key.key_size < MIN_RSA_BITS:
        raise KeyFileError(f"{where} is RSA of {key.key_size} bits; under {MIN_RSA_BITS}")


def _material(fields: dict[str, object]) -> bytes | RSAPrivateKey | RSAPublicKey | None:
    """The key itself, or None when it is malformed.

    What jwcrypto and cryptography raise may quote the key, so no exception leaves here.
    """
    with contextlib.suppress(
        JWException, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm
    ):
        jwk = JWK()
        # Not JWK(**fields), which makes up a key when there is a member "generate".
        jwk.import_key(**{name: fields[name] for name in fields.keys() - _CONSTRAINTS})
        if fields["kty"] == "RSA":
            key: RSAPrivateKey | RSAPublicKey = jwk.get_op_key(
                "unwrapKey" if jwk.has_private else "wrapKey"
            )
            public = key.public_key() if isinstance(key, RSAPrivateKey) else key
            public.encrypt(b"", _OAEP[_RSA_ALGORITHM])  # no modulus is too odd to be loaded
            return key
        text = jwk.get_op_key("unwrapKey")
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    return None
