"""A mount's life, with all that can go wrong in it, leaves its secrets in no place but their own.

The life is led on a machine of its own, through mount(8) and every command, and then every process,
mount table, log, output and file of that machine is searched for the tokens' signatures, the keys,
and the content keys of all that was stored.
"""

import base64
import json
import os
import re
import secrets
import socket
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import pytest
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap

from tests import keycommand
from tests.azurite import Azurite, signature
from tests.installed import MNT, Installed, installed
from tests.mounts import ROOT
from tests.relay import Exchange, Refusal, Relay
from tests.sdk import AesKek, content, encrypting
from tests.searcher import found_in

# --- the searcher ------------------------------------------------------------------------------

SECRET = bytes.fromhex("fbeff00a27225cff2f2b3d00c3a9e28098fbefbe5c78302d5f7e7fa1b2c3d4fb")


def base64_of(secret: bytes) -> bytes:
    return base64.b64encode(secret)


def quoted(secret: bytes) -> bytes:
    return urllib.parse.quote(base64_of(secret), safe="").encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "bytes": bytes,
    "hexadecimal": lambda secret: secret.hex().encode(),
    "upper-case hexadecimal": lambda secret: secret.hex().upper().encode(),
    "base64": base64_of,
    "base64url": base64.urlsafe_b64encode,
    "base64url without padding": lambda secret: base64.urlsafe_b64encode(secret).rstrip(b"="),
    "percent-encoded": quoted,
    "percent-encoded in small letters": lambda secret: re.sub(
        b"%..", lambda escape: escape[0].lower(), quoted(secret)
    ),
    "percent-encoded twice": lambda secret: urllib.parse.quote(quoted(secret)).encode(),
    "bytes percent-encoded": lambda secret: urllib.parse.quote(secret).encode(),
    "JSON": lambda secret: json.dumps(base64_of(secret).decode()).replace("/", "\\/").encode(),
    "escaped JSON": lambda secret: base64_of(secret).replace(b"+", b"\\u002b"),
    "repr": lambda secret: repr(secret).encode(),
    "a list": lambda secret: str(list(secret)).encode(),
    "base64 of it and more": lambda secret: base64_of(b"protocol" + secret + b"more"),
    "base64 of a URL": lambda secret: base64_of(b"sp=r&sig=" + base64_of(secret) + b"&x=y"),
    "its first half": lambda secret: secret[:16],
    "the base64 of its second half": lambda secret: base64_of(secret)[20:],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [b"", b"1", b"22"])
def test_a_secret_is_found_in_each_form_wherever_it_stands(form: str, before: bytes) -> None:
    hay = content(1000) + before + FORMS[form](SECRET) + b"&more"
    assert found_in(hay, {"it": SECRET, "another": secrets.token_bytes(32)}) == {"it"}


# --- the machine, and what can be seen of it -----------------------------------------------------

LIMIT_S = 30
BLOBFS = [sys.executable, "-m", "blobfs"]
SPOOL = "/var/lib/blobfs"
KEPT = "/etc /home /root /run /tmp /var /var/log /var/tmp /dev/shm"
"""Where programs keep files."""

OWN_PLACES = "/etc/blobfs"
"""Of token and key files, and of nothing else."""

KEY = AesKek("life:1", secrets.token_bytes(32))
NEXT = AesKek("life:2", secrets.token_bytes(32))
SAME_NAME = AesKek("life:1", secrets.token_bytes(32))
UNKNOWN = AesKek("life:3", secrets.token_bytes(32))


def value_of(kek: AesKek) -> bytes:
    return base64.urlsafe_b64decode(kek.jwk()["k"] + "=")


