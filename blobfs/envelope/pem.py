"""An RSA private key in a PEM or DER file: PKCS#8 (RFC 5958), also encrypted, or PKCS#1.

What the library raises may quote the file, so no exception of its own leaves here, nor stays
behind as a context.
"""

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key
from jwcrypto.jwk import JWK

from blobfs.errors import KeyFileError

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_DER_SEQUENCE = b"\x30"


def is_pem_or_der(content: bytes) -> bool:
    """Whether it is one of the two by its first bytes; a key set in JSON is neither."""
    return content.startswith(_DER_SEQUENCE) or (
        b"-----BEGIN " in content and not content.lstrip().startswith(b"{")
    )


def load_rsa(path: object, content: bytes, passphrase: bytes | None) -> RSAPrivateKey:
    """The one private key in `content`. Raises KeyFileError, with one line that names `path`."""
    der = content.startswith(_DER_SEQUENCE)
    block = content if der else _private_block(path, content)
    key: object = None
    problem = ""
    try:
        key = (load_der_private_key if der else load_pem_private_key)(block, passphrase)
    except TypeError:
        problem = (
            "is encrypted: give its passphrase with key_passphrase_file="
            if passphrase is None
            else "is not encrypted: leave out key_passphrase_file="
        )
    except (ValueError, UnsupportedAlgorithm):
        problem = (
            "is malformed, or no private key in PEM or PKCS#8"
            if passphrase is None
            else "cannot be opened: the passphrase is wrong, or the file is damaged"
        )
    if problem:
        raise KeyFileError(f"{path} {problem}")
    if not isinstance(key, RSAPrivateKey):
        raise KeyFileError(f"{path} is no RSA key; of the keys in PEM only RSA keys wrap keys")
    return key


def thumbprint(key: RSAPrivateKey) -> str:
    """The key's SHA-256 JSON Web Key thumbprint (RFC 7638), in base64url."""
    value: str = JWK.from_pyca(key.public_key()).thumbprint()
    return value


def _private_block(path: object, content: bytes) -> bytes:
    blocks = [match for match in _BLOCK.finditer(content) if match[1].endswith(b"PRIVATE KEY")]
    if len(blocks) != 1:
        number = "several private keys: keep one" if blocks else "no private key in it"
        raise KeyFileError(f"{path} has {number}")
    if blocks[0][1].startswith(b"OPENSSH"):
        raise KeyFileError(
            f"{path} is in OpenSSH's own format; convert a copy with: ssh-keygen -p -m PKCS8 -f …"
        )
    return blocks[0][0] + b"\n"
