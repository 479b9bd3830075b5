"""The mount options: what is taken, what is refused, and in which words."""

import os
import shutil
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs import options, sas
from blobfs.errors import OptionError, SasError, UsageError
from blobfs.options import MountOptions, kernel_options, parse_mount, split_options

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
URL = "https://acct.blob.core.windows.net/cont"


def token(permissions: str = "rcwdl", **changes: Any) -> str:
    arguments: dict[str, Any] = {"expiry": NOW + timedelta(days=1), "protocol": "https,http"}
    return sas.create("acct", "a2V5", "cont", permissions=permissions, **(arguments | changes))


TOKEN = token()
COMMA_TOKEN = TOKEN.replace("https%2Chttp", "https,http")  # as the portal gives it
SIGNATURE = TOKEN.partition("sig=")[2]
GOOD = (f"sas={TOKEN}", "key_file=/etc/blobfs/keys")


def mount(*extra: str, source: str = URL, base: tuple[str, ...] = GOOD) -> MountOptions:
    return parse_mount(source, "/mnt/x", (*base, *extra), now=NOW)


# --- splitting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        (",,ro,", [("ro", None)]),
        ("ro,uid=5", [("ro", None), ("uid", "5")]),
        ("key_id=", [("key_id", "")]),
        ("key_id=a=b", [("key_id", "a=b")]),
        (r"key_file=/a\,b,ro", [("key_file", "/a,b"), ("ro", None)]),
        (r"key_file=/a\\,ro", [("key_file", "/a\\"), ("ro", None)]),
        (r"key_file=/a\040b", [("key_file", r"/a\040b")]),
        ('key_file="/a,b",ro', [("key_file", "/a,b"), ("ro", None)]),
        ('key_file=/a"b,ro', [("key_file", '/a"b'), ("ro", None)]),
        ("key_file=/50%25,ro", [("key_file", "/50%25"), ("ro", None)]),
        ("sas=sp=r&spr=https,http&sig=x,ro", [("sas", "sp=r&spr=https,http&sig=x"), ("ro", None)]),
        ("sas=sp=r&sig=x&spr=https,http,ro", [("sas", "sp=r&sig=x&spr=https,http"), ("ro", None)]),
        ("sas=srh=a,b,c&sig=x,ro", [("sas", "srh=a,b,c&sig=x"), ("ro", None)]),
        ("sas=sig=x&rsct=a,b&sr=c,ro", [("sas", "sig=x&rsct=a,b&sr=c"), ("ro", None)]),
        ("sas=sig=x,key_fiel=/x", [("sas", "sig=x"), ("key_fiel", "/x")]),
        ("sas=sig=x,x-systemd.automount", [("sas", "sig=x"), ("x-systemd.automount", None)]),
    ],
)
def test_options_are_split_at_commas(text: str, pairs: list[tuple[str, str | None]]) -> None:
    assert split_options(text) == pairs


@pytest.mark.parametrize(
    ("text", "message"), [('key_file="/a,ro', "without a closing one"), ("=x", "no name")]
)
def test_options_that_cannot_be_split_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        split_options(text)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


plain_options = st.tuples(
    st.sampled_from(["key_file", "key_id", "log_file", "comment", "x-note"]),
    st.none() | st.text(max_size=20).filter(lambda value: not value.startswith('"')),
)


@given(st.lists(plain_options))
def test_any_options_survive_escaping(pairs: list[tuple[str, str | None]]) -> None:
    text = ",".join(name if v is None else f"{name}={escaped(v)}" for name, v in pairs)
    assert split_options(text) == pairs


@given(
    st.permutations(COMMA_TOKEN.split("&")).map("&".join),
    st.sampled_from(["", "?", URL + "?"]),
    st.lists(st.sampled_from(["ro", "nofail", "uid=5", "x-a", "key_file=/k"])),
    st.lists(st.sampled_from(["rw", "_netdev", "gid=5", "X-mount.mkdir", "noforeground"])),
)
def test_a_sas_with_commas_survives_among_any_options(
    query: str, form: str, before: list[str], after: list[str]
) -> None:
    pairs = split_options(",".join([*before, f"sas={form}{query}", *after]))
    assert pairs[len(before)] == ("sas", form + query)
    assert len(pairs) == len(before) + 1 + len(after)


