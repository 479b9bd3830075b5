"""The SAS token: what is read from it, refused, explained, hidden and made."""

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

import pytest
from azure.storage.blob import generate_container_sas
from hypothesis import given
from hypothesis import strategies as st

from blobfs import sas
from blobfs.errors import SasError

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SIGNATURE = "qhN3T6+/hJ8OQ3aN5rM0kBsTz1V9cYx2u4wLeGdPfI0="
SIG = quote(SIGNATURE, safe="")
KEY = base64.b64encode(b"an account key of the tests, 64 bytes long, padded to this size.").decode()
VECTORS = json.loads((Path(__file__).parent / "vectors/sas-container-strings.json").read_text())


def token(**changes: str | None) -> str:
    """A good read-write token, with fields changed, added, or (None) left out."""
    fields: dict[str, str | None] = {
        "sv": "2025-11-05",
        "st": "2026-01-01",
        "se": "2027-01-01T00:00:00Z",
        "sr": "c",
        "sp": "racwdl",
    }
    fields |= changes
    fields.setdefault("sig", SIGNATURE)
    return "&".join(f"{k}={quote(v, safe='')}" for k, v in fields.items() if v is not None)


def check(text: str, *, scheme: str = "https", prefix: str = "", ro: bool = False) -> list[str]:
    return sas.check(sas.parse(text), now=NOW, scheme=scheme, prefix=prefix, read_only=ro)


# --- reading ---------------------------------------------------------------------------------


def test_a_token_is_kept_byte_for_byte() -> None:
    text = f"sp=rl&sig={SIG}&se=2027-01-01T00%3a00%3A00Z&sr=c&sv=2025-11-05&spr=https,http"
    assert sas.parse(text).query == text


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "?{}",
        " \n\t{}\r\n",
        '"{}"',
        "'?{}'\n",
        "&{}&",
        "https://acct.blob.core.windows.net/cont?{}",
        "http://127.0.0.1:10000/acct/cont?{}",
        "BlobEndpoint=https://acct.blob.core.windows.net/;SharedAccessSignature={}",
        "sharedaccesssignature=?{};blobendpoint=https://acct.blob.core.windows.net",
        "SharedAccessSignature={}",
    ],
)
def test_a_token_is_found_in_whatever_the_portal_gives(wrap: str) -> None:
    assert sas.parse(wrap.format(token())).query == token()


def test_the_url_that_came_with_a_token_is_kept() -> None:
    assert sas.split_url(f"https://h/c/p?{token()}")[0] == "https://h/c/p"
    assert sas.split_url(f"SharedAccessSignature={token()};BlobEndpoint=https://h/")[0] == (
        "https://h/"
    )
    assert sas.split_url(token())[0] == ""
    assert sas.split_url("https://h/c") == ("https://h/c", None)


def test_fields_are_read() -> None:
    parsed = sas.parse(token(spr="https", sip="10.0.0.1-10.0.0.9", ses="scope", sr="d", sdd="2"))
    assert (parsed.version, parsed.resource, parsed.directory_depth) == ("2025-11-05", "d", 2)
    assert parsed.permissions == set("racwdl")
    assert parsed.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert parsed.expiry == datetime(2027, 1, 1, tzinfo=UTC)
    assert (parsed.protocols, parsed.ip) == ({"https"}, "10.0.0.1-10.0.0.9")
    assert parsed.encryption_scope == "scope"
    assert not parsed.is_user_delegation
    assert not parsed.is_account


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2026-07-08", datetime(2026, 7, 8, tzinfo=UTC)),
        ("2026-07-08T09:10Z", datetime(2026, 7, 8, 9, 10, tzinfo=UTC)),
        ("2026-07-08T09:10:11Z", datetime(2026, 7, 8, 9, 10, 11, tzinfo=UTC)),
        ("2026-07-08T09:10:11.1234567Z", datetime(2026, 7, 8, 9, 10, 11, 123456, tzinfo=UTC)),
        ("2026-07-08T09:10:11+02:00", datetime(2026, 7, 8, 7, 10, 11, tzinfo=UTC)),
    ],
)
def test_times_come_in_the_services_forms(text: str, when: datetime) -> None:
    assert sas.parse(token(se=text)).expiry == when


