"""The source of a mount: what is taken, what is refused, and in which words."""

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfs import sas
from blobfs.errors import OptionError
from blobfs.source import Source, split_source

URL = "https://acct.blob.core.windows.net/cont"
TOKEN = sas.create(
    "acct", "a2V5", "cont", permissions="rl", expiry=datetime(2026, 6, 1, tzinfo=UTC)
)
SIGNATURE = TOKEN.partition("sig=")[2]


@pytest.mark.parametrize(
    ("url", "account", "container", "prefix", "container_url"),
    [
        (URL, "acct", "cont", "", URL),
        (URL + "/", "acct", "cont", "", URL),
        (URL + "/a/b/", "acct", "cont", "a/b", URL),
        (URL + "/a%20b/%C3%BC%2Fc%25", "acct", "cont", "a b/ü/c%", URL),
        (URL + "/a b/ü,é", "acct", "cont", "a b/ü,é", URL),
        (
            "https://ACCT.blob.core.windows.net:443/cont",
            "acct",
            "cont",
            "",
            "https://acct.blob.core.windows.net/cont",
        ),
        (
            "https://acct.blob.core.chinacloudapi.cn/$root",
            "acct",
            "$root",
            "",
            "https://acct.blob.core.chinacloudapi.cn/$root",
        ),
        ("https://files.example.org:8443/web", "files", "web", "", None),
        ("http://127.0.0.1:10000/devacct/cont/a/b", "devacct", "cont", "a/b", None),
        ("http://localhost:10000/devacct/cont", "devacct", "cont", "", None),
        ("http://[::1]:10000/devacct/cont", "devacct", "cont", "", None),
        ("http://devacct.blob.localhost:10000/cont", "devacct", "cont", "", None),
        ("https://10.1.2.3/devacct/cont", "devacct", "cont", "", None),
        ("https://acct.blob.core.windows.net/", "acct", "", "", None),
        ("https://acct.blob.core.windows.net", "acct", "", "", None),
    ],
)
def test_a_source_names_account_container_and_folder(
    url: str, account: str, container: str, prefix: str, container_url: str | None
) -> None:
    source = Source.parse(url)
    assert (source.account, source.container, source.prefix) == (account, container, prefix)
    assert source.display == url, "mount(8) looks for the very text of fstab"
    if container_url is not None:
        assert source.container_url == container_url
    assert source.container_url == f"{source.endpoint}/{container}"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (URL + "/p", "https://acct.blob.core.windows.net"),
        ("http://127.0.0.1:10000/devacct/cont", "http://127.0.0.1:10000/devacct"),
        ("http://[::1]:10000/devacct/cont", "http://[::1]:10000/devacct"),
        ("http://localhost:80/devacct/cont", "http://localhost/devacct"),
    ],
)
def test_the_endpoint_has_the_account_in_its_path_on_a_bare_address(
    url: str, endpoint: str
) -> None:
    assert Source.parse(url).endpoint == endpoint


def test_a_sas_in_the_source_is_split_off() -> None:
    source, found = split_source(f"{URL}/p?{TOKEN}")
    assert found is not None
    assert found.query == TOKEN
    assert source.display == f"{URL}/p"
    assert SIGNATURE not in repr((source, found))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cont", "is not a URL: write https://ACCOUNT"),
        ("", "is not a URL"),
        (f"cont?{TOKEN}", "is not a URL"),
        ("ftp://h/cont", "is not an http\\(s\\) URL"),
        ("https:///cont", "is not an http\\(s\\) URL"),
        ("https://a b\\c/cont", "is not an http\\(s\\) URL"),
        ("https://h:port/cont", "is not a URL"),
        ("https://[::1/cont", "is not a URL"),
        ("https://user:secret@h/cont", "has a user name or password"),
        ("https://user:secret@h:port/cont", "has a user name or password"),
        ("https://acct.dfs.core.windows.net/cont", "write .blob. for .dfs."),
        ("http://acct.blob.core.windows.net/cont", "in the clear: write https"),
        ("http://10.1.2.3/acct/cont", "in the clear: write https"),
        ("http://localhost.example.org/cont", "in the clear: write https"),
        ("http://127.0.0.1:10000", "lacks the account"),
        (URL + "/a\nb", "control character"),
        (URL + "/a\udcff", "not UTF-8"),
        (URL + "/a#b", "write %23"),
        (URL + "/100%", "bare %"),
        (URL + "/%ff", "does not decode as UTF-8"),
        (URL + "/a/../b", "not a folder that Azure can hold"),
        (URL + "/a./b", "not a folder that Azure can hold"),
        (URL + "/a%5Cb", "not a folder that Azure can hold"),
        (URL + "/a%0Ab", "not a folder that Azure can hold"),
        (URL + "/a//b", "not a folder that Azure can hold"),
        (URL + "/a%2F%2Fb", "not a folder that Azure can hold"),
        (URL + "/" + "x" * 1025, "too long"),
        (URL + "/x" * 255, "too long"),
        ("https://h/Cont", "'Cont' is not a container name"),
        ("https://h/co", "'co' is not a container name"),
        ("https://h/" + "x" * 64, "is not a container name"),
        ("https://h/con--t", "is not a container name"),
        ("https://h/-cont", "is not a container name"),
        ("https://h/cont-", "is not a container name"),
        ("https://h/con_t", "is not a container name"),
        ("https://h/$other", "is not a container name"),
    ],
)
def test_a_wrong_source_is_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        split_source(source)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert SIGNATURE not in str(caught.value)


prefix_segment = st.text(
    st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/\\"),
    min_size=1,
    max_size=12,
).filter(lambda segment: not segment.endswith("."))


@given(st.lists(prefix_segment, max_size=5).map("/".join))
def test_any_folder_survives_percent_encoding(prefix: str) -> None:
    assert Source.parse(f"{URL}/{quote(prefix)}").prefix == prefix