# --- the token -------------------------------------------------------------------------------


def test_a_token_is_given_as_option_in_a_file_or_in_the_source(tmp_path: Path) -> None:
    key = ("key_file=/k",)
    file = tmp_path / "token"
    file.write_text(f" ?{TOKEN}\n")
    file.chmod(0o600)
    assert mount(f"sas={COMMA_TOKEN}", base=key).accesses[0].sas.query == COMMA_TOKEN
    assert mount(f"sas={URL}?{TOKEN}", base=key).accesses[0].sas.query == TOKEN
    assert mount(base=key, source=f"{URL}?{TOKEN}").accesses[0].sas.query == TOKEN
    from_file = mount(f"sas_file={file}", base=key)
    assert from_file.accesses[0].sas.query == TOKEN
    assert from_file.sas_file == file


ACCOUNT_URL = URL.rpartition("/")[0] + "/"


def sas_dir_with(directory: Path, **tokens: str) -> Path:
    directory.mkdir()
    for name, text in tokens.items():
        file = directory / f"{name}.sas"
        file.touch(0o600)
        file.write_text(text)
    return directory


def test_a_sas_dir_gives_one_container_for_each_usable_token(tmp_path: Path) -> None:
    directory = sas_dir_with(
        tmp_path / "tokens", one=TOKEN, two=f"{TOKEN}\n", three=TOKEN.replace("sr=c", "sr=b")
    )
    (directory / "README").write_text("not a token")
    chosen = mount(f"sas_dir={directory}", source=ACCOUNT_URL, base=("key_file=/k",))
    assert [access.source.container for access in chosen.accesses] == ["one", "two"]
    assert chosen.accesses[1].sas.query == TOKEN
    assert any(note.startswith("three.sas is left out:") for note in chosen.notes)


def test_a_sas_dir_without_a_usable_token_is_refused(tmp_path: Path) -> None:
    directory = sas_dir_with(tmp_path / "tokens", Bad=TOKEN)
    with pytest.raises(SasError, match="no usable file"):
        mount(f"sas_dir={directory}", source=ACCOUNT_URL, base=("key_file=/k",))


def test_a_sas_dir_goes_with_the_account_and_a_token_with_a_container(tmp_path: Path) -> None:
    directory = sas_dir_with(tmp_path / "tokens", one=TOKEN)
    with pytest.raises(OptionError, match="names one: sas_dir has several"):
        mount(f"sas_dir={directory}", source=URL, base=("key_file=/k",))
    with pytest.raises(OptionError, match="names no container"):
        mount(f"sas={TOKEN}", source=ACCOUNT_URL, base=("key_file=/k",))


@pytest.mark.parametrize(
    ("source", "given_as"),
    [
        (URL, []),
        (URL, [f"sas={TOKEN}", "sas_file=/f"]),
        (f"{URL}?{TOKEN}", [f"sas={TOKEN}"]),
        (f"{URL}?{TOKEN}", ["sas_file=/f"]),
    ],
)
def test_a_token_is_given_exactly_once(source: str, given_as: list[str]) -> None:
    with pytest.raises(OptionError, match="give the SAS token once"):
        mount(*given_as, source=source, base=("key_file=/k",))


def test_a_token_comes_from_a_command_without_a_shell() -> None:
    chosen = mount(f"sas_command=echo '{TOKEN}'", base=("key_file=/k",))
    assert chosen.accesses[0].sas.query == TOKEN
    assert chosen.accesses[0].command == (shutil.which("echo"), TOKEN)
    assert SIGNATURE not in repr(chosen)
    with pytest.raises(SasError, match="not a SAS token"):
        mount("sas_command=echo $HOME", base=("key_file=/k",))


