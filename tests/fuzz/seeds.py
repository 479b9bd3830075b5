"""Inputs to begin from: well-formed ones of every form, and ones made to cost much."""

import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any

from jwcrypto.jwk import JWK

from blobfs.envelope import EncryptionData, Protocol, WrappedKey
from blobfs.recovery import MAGIC
from blobfs.xattrs import encode_box
from tests.fuzz.envelope import GENUINE_SEAL

_VECTORS = Path(__file__).parents[1] / "vectors"
_WRAPPED = WrappedKey("local:test-kek-1", "A256KW", bytes(range(48)))
_SIGNATURE = b64encode(bytes(range(32))).decode().replace("+", "%2B").replace("/", "%2F")
_TOKEN = f"sv=2025-07-05&sr=c&sp=racwdlt&st=2029-01-01&se=2031-01-01T00:00:00Z&spr=https&sig={_SIGNATURE}"  # noqa: E501
_URL = "https://account.blob.core.windows.net/container/folder%20name"

_BLOB = """<Blob><Name>dir/file</Name><Snapshot></Snapshot><Properties><Creation-Time>Mon, 23
 Nov 2026 23:00:00 GMT</Creation-Time><Last-Modified>Mon, 23 Nov 2026 23:00:00 GMT</Last-Modified>
<Etag>0x8D</Etag><Content-Length>1028</Content-Length><Content-Type>text/plain</Content-Type><BlobType>
BlockBlob</BlobType><AccessTier>Hot</AccessTier><AccessTierInferred>true</AccessTierInferred><LeaseState>
available</LeaseState><TagCount>2</TagCount></Properties><Metadata><permissions>33188</permissions>
<modtime>1700000000000000000</modtime></Metadata></Blob>""".replace("\n", "")
_LISTING = (
    f"<EnumerationResults><Blobs>{_BLOB}<BlobPrefix><Name>dir/</Name></BlobPrefix><Blob>"
    '<Name Encoded="true">a%EF%BF%BEb</Name></Blob></Blobs><NextMarker>m!1</NextMarker>'
    "</EnumerationResults>"
)


def _encryptiondata(protocol: Protocol, region_length: int, iv: bytes = b"") -> str:
    return EncryptionData(protocol, _WRAPPED, region_length, iv).serialize()


def _vector(name: str) -> dict[str, Any]:
    vector: dict[str, Any] = json.loads((_VECTORS / f"{name}.json").read_text())
    return vector


def _rsa_key(**more: str) -> dict[str, str]:
    key = JWK.from_pem(_vector("py-v1.0-50-RSA-OAEP-256")["kek_private_pem"].encode())
    return {**key.export(as_dict=True), "kid": "rsa", **more}


def _oct(length: int, **more: object) -> dict[str, object]:
    key = urlsafe_b64encode(bytes(range(length))).decode().rstrip("=")
    return {"kty": "oct", "kid": f"key-{length}", "k": key, **more}


def recovery_file(**more: object) -> bytes:
    """A whole recovery file of one small blob; `more` is put into its description."""
    blob = _vector("blobfs-v2.1-dl32")
    ciphertext = b64decode(blob["ciphertext_b64"])
    description = {
        "container": "https://account.blob.core.windows.net/container",
        "name": "dir/file",
        "etag": "0x8D",
        "attempts": ["ab" * 32],
        "reason": "no answer",
        "created": "20261123T230000Z",
        "plain_size": blob["plaintext_len"],
        "unknown": [[0, 4]],
        "blob_size": len(ciphertext),
        "metadata": {key: blob[key] for key in ("encryptiondata", "blobfs_seal")},
        "headers": {"content_type": "text/plain"},
        "tags": {"project": "x"},
        "tier": "Hot",
        **more,
    }
    return with_trailer(ciphertext, json.dumps(description).encode())


