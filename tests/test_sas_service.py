"""SAS tokens as blobfs makes and explains them, judged by the service."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import AccessPolicy

from blobfs.blobs import Client, Container
from blobfs.cli import main
from blobfs.errors import SasTimeError, TokenRefused
from blobfs.options import MountOptions, parse_source
from blobfs.sas import create
from blobfs.session import parse_by_clock
from tests.azurite import Azurite, signature

# One of each layout of the string-to-sign that Azurite takes: it knows none before 2015-04-05.
VERSIONS = ["2015-04-05", "2018-03-28", "2018-11-09", "2020-10-02", "2020-12-06", "2026-10-06"]

HEADERS = {"rscc": "no-store", "rscd": "inline", "rsce": "x", "rscl": "de", "rsct": "text/plain"}

Capture = pytest.CaptureFixture[str]


async def listed(azurite: Azurite, container: str, token: str) -> None:
    azurite.signatures.add(signature(token))
    async with Client() as client:
        await Container(client, azurite.url(container), lambda: token).probe()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["plain", "full", "policy"])
async def test_the_service_accepts_what_is_made_and_nothing_signed_otherwise(
    version: str, kind: str, azurite: Azurite, container: str
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    policy = AccessPolicy(permission="rl", start=now, expiry=now + timedelta(hours=1))
    azurite.sdk(container).set_container_access_policy({"a policy": policy})
    token = {
        "plain": lambda key, version: create(
            azurite.account,
            key,
            container,
            permissions="ldwcar",
            expiry=now + timedelta(hours=1),
            version=version,
        ),
        "full": lambda key, version: create(
            azurite.account,
            key,
            container,
            permissions="rl",
            start=now - timedelta(hours=1),
            expiry=now + timedelta(hours=1),
            ip="127.0.0.1-127.0.0.9",
            protocol="https,http",
            headers=HEADERS,
            version=version,
        ),
        "policy": lambda key, version: create(
            azurite.account, key, container, identifier="a policy", version=version
        ),
    }[kind]
    await listed(azurite, container, token(azurite.key, version))
    with pytest.raises(TokenRefused):
        await listed(azurite, container, token("A" * 86 + "==", version))
    with pytest.raises(TokenRefused):
        await listed(azurite, azurite.new_container(), token(azurite.key, version))


def test_the_command_makes_a_token_with_response_headers(
    azurite: Azurite, container: str, tmp_path: Path, capsys: Capture
) -> None:
    key = tmp_path / "key"
    key.write_text(azurite.key)
    made = ["sas", "create", azurite.url(container), "--account-key-file", str(key)]
    assert main([*made, "--content-type", "text/plain", "--cache-control", "no-store"]) == 0
    token = capsys.readouterr().out
    assert "rscc=no-store&rsct=text%2Fplain" in token
    azurite.signatures.add(signature(token.strip()))


def write_token(tmp_path: Path, token: str) -> str:
    path = tmp_path / "token.sas"
    path.touch(0o600)
    path.write_text(token)
    return str(path)


def test_show_says_what_a_mount_can_do(tmp_path: Path, azurite: Azurite, capsys: Capture) -> None:
    assert main(["sas", "show", write_token(tmp_path, azurite.sas("box", "rwl"))]) == 0
    said = capsys.readouterr().out
    assert re.search(r"read files and attributes +yes\n", said)
    assert re.search(r"delete files and directories, rename +no, lacks d: they fail", said)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"permissions": "rw"}, "lacks l"),
        ({"expiry": timedelta(hours=-1)}, "expired at"),
    ],
)
def test_show_says_why_a_mount_cannot_use_a_token(
    changes: dict[str, Any], why: str, tmp_path: Path, azurite: Azurite, capsys: Capture
) -> None:
    token = azurite.sas("box", **{"permissions": "rl", **changes})
    assert main(["sas", "show", write_token(tmp_path, token)]) == 0
    assert re.search(f"a mount cannot use it: .*{why}", capsys.readouterr().out)


@pytest.mark.parametrize("letters", ["rl", "rwl", "rwdl", "rwdlt", "l", "wl"])
def test_show_asks_the_service_for_the_rights_of_a_policy_and_changes_nothing(
    letters: str, azurite: Azurite, container: str, tmp_path: Path, capsys: Capture
) -> None:
    now = datetime.now(UTC)
    raw = azurite.sdk(container)
    policy = AccessPolicy(permission=letters, start=now, expiry=now + timedelta(hours=1))
    raw.set_container_access_policy({"policy": policy})
    token = create(azurite.account, azurite.key, container, identifier="policy")
    azurite.signatures.add(signature(token))
    file = write_token(tmp_path, token)
    assert main(["sas", "show", file]) == 0
    assert "unknown: needs w, which the stored access policy may give" in capsys.readouterr().out
    assert main(["sas", "show", file, "--probe", azurite.url(container)]) == 0
    said = re.findall(r"^  .*  (yes|no), *|^  .*  (yes)$", capsys.readouterr().out, re.MULTILINE)
    able = ["no" not in pair for pair in said]
    assert able == ["l" in letters, "r" in letters, "w" in letters, "d" in letters, "t" in letters]
    assert list(raw.list_blobs()) == []


def test_show_says_of_a_refused_token_what_it_is_and_that_it_is_refused(
    azurite: Azurite, container: str, tmp_path: Path, capsys: Capture
) -> None:
    token = azurite.sas(container, expiry=timedelta(hours=-1))
    assert main(["sas", "show", write_token(tmp_path, token), "--probe", azurite.url(container)])
    captured = capsys.readouterr()
    assert "expired 1 hour ago" in captured.out
    assert "the SAS token is expired" in captured.err


# The clock


def parsed_at(azurite: Azurite, container: str, token: str, ahead: timedelta) -> MountOptions:
    """On a machine whose clock is `ahead`."""
    options = [f"sas={token}", "ro,norequire_encryption"]
    return parse_by_clock(
        lambda now: parse_source(azurite.url(container), options, now=now),
        lambda: datetime.now(UTC) + ahead,
    )


def test_a_token_that_only_this_clock_calls_expired_is_used_and_the_clock_named(
    azurite: Azurite, container: str
) -> None:
    ahead = timedelta(hours=10, seconds=30)
    chosen = parsed_at(azurite, container, azurite.sas(container), ahead)
    (note,) = chosen.notes
    expected = "this machine's clock is 10 hours ahead of the service's, by which the token is"
    assert note.startswith(expected)


def test_a_token_that_only_this_clock_calls_early_is_used(azurite: Azurite, container: str) -> None:
    token = azurite.sas(container, start=datetime.now(UTC) - timedelta(minutes=5))
    chosen = parsed_at(azurite, container, token, timedelta(hours=-3, seconds=-30))
    assert chosen.notes[0].startswith("this machine's clock is 3 hours behind the service's")


def test_a_token_that_has_expired_is_refused_by_the_services_clock(
    azurite: Azurite, container: str
) -> None:
    token = azurite.sas(container, expiry=timedelta(hours=-1))
    with pytest.raises(
        SasTimeError, match=r"expired at .* \(1 hour ago\): .*; this machine's clock"
    ):
        parsed_at(azurite, container, token, timedelta(days=2))
    with pytest.raises(SasTimeError, match=r"\(1 hour ago\): get a new one$"):
        parsed_at(azurite, container, token, timedelta(0))
