"""The arithmetic of scripts/bench. What it measures is checked by nobody but its reader."""

import subprocess
import sys
import threading
from contextlib import ExitStack
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from scripts.benchmarks.results import (
    BARE,
    Result,
    Sample,
    from_json,
    misses,
    ratio,
    table,
    to_json,
)

GIB = 2**30
ROOT = Path(__file__).parents[1]


def measured(peer: str, *seconds: float, goal: float | None = 2, payload: int = GIB) -> Result:
    samples = [Sample(s, requests=3, bytes=2 * GIB, cpu_s=0.5, peak_bytes=1024) for s in seconds]
    return Result(
        "read", "sequential read", "azurite", peer, payload, goal, {"requests": 3}, samples
    )


def failed(peer: str) -> Result:
    return Result("read", "sequential read", "azurite", peer, GIB, 2, {}, [], "dd: cannot")


def test_the_median_ignores_one_slow_run() -> None:
    assert measured("blobfs", 1.0, 9.0, 1.2).median() == 1.2


def test_the_ratio_is_to_rclones_synchronous_mode() -> None:
    group = [measured("blobfs", 2.0), measured("rclone full", 3.0), measured("rclone off", 10.0)]
    assert ratio(group) == 5


def test_the_ratio_is_to_rclones_full_mode_where_the_other_cannot_do_it() -> None:
    assert (
        ratio([measured("blobfs", 2.0), failed("rclone off"), measured("rclone full", 3.0)]) == 1.5
    )


@pytest.mark.parametrize(
    "group", [[measured("blobfs", 1.0)], [failed("blobfs"), measured("curl", 1.0)]]
)
def test_there_is_no_ratio_without_both_sides(group: list[Result]) -> None:
    assert ratio(group) is None


def test_a_ratio_below_its_goal_is_reported() -> None:
    missed = [measured("blobfs", 1.0), measured("rclone off", 1.9)]
    reached = [measured("blobfs", 1.0), measured("rclone off", 2.0)]
    assert misses(missed) == ["read on azurite: ratio 1.90, the goal is 2"]
    assert misses(reached) == []


def test_a_goal_that_is_out_of_reach_is_told_with_what_the_service_alone_takes() -> None:
    results = [measured("blobfs", 1.0), measured("rclone off", 1.2), measured(BARE, 0.8)]
    (line,) = misses(results)
    assert line == "read on azurite: ratio 1.20, the goal is 2; bare requests: 1.50"


def test_more_requests_than_the_goal_are_reported_but_not_those_of_others() -> None:
    results = [measured("blobfs", 1.0), measured("rclone off", 2.0)]
    for result in results:
        result.at_most = {"requests": 2, "wire/data": 2}
    assert misses(results) == ["read on azurite: requests 3, the goal is 2"]


def test_the_table_relates_bytes_and_cpu_to_the_data() -> None:
    head, line = table([measured("blobfs", 1.0, 2.0, 4.0)]).splitlines()
    cells = dict(zip(head.split()[:6], line.split()[:6], strict=True))
    assert cells["median"] == "2.00s"
    assert cells["spread"] == "1.00s-4.00s"
    assert line.split()[-4:] == ["2.00", "0.50", "0.50", "1.0K"]  # wire/data, CPU, CPU/GiB, peak


def test_the_table_says_why_a_peer_has_no_figures() -> None:
    printed = table([measured("blobfs", 1.0), failed("rclone off")])
    assert "read, azurite, rclone off: dd: cannot" in printed


def test_json_keeps_everything() -> None:
    results = [measured("blobfs", 1.0, 2.0), failed("rclone off")]
    assert from_json(to_json({"cpu": "fast"}, results)) == ({"cpu": "fast"}, results)


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET


def test_the_relay_passes_on_whole_requests_and_counts_those_of_clients() -> None:
    bodies = [b"", b"x" * 100_000, b"\r\n\r\n" * 1000, b"y"]
    with HTTPServer(("127.0.0.1", 0), Echo) as service, ExitStack() as stack:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(service.shutdown)
        relay = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "scripts.benchmarks.relay", str(service.server_port), "0"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert relay.stdin is not None
        assert relay.stdout is not None
        connection = HTTPConnection("127.0.0.1", int(relay.stdout.readline()), timeout=20)
        for body in bodies:
            connection.request("PUT", "/", body)
            assert connection.getresponse().read() == body
        connection.request("GET", "/", b"", {"User-Agent": "axios/1"})  # Azurite's own
        connection.getresponse().read()
        connection.close()
        relay.stdin.write("\n")
        relay.stdin.close()
        requests, up, down = map(int, relay.stdout.readline().split())
    sent = sum(map(len, bodies))
    assert requests == len(bodies)
    assert sent < up < sent + 1000
    assert sent < down < sent + 1000