@pytest.mark.parametrize("command", ["no-such-program x", "echo 'unclosed"])
def test_a_command_that_cannot_be_run_is_refused(command: str) -> None:
    with pytest.raises(OptionError, match="write a program that can be run, and its arguments"):
        mount(f"sas_command={command}", base=("key_file=/k",))


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o604, "read"), (0o644, "read"), (0o620, "written"), (0o602, "written"), (0o666, "written")],
)
def test_a_sas_file_that_others_can_use_is_refused(tmp_path: Path, mode: int, said: str) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    with pytest.raises(SasError, match=f"can be {said} by others: chmod 600"):
        mount(f"sas_file={file}", base=("key_file=/k",))


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440])
def test_a_sas_file_may_be_a_systemd_credential(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    assert mount(f"sas_file={file}", base=("key_file=/k",)).accesses[0].sas.query == TOKEN


def test_a_sas_file_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(SasError, match="not a regular file"):
        mount(f"sas_file={tmp_path}/fifo", base=("key_file=/k",))
    with pytest.raises(SasError, match="Is a directory"):
        mount(f"sas_file={tmp_path}", base=("key_file=/k",))


def test_a_sas_file_that_holds_no_token_is_refused(tmp_path: Path) -> None:
    def refused(path: Path | str, message: str) -> None:
        with pytest.raises(SasError, match=message) as caught:
            mount(f"sas_file={path}", base=("key_file=/k",))
        assert SIGNATURE not in str(caught.value)

    file = tmp_path / "token"
    file.touch(0o600)
    refused(file, "not a SAS token")
    file.write_text(URL)
    refused(file, "has no token")
    file.write_bytes(TOKEN.encode() + b"\xff")
    refused(file, "not plain ASCII")
    file.write_bytes(b"x" * 65537)
    refused(file, "too long")
    refused(tmp_path / "none", "none: No such file")
    refused(tmp_path, "Is a directory")
    refused(TOKEN, "sig=REDACTED: No such file")
    refused("/a\0b", "not a path")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"https://acct.blob.core.windows.net/other?{TOKEN}", "is for the container other"),
        (f"https://else.blob.core.windows.net/cont?{TOKEN}", "is for https://else.blob"),
        (f"BlobEndpoint=https://else.blob.core.windows.net;SharedAccessSignature={TOKEN}", "else"),
        (f"ftp://acct/cont?{TOKEN}", "a place that cannot be mounted"),
    ],
)
def test_a_sas_url_for_another_place_is_refused(text: str, message: str) -> None:
    with pytest.raises(SasError, match=message) as caught:
        mount(f"sas={text}", base=("key_file=/k",))
    assert SIGNATURE not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"https://ACCT.blob.core.windows.net:443/cont/deep/er?{TOKEN}",
        f"BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature={TOKEN}",
    ],
)
def test_a_sas_url_for_the_same_place_is_taken(text: str) -> None:
    assert mount(f"sas={text}", base=("key_file=/k",)).accesses[0].sas.query == TOKEN


def test_what_sas_check_refuses_is_refused() -> None:
    expired = token(expiry=NOW - timedelta(hours=1))
    with pytest.raises(SasError, match="expired"):
        mount(f"sas={expired}")
    with pytest.raises(SasError, match="allows https only"):
        mount(f"sas={token(protocol='https')}", source="http://127.0.0.1:1/acct/cont")
    directory = TOKEN.replace("sr=c", "sr=d&sdd=1")
    with pytest.raises(SasError, match="directory 1 deep"):
        mount(f"sas={directory}")
    assert mount(f"sas={directory}", source=f"{URL}/a").source.prefix == "a"


def test_a_token_that_cannot_write_makes_the_mount_read_only_and_says_so() -> None:
    chosen = mount(f"sas={token('rl')}")
    assert chosen.read_only
    assert chosen.notes == ("mounted read-only: the token lacks w, d (has rl)",)
    assert not mount().read_only
    assert mount().notes == ()
    assert mount(f"sas={token('rl')}", "ro").notes == ()


# --- values ----------------------------------------------------------------------------------