class Receiver:
    """The end of a socket that logs are sent to."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._received: SimpleQueue[bytes] = SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while data := self._socket.recv(2**20):
            self._received.put(data)

    def all(self) -> bytes:
        """What has come since it was asked last."""
        mark = secrets.token_bytes(16)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(mark, self._path)
        return b"\n".join(iter(lambda: self._received.get(timeout=LIMIT_S), mark))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._thread.join()
        self._socket.close()


class Observer:
    """Looks at everything that there is to be seen on a machine, as its root.

    `seen` is what was found in each place, by a name for it.
    """

    def __init__(self, here: Installed, directory: Path) -> None:
        self.here = here
        self.directory = directory  # the machine has it, too
        self.root = Path(f"/proc/{here.machine.pid}/root")
        self.seen: dict[str, bytes] = {}
        here.machine.sh("mkdir -p /run/systemd/journal; touch /run/began")
        self._logs = {
            "the journal": Receiver(self.root / "run/systemd/journal/socket"),
            "the system log": Receiver(self.root / "dev/log"),
        }

    def run(self, *command: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> str:
        """What a program there says on both outputs, whether it fails or not."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        done = self.here.machine.run(*command, check=False, stdin=stdin, env=environment)
        said = done.stdout + done.stderr
        self.note(f"the output of {' '.join(map(str, command[:5]))[:60]}", said.encode())
        return said

    def note(self, place: str, data: bytes) -> None:
        self.seen[place] = self.seen.get(place, b"") + data + b"\n"

    def look(self) -> None:
        """At what is gone when a process ends: command lines, environments, mounts.

        Command lines of the whole machine that the tests run on; environments of this one alone,
        since that of Azurite has the account's key.
        """
        here = os.readlink(f"/proc/{self.here.machine.pid}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                self.note("command lines", (process / "cmdline").read_bytes())
                if os.readlink(process / "ns/pid") == here:
                    self.note("environments", (process / "environ").read_bytes())
        for table in ("proc/1/mounts", "proc/1/mountinfo", "run/mount/utab"):
            path = self.root / table
            if path.exists():
                self.note(f"/{table}", path.read_bytes())

    def collect(self) -> None:
        """Logs, and the files that are new or changed since the beginning."""
        for place, receiver in self._logs.items():
            self.note(place, receiver.all())
        listed = self.here.machine.sh(f"find {KEPT} -xdev -type f -cnewer /run/began -print0")
        for path in filter(None, listed.split("\0")):
            self.note(path, Path(f"{self.root}{path}").read_bytes())

    def close(self) -> None:
        for receiver in self._logs.values():
            receiver.close()

    def finds(self, hidden: dict[str, bytes]) -> dict[str, set[str]]:
        """The secrets that were seen, by place."""
        found = {place: found_in(data, hidden) for place, data in self.seen.items()}
        return {place: names for place, names in found.items() if names}


@pytest.fixture(scope="module")
def relay(azurite: Azurite) -> Iterator[Relay]:
    relay = Relay(azurite)
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def observer(relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observer]:
    directory = tmp_path_factory.mktemp("secrets")
    with installed(relay.service, directory) as here:
        observer = Observer(here, directory)
        yield observer
        observer.close()


# --- the life ------------------------------------------------------------------------------------


def unwrapped(kek: AesKek, sealed: bytes, algorithm: str) -> list[bytes]:
    """The content key, and a mount's own above it (FORMAT.md, section 3), if `kek` opens it."""
    try:
        if not algorithm.startswith("blobfs-standby:"):
            return [kek.unwrap_key(sealed, algorithm)[-32:]]
        end = 2 + int.from_bytes(sealed[:2], "big")
        own = kek.unwrap_key(sealed[2:end], "A256KW")
        return [own, AesKek("", own).unwrap_key(sealed[end:], "A256KW")[-32:]]
    except InvalidUnwrap:
        return []


class Life:
    """Lived by `live`. `hidden` is every secret in it, by a name that says what it is."""

    def __init__(self, observer: Observer, relay: Relay, azurite: Azurite) -> None:
        self.observer = observer
        self.here = observer.here
        self.relay = relay
        self.azurite = azurite
        self.directory = observer.directory
        self.container = self.here.container
        self.kms = AesKek(keycommand.KEY_ID, secrets.token_bytes(32))
        self.hidden = {kek.get_kid(): value_of(kek) for kek in (KEY, NEXT, UNKNOWN, self.kms)}
        self.hidden["another key of the same name"] = value_of(SAME_NAME)
        self.hidden["the account's key"] = base64.b64decode(azurite.key)
        self.said = ""

    # What it does

    def run(self, *command: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> str:
        said = self.observer.run(*command, stdin=stdin, env=env)
        self.said += said
        return said

    def sh(self, script: str, **kw: object) -> str:
        return self.run("bash", "-uc", script, **kw)  # type: ignore[arg-type]

    def blobfs(self, *words: str, stdin: str = "") -> str:
        return self.run(*BLOBFS, *words, stdin=stdin)

    def mount(self, options: str, source: str = "") -> str:
        return self.run("mount", "-t", "blobfs", source or self.here.source, MNT, "-o", options)

    def token(self, hours: int = 8) -> str:
        """One that is like no other, though two be made in one second."""
        sas = self.azurite.sas(
            self.container, expiry=timedelta(hours=hours, minutes=len(self.hidden))
        )
        self.hidden[f"token {len(self.hidden)}"] = base64.b64decode(signature(sas))
        return sas

    def own_file(self, name: str, content: str) -> str:
        path = f"{OWN_PLACES}/{name}"
        self.here.machine.sh(f"umask 077; cat >{path}", stdin=content)
        return path

    def learn(self) -> None:
        """The content keys of all that is stored, or kept for recovery."""
        described = [
            blob.metadata["encryptiondata"]
            for blob in self.azurite.sdk(self.container).list_blobs(include=["metadata"])
            if "encryptiondata" in (blob.metadata or {})
        ]
        for path in Path(f"{self.observer.root}{SPOOL}").glob("*.blobfs-recovery"):
            kept = path.read_bytes()
            trailer = kept[-16 - int.from_bytes(kept[-16:-8], "big") : -16]
            described.append(json.loads(trailer)["metadata"]["encryptiondata"])
        for text in described:
            wrapped = json.loads(text)["WrappedContentKey"]
            sealed = base64.b64decode(wrapped["EncryptedKey"])
            opened = [
                (kek.get_kid(), key)
                for kek in (KEY, SAME_NAME, UNKNOWN, NEXT, self.kms)
                for key in unwrapped(kek, sealed, wrapped["Algorithm"])
            ]
            assert opened, text
            for number, (name, key) in enumerate(opened):
                self.hidden[f"content key {sealed.hex()[-8:]}{number} under {name}"] = key

    # What happens in it

    def live(self) -> None:
        self.keys = self.own_file("life.keys", json.dumps({"keys": [KEY.jwk()]}))
        self.sas_file = self.own_file("life.sas", self.token())
        self.mistakes()
        self.with_the_token_in_the_options()
        self.with_a_failing_service()
        self.with_programs_for_keys_and_tokens()
        self.upkeep()
        self.observer.look()
        self.observer.collect()

    def mistakes(self) -> None:
        """Every secret in a place where it does not belong."""
        sas = self.token()
        where = [self.here.source, MNT, "-o"]
        damaged = self.own_file("damaged.keys", json.dumps({"keys": [KEY.jwk()]})[:-2])
        short = json.dumps({"keys": [{**KEY.jwk(), "k": KEY.jwk()["k"][:-4]}]})
        short_keys = self.own_file("short.keys", short)
        raw = self.own_file("raw.keys", value_of(KEY).hex())
        for options in (
            f"sas={sas},key_file={self.keys},metadata_ttl=soon",
            f"sas={sas},sas={sas},key_file={self.keys}",
            f"sas_token={sas},key_file={self.keys}",
            f"sas={sas[:-4]},key_file={self.keys}",
            f"sas={sas.replace('sig=', 'sgi=')},key_file={self.keys}",
            f"sas={sas},key_file={self.sas_file}",
            f"sas={sas},key_file={damaged}",
            f"sas={sas},key_file={short_keys}",
            f"sas={sas},key_file={raw}",
            f"sas={sas},key_file={sas}",
            f"sas_file={self.keys},key_file={self.keys}",
            f"sas_command=cat {self.keys},key_file={self.keys}",
            f"sas_file={self.sas_file},key_command=cat {self.keys}",
            f"sas_file={self.sas_file},key_command=sh -c 'cat {self.keys} >&2; false'",
        ):
            self.run(*BLOBFS, "mount", *where, options)
            if self.here.is_mounted:
                self.run("umount", MNT)
        for source in (f"{self.here.source}?{sas}", f"{self.here.source}-not-there?{sas}"):
            self.blobfs("doctor", "--json", source, "-o", f"key_file={damaged}")
            self.mount(f"key_file={self.keys},timeout=3", source)
        self.run("umount", MNT)
        expired = self.token(hours=-9)
        self.mount(f"sas={expired},key_file={self.keys}")
        forged = sas.replace("sp=racwdlt", "sp=racwdxlt")
        self.mount(f"sas={forged},key_file={self.keys}")

    def with_the_token_in_the_options(self) -> None:
        """And the log in the journal, at its finest."""
        options = f"sas={self.token()},key_file={self.keys},spool_dir={SPOOL}"
        self.sh(
            "exec 2>/var/tmp/stderr; export JOURNAL_STREAM=$(stat -Lc %d:%i /dev/fd/2); "
            f"mount -t blobfs {self.here.source} {MNT} -o '{options},log_level=debug,"
            "metrics=unix:/run/metrics.sock'"
        )
        assert self.here.is_mounted, self.said
        self.use()
        self.blobfs("status", MNT)
        self.blobfs("status", "--json", MNT)
        self.blobfs("doctor", "--json", self.here.source, "-o", options)
        self.run(sys.executable, "-c", SCRAPE, "/run/metrics.sock")
        self.observer.look()
        self.run("umount", MNT)
        self.learn()

    def use(self) -> None:
        self.sh(
            f"cd {MNT}; mkdir d; echo small >d/small; head -c 300000 /dev/urandom >d/big; "
            "ln -s d/small link; mv d/small d/moved; setfattr -n user.note -v value d/moved; "
            "getfattr -d -m - d/moved d/big; exec 3<d/big; rm d/big; wc -c <&3; exec 3<&-; "
            "head -c 300000 /dev/urandom >again; printf x | dd of=again conv=notrunc seek=9; "
            "truncate -s 1000 again; ls -lR; cat nothing; df ."
        )

    def with_a_failing_service(self) -> None:
        """And tokens and keys in files, and the log in one, too."""
        options = (
            f"sas_file={self.sas_file},key_file={self.keys},spool_dir={SPOOL},timeout=3,"
            "metadata_ttl=0,log_level=debug,log_file=/var/log/life.log,buffer_size=1M"
        )
        for name, kek in (("wrong", SAME_NAME), ("unknown", UNKNOWN)):
            encrypting(self.azurite, self.container, kek).upload_blob(name, content(1000))
        encrypting(self.azurite, self.container, KEY).upload_blob("changed", content(1000))
        raw = self.azurite.sdk(self.container).get_blob_client("changed")
        metadata = raw.get_blob_properties().metadata
        raw.upload_blob(bytes(1028), overwrite=True, metadata=metadata)
        self.mount(options)
        assert self.here.is_mounted, self.said
        self.sh(f"cd {MNT}; cat wrong unknown changed")
        for act in (
            Refusal(403, "AuthenticationFailed"),
            Refusal(403, "AuthorizationPermissionMismatch"),
            Refusal(307, "Moved", (("Location", f"{self.here.source}?{self.token()}"),)),
            Refusal(503, "ServerBusy"),
            echo,
            reset,
        ):
            self.relay.choose = lambda asked, act=act: act  # type: ignore[misc]
            self.sh(f"ls {MNT}")
            self.relay.choose = lambda asked, act=act: (  # type: ignore[misc]
                None if asked.method in ("GET", "HEAD") else act
            )
            self.sh(f"cd {MNT}; echo lost >lost; mv d/moved x")
        self.blobfs("status", MNT)
        self.relay.choose = lambda asked: None
        self.learn()
        self.observer.look()
        self.blobfs("recover", "list")
        # killed with more than fits into its buffer
        self.sh(
            f"exec 3>{MNT}/unsaved; head -c 3000000 /dev/urandom >&3; "
            f"kill -9 {' '.join(map(str, self.here.daemons))}; ls {MNT}; exec 3>&-"
        )
        self.blobfs("status", MNT)
        self.mount(options)
        assert self.here.is_mounted, self.said
        self.run("umount", MNT)
        self.blobfs("recover", "list", "-o", f"sas={self.token()},key_file={self.keys}")
        self.relay.choose = lambda asked: None if asked.method == "GET" else echo
        upload = f"sas={self.token()},key_file={self.keys}"
        self.blobfs("recover", "upload", "--all", "-o", upload)
        self.relay.choose = lambda asked: None
        self.blobfs("recover", "upload", "--all", "-o", upload)
        self.learn()

    def with_programs_for_keys_and_tokens(self) -> None:
        """And a bug, and the system's log. The programs write down how they were called."""
        self.own_file("kms.key", "")
        Path(f"{self.observer.root}{OWN_PLACES}/kms.key").write_bytes(value_of(self.kms))
        (self.directory / "sitecustomize.py").write_text(BUG)
        note = f"cat /proc/$$/environ /proc/$$/cmdline >>/var/tmp/called; cd {ROOT}"
        kms = f"{sys.executable} -m tests.keycommand {OWN_PLACES}/kms.key"
        for name, does in (("kms", kms), ("sas", f"cat {self.sas_file}")):
            program = self.directory / name
            program.write_text(f"#!/bin/sh\n{note}\n[ -e /run/away ] && exit 7\nexec {does}\n")
            program.chmod(0o755)
        options = (
            f"sas_command={self.directory}/sas,key_command={self.directory}/kms,key_file={self.keys},"
            f"spool_dir={SPOOL},timeout=3,log_level=debug"
        )
        env = {"PYTHONPATH": f"{self.directory}:{ROOT}"}
        self.run(*BLOBFS, "mount", self.here.source, MNT, "-o", options, env=env)
        assert self.here.is_mounted, self.said
        self.sh(
            f"cd {MNT}; echo secret >of-the-command; cat d/moved of-the-command; "
            "chmod 600 d/moved; sync d/moved"
        )
        self.sh(f"touch /run/away; cd {MNT}; echo kept >kept; rm /run/away")
        self.learn()
        self.observer.look()
        self.run("umount", MNT)

    def upkeep(self) -> None:
        keys = self.own_file("both.keys", json.dumps({"keys": [NEXT.jwk(), KEY.jwk()]}))
        options = ["-o", f"sas={self.token()},key_file={keys}"]
        for verb in (["verify", "--deep", "--json"], ["rekey"], ["verify", "--deep"]):
            self.blobfs(*verb, self.here.source, *options)
        self.learn()
        self.blobfs("reencrypt", "--protocol", "2.0", self.here.source, *options)
        self.learn()
        self.blobfs("keys", "generate", f"{OWN_PLACES}/new.keys")
        made = Path(f"{self.observer.root}{OWN_PLACES}/new.keys").read_text()
        self.hidden["the key that was made"] = base64.urlsafe_b64decode(
            json.loads(made)["keys"][0]["k"] + "="
        )
        self.blobfs("keys", "show", f"{OWN_PLACES}/new.keys", keys)
        self.blobfs("sas", "show", self.sas_file)
        self.blobfs("sas", "show", "--probe", self.here.source, stdin=self.token())
        wrong = self.own_file("account.key", f"key: {self.azurite.key}")
        self.blobfs("sas", "create", "--account-key-file", wrong, self.here.source)
        # its output is a token, which is what it is for
        self.own_file("account.key", self.azurite.key)
        done = self.here.machine.run(
            *(*BLOBFS, "sas", "create", "--account-key-file"),
            *(f"{OWN_PLACES}/account.key", self.here.source),
        )
        self.hidden["the token that was made"] = base64.b64decode(signature(done.stdout.strip()))
        self.observer.note("what sas create says beside the token", done.stderr.encode())


SCRAPE = """
import socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(sys.argv[1])
    asked.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    while said := asked.recv(65536):
        print(said.decode())
"""

# As httpx says of a request that fails: with the URL, and so with the token.
BUG = """
import sys
if "mount" in sys.orig_argv:
    from blobfs.blobs.container import Container
    async def set_metadata(self, name, *arguments, **kw):
        raise RuntimeError(f"cannot PUT {self.url}/{name}?{self._token()}")
    Container.set_metadata = set_metadata
"""


def echo(exchange: Exchange) -> None:
    """A refusal that says all that it was asked, as a service of another make might."""
    exchange.refuse(Refusal(400, "InvalidUri", (("x-ms-echo", exchange.path),)))


def reset(exchange: Exchange) -> None:
    exchange.close(reset=True)


@pytest.fixture(scope="module")
def life(observer: Observer, relay: Relay, azurite: Azurite) -> Life:
    life = Life(observer, relay, azurite)
    life.live()
    return life


@pytest.mark.mount
def test_no_secret_is_anywhere_but_in_its_own_place(life: Life) -> None:
    found = life.observer.finds(life.hidden)
    elsewhere = [
        f"{place}: {', '.join(sorted(names))}"
        for place, names in found.items()
        if not place.startswith(OWN_PLACES)
    ]
    assert not elsewhere, "\n".join(elsewhere)


@pytest.mark.mount
def test_in_its_own_place_each_is_found(life: Life) -> None:
    """So that the search is not vain."""
    found = life.observer.finds(life.hidden)
    assert found[f"{OWN_PLACES}/life.keys"] == {"life:1"}
    assert found[f"{OWN_PLACES}/both.keys"] == {"life:1", "life:2"}
    assert found[f"{OWN_PLACES}/kms.key"] == {keycommand.KEY_ID}
    assert found[f"{OWN_PLACES}/new.keys"] == {"the key that was made"}
    assert found[f"{OWN_PLACES}/account.key"] == {"the account's key"}
    assert len(found[f"{OWN_PLACES}/life.sas"]) == 1


HAPPENED = {
    "a mistake in the options": ("said", "the option metadata_ttl='soon' is wrong"),
    "an expired token": ("said", "the SAS token expired at"),
    "a container that is not there": ("said", "403 AuthorizationFailure"),
    "a doctor who found the token": ("said", '"text": "answers, accepts the token and lists'),
    "extended attributes": ("said", 'user.note="value"'),
    "a scrape": ("said", "blobfs_requests_total"),
    "a status": ("said", "key: writes with life:1"),
    "the wrong key": ("said", "cat: wrong: Input/output error"),
    "an unknown key": ("said", "cat: unknown: Required key not available"),
    "a killed daemon": ("said", "the daemon of /mnt/x does not answer"),
    "recovery files": ("said", "blobfs-recovery: '"),
    "a recovery": ("said", "stored"),
    "a rekeying": ("said", r"[1-9]\d* re-keyed"),
    "a re-encryption": ("said", r"[1-9]\d* re-encrypted"),
    "a verification": ("said", "unknown-key"),
    "a log at its finest": ("/var/log/life.log", " DEBUG "),
    "a refused token": ("/var/log/life.log", "403 AuthenticationFailed"),
    "a lacking permission": ("/var/log/life.log", "403 AuthorizationPermissionMismatch"),
    "a redirect": ("/var/log/life.log", "307 Moved: a redirect to 127.0.0.1"),
    "an overloaded service": ("/var/log/life.log", "503 ServerBusy"),
    "a service that echoes": ("/var/log/life.log", "400 InvalidUri"),
    "a broken connection": ("/var/log/life.log", "ReadError"),
    "a close that failed": ("/var/log/life.log", "lost: not stored; its content is kept"),
    "a journal": ("the journal", "BLOBFS_SOURCE=http"),
    "a bug with its traceback": ("the system log", "RuntimeError: .*sig=REDACTED"),
    "a key command that was away": ("the system log", "key_command ended with status 7"),
    "programs that were started": ("/var/tmp/called", "PYTHONPATH"),
}


@pytest.mark.mount
@pytest.mark.parametrize("event", HAPPENED)
def test_what_the_life_was_to_hold_did_happen(event: str, life: Life) -> None:
    place, pattern = HAPPENED[event]
    text = life.said if place == "said" else life.observer.seen[place].decode(errors="replace")
    assert re.search(pattern, text), f"{place} has no {pattern!r}"


@pytest.mark.mount
def test_each_kind_of_secret_was_in_the_life(life: Life) -> None:
    kinds = Counter(re.sub(" [0-9a-f]{1,9}( |$)", r"\1", name) for name in life.hidden)
    assert kinds["token"] >= 8
    assert kinds["content key under life:1"] >= 10
    assert kinds["content key under life:2"] >= 10
    assert kinds[f"content key under {keycommand.KEY_ID}"] >= 3


PLANT = """
import os, socket, subprocess, sys, time
secret = sys.stdin.read()
for path in ("/var/lib/blobfs/x", "/run/blobfs/x", "/var/log/x", "/tmp/x", "/root/x", "/dev/shm/x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(secret)
os.makedirs("/run/mount", exist_ok=True)
with open("/run/mount/utab", "a") as file:
    file.write(f"SRC={secret}\\n")
for path in ("/run/systemd/journal/socket", "/dev/log"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.sendto(secret.encode(), path)
os.makedirs("/mnt/planted")
subprocess.run(["mount", "-t", "tmpfs", secret, "/mnt/planted"], check=True)
for arguments, environment in (([secret], {}), (["x"], {"X": secret})):
    waits = ["/bin/sh", "-c", "exec >/dev/null 2>&1; sleep 1000; :", *arguments]
    subprocess.Popen(waits, env=environment)
print(secret)
"""


@pytest.mark.mount
def test_a_secret_is_found_in_each_place(observer: Observer) -> None:
    planted = secrets.token_bytes(32)
    observer.run(sys.executable, "-c", PLANT, stdin=quoted(planted).decode())
    observer.look()
    observer.collect()
    found = {place.partition(" /")[0] for place in observer.finds({"it": planted})}
    assert found == {
        *(
            "command lines",
            "environments",
            "/proc/1/mounts",
            "/proc/1/mountinfo",
            "/run/mount/utab",
        ),
        *("the journal", "the system log", "the output of"),
        *("/var/lib/blobfs/x", "/run/blobfs/x", "/var/log/x", "/tmp/x", "/root/x", "/dev/shm/x"),
    }
