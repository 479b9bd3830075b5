"""What a mount counts, and that Prometheus can read it."""

import http.client
import os
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from blobfs.errors import OptionError
from blobfs.metrics import BOUNDS, Histogram, Latencies
from blobfs.options import parse_mount
from tests.azurite import Azurite, signature
from tests.leaks import is_leak
from tests.mounts import PLAINTEXT_MARKER, Mount, MountFailed, mounted
from tests.waiting import eventually

LIMIT_S = 30


# --- histograms ------------------------------------------------------------------------------


def test_a_call_is_counted_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, BOUNDS[0], BOUNDS[1], 1000.0):
        histogram.observe(seconds)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
    assert histogram.cumulative() == [2, *[3] * (len(BOUNDS) - 1), 4]
    assert (histogram.count, histogram.seconds) == (4, 1000.0 + BOUNDS[0] + BOUNDS[1])


def test_a_quantile_lies_within_the_bucket_of_its_call() -> None:
    histogram = Histogram()
    for milliseconds in range(1, 101):
        histogram.observe(milliseconds / 1000)
    assert 0.045 <= histogram.quantile(0.5) <= 0.055
    assert 0.085 <= histogram.quantile(0.9) <= 0.1
    assert histogram.quantile(1.0) == 0.1


def test_quantiles_of_nothing_and_of_what_is_off_the_scale() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.99) == 0.0
    histogram.observe(1000.0)
    assert histogram.quantile(0.5) == BOUNDS[-1]


def test_each_kind_of_call_has_a_histogram_of_its_own() -> None:
    latencies = Latencies()
    latencies["read"].observe(0.1)
    assert {kind: histogram.count for kind, histogram in latencies.items()} == {"read": 1}


# --- where they are served -------------------------------------------------------------------


def metrics_option(text: str, tmp_path: Path) -> object:
    sas = "sv=2020-12-06&se=2999-01-01&sr=c&sp=rl&sig=" + "A" * 43 + "%3D"
    options = [f"sas={sas},key_file={tmp_path},metrics={text}"]
    source = "https://account.blob.core.windows.net/container"
    return parse_mount(source, "/mnt", options, now=datetime.now(UTC)).metrics


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("127.1.2.3:0", ("127.1.2.3", 0)),
        ("[::1]:9100", ("::1", 9100)),
        ("unix:/run/x.sock", Path("/run/x.sock")),
    ],
)
def test_metrics_are_served_on_a_loopback_address_or_a_socket(
    text: str, address: object, tmp_path: Path
) -> None:
    assert metrics_option(text, tmp_path) == address


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0:9100", "192.168.1.1:9100", "[::]:9100", "[2001:db8::1]:9100", ":9100"),
        *("9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "example.org:80"),
        *("unix:", "unix:relative", "/run/x.sock"),
    ],
)
def test_any_other_address_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="write a loopback address and port"):
        metrics_option(text, tmp_path)


# --- what is served --------------------------------------------------------------------------


def url_of(mount: Mount) -> tuple[str, int]:
    eventually(lambda: "metrics at " in mount.log())
    address = mount.log().partition("metrics at http://")[2].partition("/")[0]
    host, _, port = address.rpartition(":")
    return host, int(port)


def get(
    connection: socket.socket, target: str = "/metrics", method: str = "GET"
) -> tuple[int, str]:
    connection.settimeout(LIMIT_S)
    connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response.status, response.read().decode()


