"""The keys of a key file as a provider: in this process, without a thread and without waiting."""

from blobfs.envelope import KeySet, WrappedKey


class LocalKeys:
    """A `KeyProvider` whose methods reach no checkpoint."""

    name = "key_file"

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    @property
    def key_id(self) -> str | None:
        return self._keys.wrapping_key_id

    @property
    def algorithm(self) -> str | None:
        return None if self._keys.wrapping is None else self._keys.wrapping.algorithm

    @property
    def can_wrap(self) -> bool:
        return self._keys.wrapping is not None

    def serves(self, key_id: str) -> bool:
        return key_id in self._keys.key_ids

    async def wrap(self, payload: bytes) -> WrappedKey:
        return self._keys.wrap(payload)

    async def unwrap(self, wrapped: WrappedKey) -> bytes:
        return self._keys.unwrap(wrapped)

    async def aclose(self) -> None:
        self._keys = KeySet([], None)
