"""Bodies: round trips, random access, tampering, sizes, and the SDK as the other side."""

import io
import itertools
import os
from collections.abc import Callable

import pytest
from azure.storage.blob import _encryption as sdk
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from blobfs.envelope import (
    REGION_LENGTH_2_0,
    BodyReader,
    BodyWriter,
    EncryptionData,
    Protocol,
    WrappedKey,
    blob_size_of,
    check_seal,
    open_body,
    plain_size,
    unpack_cek,
)
from blobfs.envelope.gcm import dotnet_nonce, java_nonce, python_nonce
from blobfs.errors import Corrupt, Truncated

D = 16
STRIDE = D + 28
UNWRAPPED = WrappedKey("kid", "A256KW", b"not wrapped")
CBC_UNIT = 65536


class Stored:
    """A blob as it lies in the service, with what its KEK would give."""

    def __init__(self, protocol: Protocol, plain: bytes, region_length: int, step: int) -> None:
        writer = BodyWriter(protocol, region_length)
        cut = step * writer.unit
        pieces = [plain[i : i + cut] for i in range(0, len(plain), cut)] or [b""]
        self.blob = b"".join(
            bytes(writer.encrypt(piece, final=i == len(pieces)))
            for i, piece in enumerate(pieces, 1)
        )
        self.plain = plain
        self.data = writer.encryption_data(UNWRAPPED)
        self.cek = unpack_cek(protocol, writer.cek_payload)
        self.seal = writer.seal("file")
        assert (writer.plain_size, writer.blob_size) == (len(plain), len(self.blob))

    def open(self, blob: bytes | None = None) -> BodyReader:
        blob = self.blob if blob is None else blob
        body = open_body(self.data, self.cek, len(blob))
        body.settle_size(blob[slice(*body.tail_range())])
        return body

    def check(self, blob: bytes) -> bytes:
        """What a sealed mount does: the seal first, then all the plaintext."""
        check_seal(self.seal, self.cek, self.data, len(blob), "file")
        return read_all(self.open(blob), blob)


def read_units(body: BodyReader, blob: bytes, first: int, last: int) -> list[bytes]:
    start, stop = body.blob_range(first, last)
    assert 0 <= start <= stop <= len(blob)
    plain = bytes(body.decrypt(first, blob[start:stop]))
    return [plain[offset : offset + body.unit] for offset in range(0, len(plain), body.unit)]