def scrape(mount: Mount) -> dict[str, Metric]:
    with socket.create_connection(url_of(mount)) as connection:
        status, text = get(connection)
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.fixture(scope="module")
def mount(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    container = azurite.new_container()
    directory = tmp_path_factory.mktemp("metrics")
    with mounted(azurite, container, directory, "metrics=127.0.0.1:0") as mount:
        yield mount


@pytest.mark.mount
def test_prometheus_reads_what_the_mount_did(azurite: Azurite, mount: Mount) -> None:
    before = scrape(mount)
    azurite.reset_requests()
    (mount.path / "file").write_bytes(PLAINTEXT_MARKER * 1000)
    assert (mount.path / "file").read_bytes() == PLAINTEXT_MARKER * 1000
    with pytest.raises(OSError, match="Operation not supported"):
        os.link(mount.path / "file", mount.path / "other")
    after = scrape(mount)

    def grown(name: str, **labels: str) -> float:
        def value(families: dict[str, Metric]) -> float:
            samples = families[name].samples
            return sum(s.value for s in samples if labels.items() <= s.labels.items())

        return value(after) - value(before)

    size = len(PLAINTEXT_MARKER) * 1000
    assert grown("blobfs_written_bytes") == grown("blobfs_read_bytes") == size
    served = Counter((r.method, str(r.status)) for r in azurite.requests())
    assert served[("PUT", "201")] == 1
    for (verb, status), count in served.items():
        assert grown("blobfs_requests", verb=verb, status=status) == count
    assert grown("blobfs_sent_bytes") >= size
    assert grown("blobfs_operation_failures", operation="link", errno="EOPNOTSUPP") == 1
    (count,) = (
        sample.value
        for sample in after["blobfs_operation_duration_seconds"].samples
        if sample.name.endswith("_count") and sample.labels == {"operation": "link"}
    )
    assert count == 1
    assert after["blobfs_resident_memory_bytes"].samples[0].value > 2**20
    expiry = after["blobfs_token_expiry_time_seconds"].samples[0].value
    assert 7 * 3600 < expiry - time.time() < 9 * 3600


@pytest.mark.mount
def test_prometheus_is_told_no_secret_and_no_name(mount: Mount) -> None:
    (mount.path / "a-name-of-a-file").write_bytes(PLAINTEXT_MARKER)
    with socket.create_connection(url_of(mount)) as connection:
        _, text = get(connection)
    assert not is_leak(text.encode(), {signature(mount.sas_file.read_text())})
    for secret in ("a-name-of-a-file", "sig=", mount.source, str(mount.path), "test-"):
        assert secret not in text


@pytest.mark.mount
def test_other_requests_are_refused_and_the_mount_lives_on(mount: Mount) -> None:
    for target, method, status in (("/x", "GET", 404), ("/metrics", "POST", 405)):
        with socket.create_connection(url_of(mount)) as connection:
            assert get(connection, target, method) == (status, "")
    with socket.create_connection(url_of(mount)) as connection:
        assert get(connection, method="HEAD") == (200, "")
    with socket.create_connection(url_of(mount)) as connection:
        connection.sendall(b"\0not http\r\n\r\n")
        connection.settimeout(LIMIT_S)
        assert connection.recv(100) == b""
    assert scrape(mount)


@pytest.mark.mount
@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=1.0.0",
        *("application/openmetrics-text; version=junk", "text/plain; version=x", ";=,;"),
    ],
)
def test_whatever_is_asked_for_the_mount_lives_on(mount: Mount, accept: str) -> None:
    with socket.create_connection(url_of(mount)) as connection:
        connection.settimeout(LIMIT_S)
        connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, b"blobfs_info" in response.read()) == (200, True)
    assert scrape(mount)


@pytest.mark.mount
def test_who_asks_and_says_nothing_keeps_nobody_waiting(mount: Mount) -> None:
    with socket.create_connection(url_of(mount)):
        assert scrape(mount)
        (mount.path / "file").write_bytes(b"x")


@pytest.mark.mount
def test_a_socket_is_for_the_mounts_user_alone_and_goes_with_the_mount(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with mounted(azurite, container, tmp_path, f"metrics=unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            status, text = get(connection)
    assert status == 200
    assert "blobfs_requests_total" in text
    assert not path.exists()


@pytest.mark.mount
def test_an_address_in_use_is_said_before_anything_is_mounted(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(MountFailed, match=f"metrics={address} cannot be used: it is in use"),
            mounted(azurite, container, tmp_path, f"metrics={address}"),
        ):
            pass


@pytest.mark.mount
def test_a_file_is_never_replaced_by_a_socket(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with (
        pytest.raises(MountFailed, match="is no socket"),
        mounted(azurite, container, tmp_path, f"metrics=unix:{path}"),
    ):
        pass
    assert path.read_text() == "x"


def test_a_mount_without_metrics_does_not_load_the_library() -> None:
    code = "import sys, blobfs.cli; print('prometheus_client' in sys.modules, 'h11' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
