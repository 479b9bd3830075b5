"""A file's own extended attributes, which are encrypted together in one metadata value.

`value` is that of `BOX_KEY`, None where there are none. All raise ContentError for one that cannot
be opened.
"""

from blobfs.envelope import Box, box_cek, box_encrypt, box_payload, new_cek
from blobfs.keyring import Keyring
from blobfs.xattrs import decode_box, encode_box


async def unboxed(keyring: Keyring, value: str | None) -> dict[str, bytes]:
    if value is None:
        return {}
    box = Box.parse(value)
    cek = box_cek(await keyring.unwrap(box.wrapped))
    return decode_box(box.decrypt(cek))


async def boxed(keyring: Keyring, attributes: dict[str, bytes]) -> str | None:
    if not attributes:
        return None
    cek = new_cek()
    wrapped = await keyring.wrap(box_payload(cek))
    return box_encrypt(cek, wrapped, encode_box(attributes)).serialize()


async def merged(
    keyring: Keyring, base: str | None, ours: str | None, theirs: str | None
) -> str | None:
    """`theirs`, with all that was changed from `base` to `ours`."""
    if base == theirs:
        return ours
    before, after = await unboxed(keyring, base), await unboxed(keyring, ours)
    result = await unboxed(keyring, theirs)
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            result.pop(name, None)
            if name in after:
                result[name] = after[name]
    return await boxed(keyring, result)