def test_defaults() -> None:
    chosen = mount()
    assert (chosen.protocol, chosen.region_size, chosen.min_protocol) == ("2.1", 65536, "1.0")
    assert chosen.require_encryption
    assert not any((chosen.require_seal, chosen.read_only, chosen.allow_other, chosen.foreground))
    assert (chosen.uid, chosen.gid) == (os.getuid(), os.getgid())
    assert (chosen.file_mode, chosen.dir_mode, chosen.umask) == (0o644, 0o755, 0)
    assert (chosen.metadata_ttl, chosen.timeout, chosen.connections) == (10, 60, 16)
    assert (chosen.cache_size, chosen.readahead) == (128 << 20, 32 << 20)
    assert (chosen.on_conflict, chosen.log_level, chosen.log_file) == ("keep", "info", None)
    assert chosen.metrics is None
    assert chosen.mountpoint == Path("/mnt/x")


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("key_file=/k/keys", "key_file", Path("/k/keys")),
        ("key_passphrase_file=/k/pass", "key_passphrase_file", Path("/k/pass")),
        ("key_vault=https://v/keys/k/1", "key_vault", "https://v/keys/k/1"),
        ("key_provider=acme:eu:1", "key_provider", "acme:eu:1"),
        ("key_command=/kms 'a b' c", "key_command", ("/kms", "a b", "c")),
        ("key_command=k,key_command_timeout=1m", "key_command_timeout", 60.0),
        ("key_id=2026", "key_id", "2026"),
        ("protocol=2.0", "protocol", "2.0"),
        ("region_size=16", "region_size", 16),
        ("region_size=1G", "region_size", 1 << 30),
        ("min_protocol=2.0", "min_protocol", "2.0"),
        ("norequire_encryption", "require_encryption", False),
        ("norequire_encryption,require_encryption", "require_encryption", True),
        ("require_seal", "require_seal", True),
        ("ro", "read_only", True),
        ("ro,rw", "read_only", False),
        ("uid=0", "uid", 0),
        ("gid=4294967294", "gid", 4294967294),
        ("file_mode=0600", "file_mode", 0o600),
        ("dir_mode=2770", "dir_mode", 0o2770),
        ("umask=027", "file_mode", 0o640),
        ("umask=027", "dir_mode", 0o750),
        ("allow_other", "allow_other", True),
        ("metadata_ttl=0", "metadata_ttl", 0.0),
        ("metadata_ttl=0.5s", "metadata_ttl", 0.5),
        ("timeout=2m", "timeout", 120.0),
        ("timeout=1h", "timeout", 3600.0),
        ("cache_size=0", "cache_size", 0),
        ("cache_size=100k", "cache_size", 102400),
        ("readahead=1MiB", "readahead", 1 << 20),
        ("buffer_size=2MB", "buffer_size", 2 << 20),
        ("spool_size=3T", "spool_size", 3 << 40),
        ("spool_dir=/s", "spool_dir", Path("/s")),
        ("list_page=7", "list_page", 7),
        ("connections=64", "connections", 64),
        ("on_conflict=overwrite", "on_conflict", "overwrite"),
        ("log_level=debug", "log_level", "debug"),
        ("log_file=/l", "log_file", Path("/l")),
        ("metrics=127.0.0.1:9100", "metrics", ("127.0.0.1", 9100)),
        ("foreground", "foreground", True),
        ("uid=5,uid=6", "uid", 6),
    ],
)
def test_each_option_sets_its_field(option: str, field: str, value: object) -> None:
    assert getattr(mount(option), field) == value


