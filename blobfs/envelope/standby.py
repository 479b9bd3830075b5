"""A wrapped key for when nobody can be asked: under a key of this process that was wrapped before.

While the mount starts, its key provider wraps a random *standby key*. Later payloads can be wrapped
under that alone (A256KW), and carry it along, wrapped: FORMAT.md section 3. Such a wrapped key is
for recovery files; no other tool knows it.
"""

from blobfs.envelope.data import WrappedKey
from blobfs.envelope.keys import Kek
from blobfs.errors import WrongKey

STANDBY_KEY_LENGTH = 32

_PREFIX = "blobfs-standby:"
_LENGTH = 2


def wrap_standby(standby: bytes, wrapped: WrappedKey, payload: bytes) -> WrappedKey:
    """`payload` under the key `standby`, of which `wrapped` is the wrapped form."""
    inner = Kek(wrapped.key_id, standby).wrap(payload).encrypted_key
    outer = wrapped.encrypted_key
    return WrappedKey(
        wrapped.key_id,
        _PREFIX + wrapped.algorithm,
        len(outer).to_bytes(_LENGTH, "big") + outer + inner,
    )


def split_standby(wrapped: WrappedKey) -> tuple[WrappedKey, WrappedKey] | None:
    """The wrapped standby key, and the key that it has wrapped; None for any other wrapped key.

    Raises WrongKey when it is malformed, which being nested is, too.
    """
    if not wrapped.algorithm.startswith(_PREFIX):
        return None
    algorithm = wrapped.algorithm.removeprefix(_PREFIX)
    length = int.from_bytes(wrapped.encrypted_key[:_LENGTH], "big")
    outer = wrapped.encrypted_key[_LENGTH : _LENGTH + length]
    inner = wrapped.encrypted_key[_LENGTH + length :]
    if algorithm.startswith(_PREFIX) or not algorithm or not outer or not inner:
        raise WrongKey(f"the standby form of key {wrapped.key_id!r} is malformed")
    return (
        WrappedKey(wrapped.key_id, algorithm, outer),
        WrappedKey(wrapped.key_id, "A256KW", inner),
    )


def unwrap_standby(standby: bytes, inner: WrappedKey) -> bytes:
    """Raises WrongKey."""
    if len(standby) != STANDBY_KEY_LENGTH:
        raise WrongKey(f"what key {inner.key_id!r} unwraps is no standby key")
    return Kek(inner.key_id, standby).unwrap(inner)
