"""Every parser of foreign bytes stands them: in short, what `scripts/torture fuzz` does for hours.

See `tests/fuzz`: the targets fail by themselves when a parser raises what it does not document,
or accepts what an oracle knows to be wrong.
"""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import costly, seeds
from tests.fuzz.targets import CORPUS, TARGETS, found

LONGEST_S = 3.0  # of the processor's time, for a fifth of a megabyte; a tenth of it is usual
MOST_MEMORY = 32 * 1024 * 1024

every_target = pytest.mark.parametrize("name", TARGETS)


@st.composite
def spoiled(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A well-formed input with pieces cut out, put in, repeated and exchanged with another's."""
    data = draw(st.sampled_from(whole))
    other = draw(st.sampled_from(whole))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.integers(0, 12))
        first = draw(st.integers(0, len(other)))
        piece = draw(
            st.one_of(
                st.just(b""),
                st.binary(max_size=6),
                st.just(data[start:stop] * 3),
                st.just(other[first : first + 24]),
                st.sampled_from([b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b"\0"]),
                st.sampled_from(["\ud800", "\u212a", "٣", "%25", "&#x41;"]).map(
                    lambda text: text.encode("utf-8", "surrogatepass")
                ),
            )
        )
        data = data[:start] + piece + data[stop:]
    return data


@every_target
def test_well_formed_inputs_are_accepted_by_what_reads_them(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)


@every_target
def test_no_input_is_too_much(name: str) -> None:
    whole = seeds(name)

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=200), spoiled(whole), spoiled(whole)))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


@every_target
def test_no_input_costs_more_than_it_should(name: str) -> None:
    for number, data in enumerate(costly(name)):
        seconds, memory = _cost(TARGETS[name], data)
        assert seconds < LONGEST_S, f"costly input {number}, {data[:40]!r}…: {seconds:.1f} s"
        assert memory < MOST_MEMORY, f"costly input {number}, {data[:40]!r}…: {memory:,} bytes"


def _cost(target: Callable[[bytes], None], data: bytes) -> tuple[float, int]:
    """Processor seconds, and the most bytes of Python's memory: measured apart, since the second
    makes the first several times as much."""
    started = time.process_time()
    target(data)
    seconds = time.process_time() - started
    tracemalloc.start()
    try:
        target(data)
        return seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path", [path for name in TARGETS for path in found(name)], ids=lambda path: path.name
)
def test_what_once_found_something_is_stood_for_ever(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_input_that_is_kept_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()