def test_a_delegation_key_may_expire_before_its_token() -> None:
    parsed = sas.parse(token(skoid="id", ske="2026-09-01T00:00:00Z"))
    assert parsed.is_user_delegation
    assert parsed.effective_expiry == datetime(2026, 9, 1, tzinfo=UTC)
    assert sas.parse(token()).effective_expiry == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_stored_policy_leaves_rights_and_times_open() -> None:
    parsed = sas.parse(token(si="policy", sp=None, se=None, st=None))
    assert parsed.permissions is None
    assert parsed.effective_expiry is None
    assert sas.writable(parsed) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a SAS token"),
        ("hello", "not a SAS token"),
        ("https://acct.blob.core.windows.net/cont", "not a SAS token"),
        ("https://acct.blob.core.windows.net/cont?restype=container", "not a SAS token"),
        ("BlobEndpoint=https://acct.blob.core.windows.net/", "not a SAS token"),
        (token(sig=None), "not a SAS token"),
        (KEY, "account key, which blobfs never uses"),
        (f"AccountName=acct;AccountKey={KEY}", "account key, which blobfs never uses"),
        (token(sv=None), "no sv= field"),
        (token(sr=None), "no sr= field"),
        (token(sp=None), "no sp= field"),
        (token(se=None), "no se= field"),
        (token(se="tomorrow"), "se= field is not a time"),
        (token(se="2026-02-30"), "se= field is not a time"),
        (token(st="2026-W01-1"), "st= field is not a time"),
        (token(skoid="x", ske="20260101"), "ske= field is not a time"),
        (token(sdd="two"), "sdd= field is not a number"),
        (token() + "&sp=r", "the field sp= twice"),
        (token() + "&&sip=1.2.3.4", "not NAME=VALUE"),
        (token() + "&flag", "not NAME=VALUE"),
        (token(comp="list"), "has comp= in it"),
        (token(restype="container"), "has restype= in it"),
        (token(ses="%ff").replace("%25", "%"), "does not decode as UTF-8"),
        (token().replace("&", "&amp;"), "out of HTML or XML"),
        (token().replace("%2B", "+"), "bare \\+ or space"),
        (token().replace("%2B", " "), "bare \\+ or space"),
        (token().replace("%2B", "%20"), "bare \\+ or space"),
        (token().replace("%", "%25"), "encoded twice"),
        (token(se="2027-01-01") + "\n&sip=1.2.3.4", "not NAME=VALUE|white space"),
        (token().replace("sp=", "sp=\n"), "white space"),
        (token()[:-9], "not 32 bytes in base64"),
        (token(sig="AAAA"), "not 32 bytes in base64"),
        (token(sig=SIGNATURE[:-2] + "*="), "not 32 bytes in base64"),
    ],
)
def test_what_is_no_token_or_a_damaged_one_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SasError, match=message) as caught:
        sas.parse(text)
    said = str(caught.value)
    assert "\n" not in said
    assert ":" in said, "says what to do"
    for secret in (SIGNATURE[:12], SIG[:12], SIGNATURE[-12:-2], KEY[:12]):
        assert secret not in said


field_values = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)


@given(st.data())
def test_any_order_and_encoding_of_fields_means_the_same(data: st.DataObject) -> None:
    values = {
        "sv": "2025-11-05",
        "sr": "c",
        "sp": data.draw(st.text("racwdxyltfmeopi", min_size=1, max_size=15)),
        "si": data.draw(field_values),
        "ses": data.draw(field_values),
        "sip": "1.2.3.4-1.2.3.9",
        "spr": "https,http",
        "sig": base64.b64encode(data.draw(st.binary(min_size=32, max_size=32))).decode(),
    }
    expiry = data.draw(st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1)))
    values["se"] = expiry.strftime("%Y-%m-%dT%H:%M:%SZ")
    pieces = []
    for name in data.draw(st.permutations(sorted(values))):
        raw = "/=" if name == "sig" else "/=,:-"  # what may stand unencoded, as some tools do
        encoded = quote(values[name], safe=data.draw(st.sampled_from(["", raw])))
        if data.draw(st.booleans()):
            encoded = re.sub("%..", lambda match: match[0].lower(), encoded)
        pieces.append(f"{name}={encoded}")
    query = "&".join(pieces)

    parsed = sas.parse(data.draw(st.sampled_from(["", "?", "https://h/c?"])) + query)

    assert parsed.query == query
    assert parsed.permissions == frozenset(values["sp"])
    assert parsed.expiry == expiry.replace(microsecond=0)
    assert (parsed.identifier, parsed.encryption_scope) == (values["si"], values["ses"])
    assert parsed.protocols == {"https", "http"}
    assert query not in repr(parsed)


