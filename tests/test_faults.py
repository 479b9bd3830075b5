"""Each call and each fault, at least once; `scripts/torture faults` tries all of them together."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.azurite import Azurite
from tests.fault_matrix import Case, Ward, ward
from tests.fault_steps import STEPS_OF
from tests.faults import BLOCK, CALLS, COPY, DELETE, FAULTS, GET_TAGS, LIST, PUT
from tests.sdk import WRITES_PROTOCOL_1

pytestmark = [pytest.mark.mount, WRITES_PROTOCOL_1]

AT_ONCE = 4


@pytest.fixture(scope="module")
def place(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with ward(azurite, tmp_path_factory.mktemp("faults")) as found:
        yield found


def sample() -> list[Case]:
    """Each fault once, done to the calls in turn, at each position, once and lasting."""
    cases = []
    for number, fault in enumerate(FAULTS):
        calls = [call for call in CALLS if call in fault.calls]
        position = ("first", "middle", "last")[number % 3]
        cases.append(Case(calls[number % len(calls)], fault, position, number % 2 == 0))
    return cases


def problems_of(cases: list[Case], place: Ward) -> list[str]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for found in pool.map(place.run, cases) for problem in found]


def test_the_steps_make_the_calls_that_faults_are_done_to(place: Ward) -> None:
    assert {call: place.count(call) >= 3 for call in CALLS} == dict.fromkeys(STEPS_OF, True)


def test_whatever_goes_wrong_nothing_is_lost_mixed_or_late(place: Ward) -> None:
    cases = sample()
    assert {case.call for case in cases} == set(CALLS)
    assert {case.fault for case in cases} == set(FAULTS)
    assert problems_of(cases, place) == []


BUGS = [
    (DELETE, "applied, answer lost", True),  # of a rename's source: the copy was deleted, too
    (DELETE, "HTML, 404", True),  # was taken for a file that is gone already
    (COPY, "stalled", True),  # a rename went on for minutes
    (LIST, "first page repeated", True),  # had no end
    (LIST, "another ETag", False),  # ENOENT of a directory that is there
    (GET_TAGS, "document cut", False),  # was not asked for again
    (PUT, "byte of the request corrupted", False),  # was said to be stored, and could not be read
    (BLOCK, "byte of the request corrupted", True),
]


def test_what_once_went_wrong_does_not(place: Ward) -> None:
    by_name = {fault.name: fault for fault in FAULTS}
    cases = [
        Case(call, by_name[name], position, lasts)
        for call, name, lasts in BUGS
        for position in ("first", "last")
    ]
    assert problems_of(cases, place) == []