def test_every_option_in_the_table_is_tested_above() -> None:
    marks = test_each_option_sets_its_field.pytestmark  # type: ignore[attr-defined]
    tokens = {"sas", "sas_file", "sas_dir", "sas_command"}
    tested = {field for _, field, _ in marks[0].args[1]} | tokens | {"umask"}
    assert tested == {field.name for field in fields(MountOptions) if field.metadata}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("region_size=15", "region_size='15' is wrong: write a size from 16 bytes to 1G"),
        ("region_size=2G", "from 16 bytes to 1G"),
        ("cache_size=lots", "cache_size='lots' is wrong: write a size in bytes"),
        ("cache_size=-1", "a size in bytes"),
        ("cache_size=1.5G", "a size in bytes"),
        ("protocol=3", "one of 1.0, 2.0, 2.1"),
        ("min_protocol=0", "one of 1.0, 2.0, 2.1"),
        ("on_conflict=merge", "one of keep, overwrite"),
        ("log_level=loud", "one of debug, info, warning, error"),
        ("file_mode=rw-r--r--", "permission bits in octal"),
        ("umask=8", "permission bits in octal"),
        ("uid=alice", "a numeric id"),
        ("gid=4294967295", "a numeric id"),
        ("metadata_ttl=soon", "a time in seconds"),
        ("metadata_ttl=nan", "a time in seconds"),
        ("timeout=0", "at least one second"),
        ("list_page=0", "a number from 1 to 5000"),
        ("list_page=5001", "a number from 1 to 5000"),
        ("connections=0", "a number from 1 to 1024"),
        ("connections=1025", "a number from 1 to 1024"),
        ("ro=1", "option ro takes no value"),
        ("key_command=a 'b", "a program and its arguments, with any quotes closed"),
        ('key_command=" "', "a program and its arguments"),
        ("key_command=a,key_command_timeout=0", "at least one second"),
        ("key_command_timeout=9", "key_command_timeout is for a key_command: give key_command="),
        ("key_file", "option key_file needs a value: write key_file="),
        ("key_file=", "option key_file needs a value"),
        ("protocol=2.0,region_size=64K", "region_size goes with protocol=2.1"),
        ("protocol=1.0,region_size=64K", "region_size goes with protocol=2.1"),
        ("protocol=2.0,min_protocol=2.1", "would write what min_protocol=2.1"),
        ("allow_other,allow_root", "exclude each other"),
        ("key_fil=/k", "unknown option key_fil: did you mean key_file"),
        ("norequire_encyption", "did you mean norequire_encryption"),
        ("nofial", "did you mean nofail"),
        ("max_read=4096", "unknown option max_read"),
        ("qqqq", "unknown option qqqq: see blobfs mount --help"),
        ("sp=rl&st=2026&sig=x", "unknown option sp: if it begins a SAS token, write sas="),
        ("c2VjcmV0+/==", "not NAME or NAME=VALUE"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(option: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        mount(option)
    assert "\n" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_protocol_2_0_has_its_one_region_size() -> None:
    assert mount("protocol=2.0").region_size == 4 << 20
    assert mount("protocol=2.0,region_size=4M").region_size == 4 << 20


def test_only_a_read_only_mount_of_plain_blobs_needs_no_key() -> None:
    base = (f"sas={TOKEN}",)
    for enough in ("ro,norequire_encryption", f"norequire_encryption,sas={token('rl')}"):
        assert mount(enough, base=base).key_file is None
    for too_little in ("ro", "norequire_encryption", "rw"):
        with pytest.raises(OptionError, match="key_file= is missing: make one with blobfs keys"):
            mount(too_little, base=base)
    with pytest.raises(OptionError, match="give key_file="):
        mount("ro,norequire_encryption,key_id=1", base=base)
    with pytest.raises(OptionError, match="key_passphrase_file is for a key_file"):
        mount("ro,norequire_encryption,key_passphrase_file=/p", base=base)


@pytest.mark.parametrize(
    "option", ["key_vault=https://v/keys/k", "key_provider=a", "key_command=a"]
)
def test_a_key_may_be_elsewhere_than_in_a_file(option: str) -> None:
    assert mount(option, base=(f"sas={TOKEN}",)).key_file is None


def test_the_mount_point_must_be_given() -> None:
    with pytest.raises(OptionError, match="mount point is missing"):
        parse_mount(URL, "", GOOD, now=NOW)


def test_paths_are_absolute_since_the_daemon_changes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    chosen = parse_mount(URL, "mnt", (*GOOD, "key_file=k,log_file=~/l"), now=NOW)
    assert (chosen.mountpoint, chosen.key_file) == (tmp_path / "mnt", tmp_path / "k")
    assert chosen.log_file == Path("/home/me/l")


def test_a_home_that_is_unknown_is_said() -> None:
    with pytest.raises(OptionError, match="no home directory"):
        mount("log_file=~nobody-of-that-name/l")


@pytest.mark.parametrize(
    ("user", "environment", "directory"),
    [
        (0, {"HOME": "/root"}, "/var/lib/blobfs"),
        (7, {"HOME": "/home/me"}, "/home/me/.local/state/blobfs"),
        (7, {"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/blobfs"),
        (7, {"HOME": "/home/me", "XDG_STATE_HOME": "state"}, "/home/me/.local/state/blobfs"),
        (7, {}, "/var/tmp/blobfs-7"),
    ],
)
def test_the_spool_lies_where_files_outlive_a_reboot(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], directory: str
) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert mount().spool_dir == Path(directory)


# --- mount(8) and the kernel -----------------------------------------------------------------


def test_what_mount_and_systemd_add_is_accepted() -> None:
    plain = mount()
    assert (
        mount(
            "rw,_netdev,_rnetdev,nofail,auto,noauto,user,users,user=me,owner,group,nouser,defaults",
            "relatime,strictatime,lazytime,x-systemd.automount,x-systemd.idle-timeout=60,X-mount.mkdir",
            "comment=mine,helper=x,uhelper=y,default_permissions,silent",
        )
        == plain
    )


def test_the_kernel_is_told_source_type_and_permissions() -> None:
    assert kernel_options(mount()) == {f"fsname={URL}", "subtype=blobfs", "default_permissions"}
    assert kernel_options(mount("allow_other")) - kernel_options(mount()) == {"allow_other"}
    assert kernel_options(mount("ro")) - kernel_options(mount()) == {"ro"}
    read_only = mount(f"sas={token('rl')}")
    assert "ro" in kernel_options(read_only)


def test_flags_of_the_mount_reach_the_kernel_the_last_of_a_pair() -> None:
    chosen = mount("suid,dev,exec,noatime,allow_root", "nosuid,nodev,sync,async")
    assert set(chosen.fuse_options) == {
        "nosuid",
        "nodev",
        "exec",
        "noatime",
        "allow_root",
        "async",
    }
    assert set(chosen.fuse_options) < kernel_options(chosen)


def test_the_source_is_escaped_as_libfuse_reads_it() -> None:
    chosen = mount(source=f"{URL}/a, b/ü")
    assert f"fsname={URL}/a\\054 b/\\303\\274" in kernel_options(chosen)
    odd = replace(chosen, source=replace(chosen.source, display="a\\b"))
    assert "fsname=a\\134b" in kernel_options(odd)


def test_no_secret_is_in_the_repr_nor_in_what_the_kernel_shows() -> None:
    for chosen in (mount(), mount(source=f"{URL}?{TOKEN}", base=("key_file=/k",))):
        assert SIGNATURE not in repr(chosen)
        assert SIGNATURE not in repr(kernel_options(chosen))
        assert "?" not in chosen.source.display


# --- as a whole ------------------------------------------------------------------------------


def test_a_source_without_container_cannot_be_mounted() -> None:
    with pytest.raises(OptionError, match="names no container"):
        mount(source="https://acct.blob.core.windows.net/")


def test_the_readme_table_has_a_row_for_every_option() -> None:
    header, _, *rows = options.option_table().splitlines()
    assert header == "| option | default | meaning |"
    assert len(rows) == sum("option" in field.metadata for field in fields(MountOptions))
    assert "| `region_size=` | 64K |" in options.option_table()
    assert "| `ro`, `rw` | off |" in options.option_table()
    assert "| `require_encryption`, `norequire_encryption` | on |" in options.option_table()
    for row in rows:
        assert row.count("|") == 4


@given(st.lists(st.text(max_size=40), max_size=3), st.text(max_size=40))
def test_no_text_makes_parsing_fail_otherwise_than_by_saying_so(
    texts: list[str], source: str
) -> None:
    for where in (source, f"{URL}/{source}"):
        said = ""
        try:
            parse_mount(where, "/mnt", (*GOOD, *texts), now=NOW)
        except UsageError as exc:
            said = str(exc)
        assert SIGNATURE not in said
        assert "\n" not in said