@given(st.text(max_size=200) | st.text("&=?;%+ sigvepr/:", max_size=60).map(lambda s: token() + s))
def test_no_text_makes_the_parser_fail_otherwise_than_by_saying_so(text: str) -> None:
    said = ""
    try:
        sas.split_url(text)
    except SasError as exc:
        said = str(exc)
    assert SIG[:12] not in said
    assert "\n" not in said


def test_the_signature_is_not_in_the_repr() -> None:
    assert SIG not in repr(sas.parse(token()))
    assert "sig=" not in repr(sas.parse(token()))


# --- judging ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (token(ss="b", srt="sco", sr=None), "account SAS .* wants one for a container"),
        (token(sr="b"), "for a single blob, a mount needs one for the container"),
        (token(sr="bs"), "for a single blob snapshot"),
        (token(sr="bv"), "for a single blob version"),
        (token(sr="s"), "for a file share"),
        (token(sr="zz"), "for something that is not a container"),
        (token(sr="d"), "no sdd= field"),
        (token(se="2026-06-01T11:58:00Z"), "expired at 2026-06-01T11:58:00Z \\(2 minutes ago\\)"),
        (token(se="2026-06-01T12:00:00Z"), "expired at .* \\(0 seconds ago\\)"),
        (token(skoid="x", ske="2026-05-30"), "expired at 2026-05-30T00:00:00Z \\(2 days ago\\)"),
        (token(st="2026-06-01T13:00:00Z"), "not valid before 2026-06-01T13:00:00Z \\(in 1 hour\\)"),
        (token(sp="wd"), "lacks r, l \\(it has sp=wd\\)"),
        (token(sp="rw"), "lacks l \\(it has sp=rw\\)"),
        (token(sp="lcwd"), "lacks r \\(it has sp=cwdl\\)"),
    ],
)
def test_a_token_that_cannot_mount_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SasError, match=message) as caught:
        check(text)
    assert "\n" not in str(caught.value)


def test_an_https_token_is_refused_on_http_only() -> None:
    with pytest.raises(SasError, match="allows https only \\(spr=\\), the source is http"):
        check(token(spr="https"), scheme="http")
    assert check(token(spr="https"), scheme="https") == []
    assert check(token(spr="https,http"), scheme="http") == []
    assert check(token(), scheme="http") == []


def test_a_start_within_the_usual_clock_skew_is_left_to_the_service() -> None:
    assert check(token(st="2026-06-01T12:15:00Z")) == []
    with pytest.raises(SasError, match="not valid before"):
        check(token(st="2026-06-01T12:15:01Z"))


@pytest.mark.parametrize(
    ("prefix", "allowed"), [("", False), ("a", False), ("a/b", True), ("a/b/c", True)]
)
def test_a_directory_token_mounts_its_directory_or_one_below(prefix: str, allowed: bool) -> None:
    if allowed:
        assert check(token(sr="d", sdd="2"), prefix=prefix) == []
    else:
        with pytest.raises(SasError, match="a directory 2 deep"):
            check(token(sr="d", sdd="2"), prefix=prefix)


@pytest.mark.parametrize(
    ("letters", "writable", "notes"),
    [
        ("racwdl", True, []),
        ("rwdl", True, []),
        ("rl", False, ["mounted read-only: the token lacks w, d (has rl)"]),
        ("lcr", False, ["mounted read-only: the token lacks w, d (has rcl)"]),
        ("rdl", False, ["mounted read-only: the token lacks w (has rdl)"]),
        ("rcwl", True, ["nothing can be deleted or renamed: the token lacks d (has rcwl)"]),
    ],
)
def test_what_a_token_lacks_is_said(letters: str, writable: bool, notes: list[str]) -> None:
    assert sas.writable(sas.parse(token(sp=letters))) is writable
    assert check(token(sp=letters)) == notes
    assert check(token(sp=letters), ro=True) == []


def test_rights_of_a_stored_policy_are_unknown_and_said_to_be() -> None:
    assert check(token(si="pol", sp=None, se=None)) == [
        "the rights come from the stored access policy pol"
    ]


# --- explaining ------------------------------------------------------------------------------