def read_all(body: BodyReader, blob: bytes) -> bytes:
    assert body.plain_size is not None
    return b"".join(read_units(body, blob, 0, max(0, -(-body.plain_size // body.unit) - 1)))


sizes_1_0 = st.one_of(st.integers(0, 100), st.integers(-17, 17).map(lambda n: 2 * CBC_UNIT + n))
stored = st.one_of(
    st.builds(
        lambda size, step: Stored(Protocol.V1_0, os.urandom(size), 0, step),
        sizes_1_0,
        st.integers(1, 9000),
    ),
    st.builds(
        lambda size: Stored(Protocol.V2_0, os.urandom(size), REGION_LENGTH_2_0, 1),
        st.integers(0, 1000),
    ),
    st.builds(
        lambda size, region, step: Stored(Protocol.V2_1, os.urandom(size), region, step),
        st.integers(0, 3000),
        st.integers(16, 1000),
        st.integers(1, 5),
    ),
)


@given(stored)
def test_body_reads_back_as_written_in_pieces(stored: Stored) -> None:
    assert stored.check(stored.blob) == stored.plain


@given(stored, st.data())
def test_any_range_of_units_reads_back_alone(stored: Stored, data: st.DataObject) -> None:
    body = stored.open()
    count = -(-len(stored.plain) // body.unit)
    for _ in range(4 if count else 0):
        first = data.draw(st.integers(0, count - 1))
        last = data.draw(st.integers(first, count - 1))
        units = read_units(body, stored.blob, first, last)
        assert len(units) == last - first + 1
        assert b"".join(units) == stored.plain[first * body.unit : (last + 1) * body.unit]


def test_a_range_fetches_whole_regions_and_nothing_else() -> None:
    body = Stored(Protocol.V2_1, bytes(5 * D - 1), D, 1).open()
    assert body.blob_range(0, 0) == (0, STRIDE)
    assert body.blob_range(1, 3) == (STRIDE, 4 * STRIDE)
    assert body.blob_range(3, 4) == (3 * STRIDE, 5 * STRIDE - 1)


def test_a_protocol_1_range_fetches_the_block_before_as_iv() -> None:
    body = Stored(Protocol.V1_0, bytes(3 * CBC_UNIT), 0, 1).open()
    assert body.blob_range(0, 0) == (0, CBC_UNIT)
    assert body.blob_range(1, 1) == (CBC_UNIT - 16, 2 * CBC_UNIT)
    assert body.blob_range(1, 2) == (CBC_UNIT - 16, 3 * CBC_UNIT + 16)


# Sizes


@given(st.integers(0, 2**48), st.integers(16, 2**30))
def test_ciphertext_and_plaintext_lengths_are_inverse(size: int, region: int) -> None:
    for protocol in (Protocol.V2_0, Protocol.V2_1):
        data = EncryptionData(protocol, UNWRAPPED, region, b"")
        assert plain_size(data, blob_size_of(protocol, region, size)) == size
    padded = blob_size_of(Protocol.V1_0, 0, size)
    assert padded % 16 == 0
    assert 1 <= padded - size <= 16


@pytest.mark.parametrize(
    ("size", "blob_size"),
    [(0, 0), (1, 29), (4194303, 4194331), (4194304, 4194332), (4194305, 4194361)],
)
def test_ciphertext_lengths_measured_at_the_sdk(size: int, blob_size: int) -> None:
    assert blob_size_of(Protocol.V2_0, REGION_LENGTH_2_0, size) == blob_size


@given(st.integers(0, 100), st.integers(1, 27), st.integers(16, 1000))
def test_length_that_ends_inside_nonce_or_tag_is_truncated(
    regions: int, rest: int, region_length: int
) -> None:
    data = EncryptionData(Protocol.V2_1, UNWRAPPED, region_length, b"")
    with pytest.raises(Truncated):
        plain_size(data, regions * (region_length + 28) + rest)
    with pytest.raises(Truncated):
        open_body(data, bytes(32), regions * (region_length + 28) + rest)


def test_known_plaintext_size_must_agree_with_the_ciphertext() -> None:
    for protocol in (Protocol.V1_0, Protocol.V2_1):
        blob = Stored(protocol, bytes(40), D, 1)
        assert open_body(blob.data, blob.cek, len(blob.blob), 40).plain_size == 40
        with pytest.raises(Corrupt):
            open_body(blob.data, blob.cek, len(blob.blob), 50)


# Tampering with protocol 2.x

REGIONS = 5
FIVE = Stored(Protocol.V2_1, os.urandom(REGIONS * D - 3), D, 1)
CUT = [FIVE.blob[i : i + STRIDE] for i in range(0, len(FIVE.blob), STRIDE)]
indices = st.integers(0, REGIONS - 1)


@given(st.integers(0, len(FIVE.blob) * 8 - 1))
def test_any_flipped_bit_is_corrupt(bit: int) -> None:
    blob = bytearray(FIVE.blob)
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        FIVE.check(bytes(blob))
    with pytest.raises(Corrupt):  # the tags and nonces see it, seal or not
        read_all(FIVE.open(), bytes(blob))


@given(st.integers(0, len(FIVE.blob) - 1))
def test_any_cut_is_truncated_under_the_seal(length: int) -> None:
    with pytest.raises(Truncated):
        FIVE.check(FIVE.blob[:length])


@given(st.permutations(range(REGIONS)).filter(lambda p: p != sorted(p)))
def test_any_reorder_of_regions_is_corrupt(order: list[int]) -> None:
    blob = b"".join(CUT[i] for i in order)
    with pytest.raises(Corrupt, match="not in its place"):
        FIVE.check(blob)


@given(indices, indices.map(lambda n: n + 1))
def test_duplicated_region_is_refused(index: int, at: int) -> None:
    with pytest.raises(Truncated):
        FIVE.check(b"".join([*CUT[:at], CUT[index], *CUT[at:]]))


@given(st.sets(indices, min_size=1))
def test_dropped_regions_are_refused(dropped: set[int]) -> None:
    with pytest.raises(Truncated):
        FIVE.check(b"".join(CUT[i] for i in range(REGIONS) if i not in dropped))


@given(st.sets(st.integers(0, REGIONS - 2), min_size=1))
def test_dropping_any_but_trailing_regions_is_corrupt_even_without_a_seal(drop: set[int]) -> None:
    blob = b"".join(CUT[i] for i in range(REGIONS) if i not in drop)
    with pytest.raises(Corrupt):
        read_all(FIVE.open(blob), blob)


@given(st.binary(min_size=1, max_size=2 * STRIDE))
def test_anything_appended_is_refused(tail: bytes) -> None:
    with pytest.raises(Truncated):
        FIVE.check(FIVE.blob + tail)


@given(indices)
def test_region_of_another_body_is_corrupt(index: int) -> None:
    other = Stored(Protocol.V2_1, FIVE.plain, D, 1).blob
    blob = bytearray(FIVE.blob)
    blob[index * STRIDE : (index + 1) * STRIDE] = other[index * STRIDE : (index + 1) * STRIDE]
    with pytest.raises(Corrupt):
        FIVE.check(bytes(blob))


def test_nothing_is_returned_of_a_range_whose_last_region_is_corrupt() -> None:
    blob = bytearray(FIVE.blob)
    blob[-1] ^= 1
    body = FIVE.open()
    with pytest.raises(Corrupt):
        read_units(body, bytes(blob), 0, REGIONS - 1)
    assert read_units(body, bytes(blob), 0, 2) == [
        FIVE.plain[i * D : (i + 1) * D] for i in range(3)
    ]


@pytest.mark.parametrize("length", [1, STRIDE - 1, STRIDE + 28, 2 * STRIDE - 1])
def test_fetched_range_that_is_not_whole_regions_is_truncated(length: int) -> None:
    with pytest.raises(Truncated):
        FIVE.open().decrypt(0, FIVE.blob[:length])


def test_fetched_range_beyond_the_end_is_truncated() -> None:
    with pytest.raises(Truncated):
        FIVE.open().decrypt(4, FIVE.blob[3 * STRIDE :])


@pytest.mark.parametrize("protocol", Protocol)
def test_wrong_cek_is_corrupt(protocol: Protocol) -> None:
    blob = Stored(protocol, bytes(1000), REGION_LENGTH_2_0, 1)
    body = open_body(blob.data, bytes(32), len(blob.blob), 1000)
    with pytest.raises(Corrupt):
        read_all(body, blob.blob)


# Nonce encodings

CEK = os.urandom(32)
ENCODED = {
    encode: [
        encode(i) + AESGCM(CEK).encrypt(encode(i), bytes([i]) * D, None) for i in range(REGIONS)
    ]
    for encode in (python_nonce, java_nonce, dotnet_nonce)
}


def foreign_reader() -> BodyReader:
    data = EncryptionData(Protocol.V2_0, UNWRAPPED, D, b"")
    return open_body(data, CEK, REGIONS * STRIDE)


@pytest.mark.parametrize("encode", ENCODED)
def test_every_nonce_encoding_is_read_from_any_region_on(encode: Callable[[int], bytes]) -> None:
    blob = b"".join(ENCODED[encode])
    for first, last in itertools.combinations_with_replacement(range(REGIONS), 2):
        units = read_units(foreign_reader(), blob, first, last)
        assert units == [bytes([i]) * D for i in range(first, last + 1)]


@given(st.lists(st.sampled_from(list(ENCODED)), min_size=REGIONS, max_size=REGIONS))
def test_mixed_encodings_are_corrupt(choice: list[Callable[[int], bytes]]) -> None:
    regions = [ENCODED[encode][i] for i, encode in enumerate(choice)]
    fits = [all(a == b for a, b in zip(regions, one, strict=True)) for one in ENCODED.values()]
    if any(fits):
        read_all(foreign_reader(), b"".join(regions))
    else:
        with pytest.raises(Corrupt):
            read_all(foreign_reader(), b"".join(regions))


def test_an_encoding_is_settled_across_the_life_of_a_reader() -> None:
    body = foreign_reader()
    python, java = ENCODED[python_nonce], ENCODED[java_nonce]
    body.decrypt(0, python[0])  # fits Java too
    body.decrypt(2, java[2])
    body.decrypt(0, java[0])
    with pytest.raises(Corrupt):
        body.decrypt(3, python[3])


def test_a_region_that_fails_its_tag_settles_nothing() -> None:
    body = foreign_reader()
    forged = java_nonce(1) + bytes(D + 16)
    with pytest.raises(Corrupt):
        body.decrypt(1, forged)
    assert body.decrypt(1, ENCODED[python_nonce][1]) == b"\1" * D


# Empty regions


def empty_region(index: int) -> bytes:
    return python_nonce(index) + AESGCM(CEK).encrypt(python_nonce(index), b"", None)


@pytest.mark.parametrize("regions", [0, 1, 3])
def test_empty_last_region_is_accepted_and_gives_no_unit(regions: int) -> None:
    blob = b"".join([*ENCODED[python_nonce][:regions], empty_region(regions)])
    body = open_body(EncryptionData(Protocol.V2_0, UNWRAPPED, D, b""), CEK, len(blob))
    assert body.plain_size == regions * D
    units = read_units(body, blob, 0, max(0, regions - 1))
    assert units == [bytes([i]) * D for i in range(regions)]


@pytest.mark.parametrize("regions", [0, 1, 3])
def test_empty_last_region_has_its_tag_checked(regions: int) -> None:
    blob = b"".join([*ENCODED[python_nonce][:regions], python_nonce(regions) + bytes(16)])
    body = open_body(EncryptionData(Protocol.V2_0, UNWRAPPED, D, b""), CEK, len(blob))
    with pytest.raises(Corrupt, match="authentication"):
        read_units(body, blob, 0, max(0, regions - 1))


# Protocol 1.0


def cbc(cek: bytes, iv: bytes, padded: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(cek), modes.CBC(iv)).encryptor()
    return cipher.update(padded) + cipher.finalize()


def failures_of_protocol_1() -> list[Callable[[], object]]:
    data = EncryptionData(Protocol.V1_0, UNWRAPPED, 0, bytes(16))

    def settle(last_block: bytes) -> None:
        blob = cbc(CEK, bytes(16), bytes(16) + last_block)
        body = open_body(data, CEK, len(blob))
        body.settle_size(blob[slice(*body.tail_range())])

    def decrypt(last_block: bytes, known: int) -> None:
        blob = cbc(CEK, bytes(16), bytes(16) + last_block)
        read_all(open_body(data, CEK, len(blob), known), blob)

    return [
        lambda: open_body(data, CEK, 0),
        lambda: open_body(data, CEK, 17),
        lambda: open_body(data, CEK, 32, 3),
        lambda: settle(bytes(16)),
        lambda: settle(bytes(15) + b"\x11"),
        lambda: settle(bytes(14) + b"\1\2"),
        lambda: decrypt(bytes(16), 20),
        lambda: decrypt(bytes(15) + b"\1", 20),
        lambda: open_body(data, CEK, 48).settle_size(bytes(16)),
        lambda: open_body(data, CEK, 48).settle_size(cbc(CEK, bytes(16), bytes(47) + b"\1")),
        lambda: open_body(data, CEK, 48, 40).decrypt(0, bytes(32)),
        lambda: open_body(data, CEK, 48, 40).decrypt(0, bytes(64)),
        lambda: open_body(data, CEK, 48, 40).decrypt(0, bytes(47)),
        lambda: open_body(data, CEK, 2 * CBC_UNIT, 2 * CBC_UNIT - 1).decrypt(1, bytes(8)),
    ]


def test_all_failures_of_protocol_1_look_the_same() -> None:
    seen = set()
    for failure in failures_of_protocol_1():
        with pytest.raises(Corrupt) as caught:
            failure()
        seen.add((caught.type, str(caught.value), caught.value.__cause__))
    assert seen == {(Corrupt, "the body does not decrypt", None)}


def test_protocol_1_size_is_settled_from_the_tail_and_then_known() -> None:
    for size in (0, 1, 15, 16, 17, 100):
        blob = Stored(Protocol.V1_0, bytes(size), 0, 1)
        body = open_body(blob.data, blob.cek, len(blob.blob))
        start, stop = body.tail_range()
        assert (body.plain_size, stop - start) == (None, min(32, len(blob.blob)))
        assert body.settle_size(blob.blob[start:stop]) == size
        assert body.plain_size == size
        assert body.tail_range() == (stop, stop)
        assert body.settle_size(b"") == size


def test_protocol_1_body_can_be_read_before_its_size_is_settled() -> None:
    for size in (0, 1, CBC_UNIT - 1, CBC_UNIT, CBC_UNIT + 1):
        blob = Stored(Protocol.V1_0, os.urandom(size), 0, 1)
        body = open_body(blob.data, blob.cek, len(blob.blob))
        last = (len(blob.blob) - 1) // CBC_UNIT
        assert b"".join(read_units(body, blob.blob, 0, last)) == blob.plain


def test_page_blob_of_protocol_1_has_no_padding() -> None:
    plain = os.urandom(1024)
    iv = os.urandom(16)
    data = EncryptionData(Protocol.V1_0, UNWRAPPED, 0, iv)
    body = open_body(data, CEK, 1024, padded=False)
    assert body.settle_size(b"") == 1024
    assert read_all(body, cbc(CEK, iv, plain)) == plain


# Writing


@pytest.mark.parametrize("protocol", Protocol)
def test_nothing_can_be_encrypted_after_the_final_piece(protocol: Protocol) -> None:
    writer = BodyWriter(protocol, REGION_LENGTH_2_0)
    writer.encrypt(b"abc", final=True)
    for final in (False, True):
        with pytest.raises(ValueError, match="finished"):
            writer.encrypt(b"", final=final)


@pytest.mark.parametrize(("protocol", "unit"), [(Protocol.V1_0, 16), (Protocol.V2_1, 64)])
def test_pieces_before_the_final_one_are_whole_units(protocol: Protocol, unit: int) -> None:
    writer = BodyWriter(protocol, 64)
    assert writer.unit == unit
    with pytest.raises(ValueError, match="multiple"):
        writer.encrypt(bytes(unit + 1), final=False)
    writer.encrypt(bytes(2 * unit), final=False)
    assert (writer.plain_size, writer.blob_size) == (2 * unit, 32 if unit == 16 else 184)


def test_a_failed_writer_encrypts_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BodyWriter(Protocol.V2_1, D)

    def fail(*_args: object, **_kwargs: object) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(writer._writer, "encrypt", fail)
    with pytest.raises(MemoryError):
        writer.encrypt(bytes(D), final=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="failed"):
        writer.encrypt(bytes(D), final=False)


def test_a_body_is_sealed_only_when_it_is_whole() -> None:
    writer = BodyWriter(Protocol.V2_1, D)
    writer.encrypt(bytes(D), final=False)
    with pytest.raises(ValueError, match="final"):
        writer.seal("file")


def test_every_nonce_of_a_body_differs_and_every_body_has_its_own_cek() -> None:
    nonces = {region[:12] for region in CUT}
    assert len(nonces) == REGIONS
    assert Stored(Protocol.V2_1, FIVE.plain, D, 1).cek != FIVE.cek


@pytest.mark.parametrize("region_length", [0, 15, 2**30 + 1])
def test_illegal_region_length_is_refused(region_length: int) -> None:
    with pytest.raises(ValueError, match="region length"):
        BodyWriter(Protocol.V2_1, region_length)


def test_protocol_2_0_has_regions_of_4_mib_only() -> None:
    with pytest.raises(ValueError, match="4194304"):
        BodyWriter(Protocol.V2_0, 65536)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_encrypted(kind: Callable[[bytes], bytes]) -> None:
    writer = BodyWriter(Protocol.V2_1, D)
    assert len(writer.encrypt(kind(bytes(20)), final=True)) == 20 + 2 * 28


# The SDK's own code as the other side


class SdkKek:
    """A KEK, as the SDK wants it, that wraps nothing."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def get_kid(self) -> str:
        return "kid"

    def unwrap_key(self, key: bytes, algorithm: str) -> bytes:
        assert (key, algorithm) == (UNWRAPPED.encrypted_key, UNWRAPPED.algorithm)
        return self.payload


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4194303, 4194304, 4194305])
@pytest.mark.parametrize("protocol", Protocol)
def test_the_sdk_decrypts_what_we_write(protocol: Protocol, size: int) -> None:
    writer = BodyWriter(protocol, 1024 * 1024 if protocol is Protocol.V2_1 else REGION_LENGTH_2_0)
    plain = os.urandom(size)
    blob = bytes(writer.encrypt(plain, final=True))
    value = writer.encryption_data(UNWRAPPED).serialize()
    data = sdk.parse_encryption_data({"EncryptionData": value})
    assert data is not None
    got = sdk.decrypt_blob(
        True,
        SdkKek(writer.cek_payload),
        None,
        blob,
        0,
        0 if protocol is Protocol.V1_0 else size,
        {"x-ms-meta-encryptiondata": value, "x-ms-blob-type": "BlockBlob"},
        data,
        sdk._GCMRegionNonceValidator(),
    )
    assert bytes(got) == plain
    if protocol is not Protocol.V1_0:
        assert sdk.adjust_blob_size_for_encryption(len(blob), data) == size


@pytest.mark.parametrize("size", [0, 1, 4194303, 4194304, 4194305])
def test_we_decrypt_the_sdks_region_stream(size: int) -> None:
    plain = os.urandom(size)
    blob = sdk.GCMBlobEncryptionStream(CEK, io.BytesIO(plain)).read()
    data = EncryptionData(Protocol.V2_0, UNWRAPPED, REGION_LENGTH_2_0, b"")
    assert read_all(open_body(data, CEK, len(blob)), blob) == plain
