"""A key_command as a user would write one: AES Key Wrap under the key in the file given.

It says in the file CALLS, beside the key, what it was asked for and which processes it was.
"""

import base64
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

KEY_ID = "kms/key-1"


def main(key_file: Path) -> None:
    request = json.load(sys.stdin)
    with (key_file.parent / "CALLS").open("a") as calls:
        calls.write(f"{request['operation']} {request.get('kid')}\n")
    key = base64.b64decode(request["key"])
    if request.get("kid", KEY_ID) != KEY_ID:
        print(json.dumps({"error": "unknown"}))
        return
    if request["operation"] == "wrap":
        wrapped = aes_key_wrap(key_file.read_bytes(), key)
        answer = {"kid": KEY_ID, "alg": "A256KW", "key": base64.b64encode(wrapped).decode()}
    else:
        try:
            payload = aes_key_unwrap(key_file.read_bytes(), key)
            answer = {"key": base64.b64encode(payload).decode()}
        except InvalidUnwrap:
            answer = {"error": "wrong"}
    print(json.dumps(answer))


def install(directory: Path) -> str:
    """Make a key, and return the command that uses it, as the option takes it."""
    key_file = directory / "kms.key"
    if not key_file.exists():
        key_file.write_bytes(os.urandom(32))
    return f"{sys.executable} {__file__} {key_file}"


def calls(directory: Path) -> list[str]:
    path = directory / "CALLS"
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]))