def test_describe_tells_every_field_and_letter_but_the_signature() -> None:
    parsed = sas.parse(
        token(sp="lrq", spr="https", sip="1.2.3.4", si="pol", ses="scope", sr="d", sdd="1")
    )
    rows = dict(sas.describe(parsed, NOW))
    assert rows["sr"] == "a directory and everything below it"
    assert rows["sp"] == "rlq"
    assert rows["r"] == sas.PERMISSIONS["r"]
    assert rows["l"] == sas.PERMISSIONS["l"]
    assert rows["q"] == "unknown to this version"
    assert rows["st"] == "from 2026-01-01T00:00:00Z (valid)"
    assert rows["se"] == "until 2027-01-01T00:00:00Z (for another 213 days)"
    assert (rows["spr"], rows["sip"]) == ("https", "from 1.2.3.4 only")
    assert rows["si"].startswith("stored access policy pol")
    assert rows["ses"] == "encryption scope scope"
    assert rows["sig"] == "REDACTED"
    assert SIGNATURE not in str(rows)


def test_describe_tells_the_kinds_of_token_apart() -> None:
    def kind(text: str) -> str:
        return dict(sas.describe(sas.parse(text), NOW))["kind"]

    assert kind(token()).startswith("service SAS")
    assert kind(token(skoid="x", ske="2026-09-01")).startswith("user delegation SAS")
    assert kind(token(ss="b", srt="c", sr=None)).startswith("account SAS")


def test_describe_says_which_of_two_ends_counts() -> None:
    rows = dict(sas.describe(sas.parse(token(skoid="x", ske="2026-06-02T12:00:00Z")), NOW))
    assert rows["ske"] == "delegation key until 2026-06-02T12:00:00Z (for another 1 day)"
    assert rows["se"].endswith("(the earlier end counts)")


@pytest.mark.parametrize(
    ("letters", "verdicts"),
    [
        ("rcwdlt", ["yes", "yes", "yes", "yes", "yes"]),
        (
            "rl",
            [
                "yes",
                "yes",
                "no, lacks w: the mount is read-only",
                "no, lacks wd: they fail with EACCES",
                "no, lacks t: a file that is rewritten loses its tags",
            ],
        ),
        ("rcwl", ["yes", "yes", "yes", "no, lacks d: they fail with EACCES", None]),
        ("wd", ["no, lacks l: no mount", "no, lacks r: no mount", "yes", "yes", None]),
    ],
)
def test_what_a_mount_can_do_follows_from_the_letters(
    letters: str, verdicts: list[str | None]
) -> None:
    said = [verdict for _, verdict in sas.abilities(frozenset(letters))]
    assert [verdict for verdict, wanted in zip(said, verdicts, strict=True) if wanted] == [
        wanted for wanted in verdicts if wanted
    ]


def test_what_a_mount_can_do_by_a_stored_policy_is_not_guessed() -> None:
    assert all(verdict.startswith("unknown: needs") for _, verdict in sas.abilities(None))


@pytest.mark.parametrize(
    ("ways", "granted", "missing"),
    [
        (["w", "c"], "rl", "w or c"),
        (["w", "c"], "rlc", "w"),
        (["wt", "ct"], "rlw", "t"),
        (["rw", "rc"], "l", "rw or rc"),
        (["w"], "w", ""),
    ],
)
def test_what_is_lacking_is_the_least_that_would_do(
    ways: list[str], granted: str, missing: str
) -> None:
    assert sas.lacking(ways, frozenset(granted)) == missing
    assert sas.lacking(ways, None) == ""


def test_changes_tell_each_field_that_differs_but_the_signature() -> None:
    old, new = (
        sas.parse(token()),
        sas.parse(token(sp="rl", se="2028-01-01", sig="A" + SIGNATURE[1:])),
    )
    assert sas.changes(old, new) == [
        "sp racwdl → rl",
        "se 2027-01-01T00:00:00Z → 2028-01-01T00:00:00Z",
    ]


def test_a_clock_that_is_off_is_said_from_a_minute_on() -> None:
    assert sas.clock_note(59) == sas.clock_note(None) == ""
    assert sas.clock_note(7200) == "this machine's clock is 2 hours behind the service's"
    assert sas.clock_note(-90) == "this machine's clock is 1 minute ahead of the service's"


def test_describe_says_when_a_token_is_not_valid() -> None:
    rows = dict(sas.describe(sas.parse(token(st="2026-06-03", se="2026-05-31T12:00Z")), NOW))
    assert rows["st"].endswith("(in 1 day)")
    assert rows["se"].endswith("(expired 1 day ago)")