def with_trailer(ciphertext: bytes, trailer: bytes) -> bytes:
    return ciphertext + trailer + len(trailer).to_bytes(8, "big") + MAGIC


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs of a target."""
    return [text.encode() if isinstance(text, str) else text for text in _seeds(name)]


def _seeds(name: str) -> list[str | bytes]:
    match name:
        case "encryptiondata":
            plain = encode_box({"user.comment": b"value", "user.empty": b""})
            return [
                _encryptiondata(Protocol.V1_0, 0, bytes(16)),
                _encryptiondata(Protocol.V2_0, 4 * 1024 * 1024),
                _encryptiondata(Protocol.V2_1, 16).replace("KeyId", "keyId"),
                _vector("blobfs-box")["blobfs_xattr"],
                plain,
            ]
        case "seal":
            return [GENUINE_SEAL, GENUINE_SEAL.replace("1:", "2:"), "1:0:" + "A" * 43 + "="]
        case "posix_metadata":
            return [
                "\0permissions=33188\nmodtime=1700000000000000000\nposix_owner=1000\n"
                "posix_group=1000\nposix_atime=1\nposix_ctime=-1\nproject=x",
                "\0Owner=1\ngroup=2\npermissions=0644\nmodtime=2024-01-31 12:00:00 +0100",
                "\0mtime=2024-02-29T12:00:00.123456789+14:00\nIS_SYMLINK=true\nis_char_dev=true",
                "\0is_block_dev=true\nposix_rdev=2049\nhdi_isfolder=true\nhdi_isFolder=false",
            ]
        case "list_xml":
            tag = "<Tag><Key>a</Key><Value>b</Value></Tag>"
            block = "<Block><Name>QQ==</Name><Size>10</Size></Block>"
            return [
                _LISTING,
                f"<Tags><TagSet>{tag}</TagSet></Tags>",
                f"<BlockList><UncommittedBlocks>{block}</UncommittedBlocks></BlockList>",
            ]
        case "error_xml":
            detail = "<AuthenticationErrorDetail>Signature did not match. String to sign used was r"
            return [
                "<Error><Code>BlobNotFound</Code><Message>Gone.\nRequestId:1</Message></Error>",
                f"<Error><Code>AuthenticationFailed</Code><Message>x?sig=abc</Message>{detail}"
                "</AuthenticationErrorDetail></Error>",
                "<html><head><title>502 Bad Gateway</title></head></html>",
            ]
        case "sas":
            return [
                _TOKEN,
                f'"?{_TOKEN}"',
                f"{_URL}?{_TOKEN}",
                _TOKEN.replace("sr=c", "sr=d&sdd=2&skoid=x&ske=2030-06-01T00:00:00.5%2B01:00"),
                _TOKEN.replace("sr=c", "ss=b&srt=sco"),
                f"sv=2025-07-05&sr=c&si=policy&sig={_SIGNATURE}",
            ]
        case "connection_string":
            endpoint = "BlobEndpoint=https://account.blob.core.windows.net/"
            key = b64encode(bytes(range(64))).decode()
            return [
                f"{endpoint};SharedAccessSignature={_TOKEN}",
                f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={key}",
                f"BlobEndpoint=http://127.0.0.1:10000/dev;SharedAccessSignature=?{_TOKEN}",
                f"{_URL}?{_TOKEN}",
                "http://[::1]:10000/account/container/a%2Fb",
                "http://localhost/account/$root",
            ]
        case "options":
            return [
                "sas_file=/a,key_file=~/b,ro,noexec,allow_other,region_size=64K,timeout=1.5m",
                f'sas={_TOKEN},key_command="a b, c",min_protocol=2.0,umask=0022,uid=1000',
                "log_file=/a\\,b\\\\c,metrics=[::1]:9100,x-systemd.automount,_netdev,list_page=5000",
                "key_vault=https://v.vault.azure.net/keys/n/0123,nosuid,spool_size=1TiB,metrics=unix:/x",
            ]
        case "jwk":
            return [
                json.dumps({"keys": [_oct(32), _oct(16), _oct(24, alg="A192KW")]}),
                json.dumps(_oct(32, use="enc", alg="A256KW", key_ops=["wrapKey", "unwrapKey"])),
                json.dumps(_rsa_key(alg="RSA-OAEP-256")),
                json.dumps({k: v for k, v in _rsa_key().items() if k in ("kty", "n", "e", "kid")}),
                _vector("py-v1.0-50-RSA-OAEP-256")["kek_private_pem"],
            ]
        case "recovery_file":
            return [recovery_file(), recovery_file(unknown=[], tags=None, tier=None)]
        case "status_socket":
            return [
                '{"do": "status"}\n',
                '{"do": "log_level", "level": "debug"}',
                '{"error": "an answer"}',
                '{"do": "stop", "at": [1, 2.5, null, "2026"]}',
            ]
    raise AssertionError(f"no seeds for {name}")


def costly(name: str) -> list[bytes]:
    """Inputs that a careless reader takes minutes or gigabytes for, or dies of."""
    deep = [b"[" * 100_000, b'{"a":' * 100_000, b'{"keys":' + b"[" * 3000 + b"]" * 3000 + b"}"]
    number = b'{"a": ' + b"9" * 200_000 + b"}"
    text = [b"x" * 200_000, b"\xf0\x9f\x92\xa9" * 40_000, b"\0" * 200_000, b'"' * 100_000]
    match name:
        case "list_xml" | "error_xml":
            return [*text, *_costly_xml()]
        case "options":  # what the kernel takes as an argument, shortened
            return [data[: 8 * 1024] for data in (*text, b"a=" + text[3], *costly("sas"))]
        case "sas" | "connection_string":
            pieces = (
                b"&",
                b";",
                b",",
                b"a=b,",
                b"sv=1&",
                b" ",
                b"%25",
                b"=",
                b"sig=",
                b";Endpoint",
            )
            blanks = (b"sig':" + b" " * 50_000, b"http://a/sig'%3A" + b"%2520" * 10_000)
            return [*text, *blanks, *(piece * (100_000 // len(piece)) for piece in pieces)]
        case "recovery_file":
            return [
                *text,
                *(with_trailer(b"", trailer) for trailer in (*deep, number)),
                MAGIC,
                b"{}" + (2**64 - 1).to_bytes(8, "big") + MAGIC,
                b"{}" + (2**40).to_bytes(8, "big") + MAGIC,
                recovery_file(plain_size=10**4000),
                recovery_file(unknown=[[0, float("inf")]]),
                recovery_file(metadata=[]),
            ]
        case "posix_metadata":
            return [*text, b"\0" + b"a=b\n" * 20_000, b"\0modtime=" + b"9" * 200_000]
    return [*text, *deep, number, b"{" + b'"a":1,' * 20_000 + b'"a":1}', b'{"KeyId":' * 5000]


def _costly_xml() -> list[bytes]:
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "lol">{entities}]><Error><Code>&e9;</Code></Error>'
    utf16 = bomb.encode("utf-16")
    quadratic = f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]><Error>{"&a;" * 10_000}</Error>'
    many = "<EnumerationResults><Blobs>" + "<Blob><Name>a</Name></Blob>" * 5_000
    return [
        bomb.encode(),
        utf16,
        quadratic.encode(),
        b"<a>" * 40_000,
        b"<EnumerationResults><Blobs>" + b"<Blob>" * 20_000,
        b"<a>" * 20_000 + b"</a>" * 20_000,
        b"<Error " + b"".join(b'a%d="" ' % i for i in range(10_000)) + b"/>",
        b"<Error>" + b"<!--" * 30_000,
        b"<Error><Code>" + b"&#x41;" * 20_000 + b"</Code></Error>",
        f"{many}</Blobs></EnumerationResults>".encode(),
        many.encode(),
        b"<Error><Code>" + b"sig " * 30_000 + b"</Code></Error>",
        b"<Error><Code>" + b"string to sig" * 10_000 + b"</Code></Error>",
    ]
