"""The user's keys as the file system uses them: asynchronous, with unwrapped CEKs kept."""

from cachetools import LRUCache

from blobfs.envelope import EncryptionData, KeySet, WrappedKey, unpack_cek
from blobfs.errors import KeyUnknown

CEK_CACHE = 4096
"""Unwrapped CEKs kept, 32 bytes each."""


class Keyring:
    """Wraps and unwraps CEKs.

    A CEK is cached by its wrapped form, which is unique to one version of one blob's content and,
    unlike the ETag, survives changes of metadata. `None` for the keys makes every use of them a
    KeyUnknown: a mount without a key reads plaintext blobs only.
    """

    def __init__(self, keys: KeySet | None) -> None:
        self._keys = keys
        self._ceks: LRUCache[tuple[str, bytes], bytes] = LRUCache(CEK_CACHE)

    @property
    def can_write(self) -> bool:
        return self._keys is not None

    async def wrap(self, payload: bytes) -> WrappedKey:
        """Raises KeyUnknown when there is no key to wrap with."""
        if self._keys is None:
            raise KeyUnknown("the mount has no key_file, so it cannot encrypt")
        return self._keys.wrap(payload)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        """The payload inside `wrapped`. Raises KeyUnknown or WrongKey."""
        if self._keys is None:
            raise KeyUnknown(f"the mount has no key_file, and this needs key {wrapped.key_id!r}")
        return self._keys.unwrap(wrapped)

    async def content_key(self, data: EncryptionData) -> bytes:
        """The CEK of a blob's body. Raises KeyUnknown, WrongKey or Corrupt."""
        identity = (data.protocol, data.wrapped.encrypted_key)
        cek = self._ceks.get(identity)
        if cek is None:
            cek = unpack_cek(data.protocol, await self.unwrap(data.wrapped))
            self._ceks[identity] = cek
        return cek

    def clear(self) -> None:
        """Let go of every key, on unmount."""
        self._ceks.clear()
        self._keys = None