# --- redacting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://h/c/b?{token()} 403",
        f"GET https://h/c/b?{token(sig=None)}&sig={SIGNATURE}&sip=1.2.3.4",
        f"x-ms-copy-source: https://h/c/b%3F{quote(token(), safe='')}",
        f"twice {quote(quote(token(), safe=''), safe='')} encoded",
        json.dumps({"sig": SIGNATURE, "sv": "2025-11-05"}),
        json.dumps(json.dumps({"sig": SIGNATURE})),
        json.dumps({"url": f"https://h/c?{token()}"}).replace("&", "\\u0026"),
        json.dumps({"sig": SIGNATURE}).replace("+", "\\u002B").replace("/", "\\/"),
        quote(json.dumps({"sig": SIGNATURE}), safe=""),
        f"{{'sv': '2025', 'sig': '{SIGNATURE}'}}",
        f"[('sv', '2025'), ('sig', '{SIGNATURE}')]",
        f"{{'sig': ['{SIGNATURE}']}}",
        f"(b'x-ms-copy-source', b'https://h/c?sig={SIG}&sp=r')",
        f"<Url>https://h/c?sp=r&amp;sig={SIG}&amp;sv=1</Url>",
        f"<sig>{SIGNATURE}</sig>",
        f"SIG={SIG}",
        f"sig = no\\nsig={SIG}\\nmore",
        f"SharedAccessSignature={token()};BlobEndpoint=https://h/",
        "The MAC signature found in the HTTP request "
        f"'{SIGNATURE}' is not the same as any computed signature. String to sign: 'rl\n\n'.",
    ],
)
def test_redact_hides_the_signature_wherever_it_stands(text: str) -> None:
    hidden = sas.redact(text)
    assert hidden != text
    assert "REDACTED" in hidden
    for form in (hidden, unquote(hidden), unquote(unquote(hidden))):
        assert SIGNATURE[:6] not in form
        assert SIGNATURE[-8:-1] not in form
    assert sas.redact(hidden) == hidden


def test_redact_hides_an_account_key() -> None:
    text = f"AccountName=a;AccountKey={KEY};EndpointSuffix=core.windows.net"
    assert sas.redact(text) == "AccountName=a;AccountKey=REDACTED;EndpointSuffix=core.windows.net"


def test_redact_leaves_everything_around_the_signature() -> None:
    assert sas.redact(f"GET https://h/c/b?sp=r&sig={SIG}&sv=2025-11-05 403 (req 1)") == (
        "GET https://h/c/b?sp=r&sig=REDACTED&sv=2025-11-05 403 (req 1)"
    )
    encoded = quote(f"https://h/c?sp=r&sig={SIG}&sv=1", safe="")
    assert sas.redact(encoded).endswith("sig%3DREDACTED%26sv%3D1")
    encoded = quote(json.dumps({"sig": SIGNATURE, "sv": 1}), safe="")
    assert encoded.partition(quote(SIGNATURE, safe=""))[2] in sas.redact(encoded)
    for text in ("", "nothing here", "a sign of life: ok", "signal 15", "etag=0x8D", "design: b"):
        assert sas.redact(text) == text


@given(
    st.binary(min_size=32, max_size=32).map(lambda raw: base64.b64encode(raw).decode()),
    st.text(max_size=30),
    st.sampled_from(["&", "\n", '"', "'", " ", "<", ""]),
    st.integers(0, 3),
)
def test_redact_is_complete_and_idempotent(sig: str, before: str, after: str, times: int) -> None:
    text = f"sig={sig}"
    for _ in range(times):
        text = quote(text, safe="")
    hidden = sas.redact(f"{before}{text}{after}")
    assert text.partition("sig")[2] not in hidden
    assert sas.redact(hidden) == hidden


# --- making ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["query"]["sv"])
def test_create_signs_as_the_service_does_in_every_version(vector: dict[str, object]) -> None:
    query = dict(vector["query"])  # type: ignore[call-overload]
    made = sas.create(
        str(vector["account"]),
        str(vector["key_b64"]),
        str(vector["container"]),
        permissions=query["sp"],
        start=datetime.fromisoformat(query["st"]),
        expiry=datetime.fromisoformat(query["se"]),
        protocol=query.get("spr", ""),
        ip=query.get("sip", ""),
        version=query["sv"],
        encryption_scope=query.get("ses", ""),
        headers={name: query[name] for name in query if name.startswith("rsc")},
    )
    assert dict(parse_qsl(made)) == query | {"sig": vector["sig"]}


def test_create_agrees_with_the_sdk() -> None:
    start, expiry = NOW, NOW + timedelta(hours=1)
    theirs = generate_container_sas(
        "acct",
        "cont",
        account_key=KEY,
        permission="racwdxyltfmei",
        start=start,
        expiry=expiry,
        policy_id="a policy",
        ip="10.0.0.1-10.0.0.9",
        protocol="https,http",
        encryption_scope="scope",
        cache_control="no-store, no-cache",
        content_disposition='attachment; filename="ä b.txt"',
        content_encoding="gzip",
        content_language="de",
        content_type="text/plain; charset=utf-8",
    )
    ours = sas.create(
        "acct",
        KEY,
        "cont",
        permissions="iemftlyxdwcar",
        start=start,
        expiry=expiry,
        identifier="a policy",
        ip="10.0.0.1-10.0.0.9",
        protocol="https,http",
        version=dict(parse_qsl(theirs))["sv"],
        encryption_scope="scope",
        headers={
            "rscc": "no-store, no-cache",
            "rscd": 'attachment; filename="ä b.txt"',
            "rsce": "gzip",
            "rscl": "de",
            "rsct": "text/plain; charset=utf-8",
        },
    )
    assert dict(parse_qsl(ours)) == dict(parse_qsl(theirs))


def test_create_makes_the_token_that_the_sdk_makes_string_for_string() -> None:
    expiry = NOW + timedelta(hours=1)
    theirs = generate_container_sas(
        "acct", "cont", account_key=KEY, permission="racwdl", start=NOW, expiry=expiry
    )
    ours = sas.create(
        "acct",
        KEY,
        "cont",
        permissions="racwdl",
        start=NOW,
        expiry=expiry,
        version=dict(parse_qsl(theirs))["sv"],
    )
    assert sorted(ours.split("&")) == sorted(theirs.replace("/", "%2F").split("&"))


def test_a_made_token_can_be_mounted_with() -> None:
    made = sas.create("acct", KEY, "cont", permissions="ldwcr", expiry=NOW + timedelta(hours=1))
    parsed = sas.parse(made)
    assert parsed.version == sas.DEFAULT_VERSION
    assert "&sp=rcwdl&" in made, "the service insists on this order"
    assert check(made) == []


def test_rights_and_expiry_may_be_left_to_a_stored_policy() -> None:
    assert sas.parse(sas.create("acct", KEY, "cont", identifier="pol")).permissions is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "not base64!"}, "account key is not base64"),
        ({"key": ""}, "account key is not base64"),
        ({"key": "schlüssel"}, "account key is not base64"),
        ({"permissions": "rqz"}, "unknown permission q, z"),
        ({"permissions": ""}, "needs permissions and an expiry"),
        ({"expiry": None}, "needs permissions and an expiry"),
        ({"start": NOW + timedelta(days=2)}, "expire before it starts"),
        ({"identifier": "x" * 65}, "at most 64 characters"),
        ({"protocol": "http"}, "https or https,http"),
        ({"ip": "somewhere"}, "an IPv4 address"),
        ({"ip": "::1"}, "an IPv4 address"),
        ({"ip": "10.0.0.9-10.0.0.1"}, "an IPv4 address"),
        ({"version": "latest"}, "a date from 2012-02-12"),
        ({"version": "2011-08-18"}, "a date from 2012-02-12"),
        ({"version": "2027-01-01"}, "to 2026-10-06"),
        ({"version": "2014-02-14", "ip": "10.0.0.1"}, "2014-02-14 of a SAS has no sip="),
        ({"version": "2020-10-02", "encryption_scope": "s"}, "has no ses="),
        ({"version": "2012-02-12", "headers": {"rsct": "a/b"}}, "has no rsct="),
        ({"headers": {"Content-Type": "a/b"}}, "are rscc, rscd, rsce, rscl, rsct"),
    ],
)
def test_create_refuses_what_the_service_would_not_take(
    changes: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {
        "key": KEY,
        "permissions": "rl",
        "expiry": NOW + timedelta(days=1),
    }
    arguments |= changes
    key = str(arguments.pop("key"))
    with pytest.raises(SasError, match=message) as caught:
        sas.create("acct", key, "cont", **arguments)  # type: ignore[arg-type]
    assert not key or key not in str(caught.value)
