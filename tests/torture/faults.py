"""Every fault of the network and the service, done to every REST call that a mount makes.

In an order that the seed makes; the matrix has some 1,600 cases and goes round again when there
are minutes left.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.fault_matrix import Case, Ward, all_cases, ward
from tests.torture.service import service

AT_ONCE = 4
PER_SERVICE = 120
"""Cases until a new service is started: Azurite keeps on disk what was deleted."""


def run(seed: int, minutes: float, say: Callable[[str], None]) -> None:
    until = time.monotonic() + 60 * minutes
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    problems: list[str] = []
    longest = 0.0
    failures = 0
    queue: list[Case] = []
    while not done or time.monotonic() < until:
        if not queue:
            queue = rng.sample(all_cases(), len(all_cases()))
        batch, queue = queue[:PER_SERVICE], queue[PER_SERVICE:]
        with service() as (azurite, folder), ward(azurite, folder) as place:
            for problem in _run_batch(place, batch, until, done):
                say(problem)
                problems.append(problem)
            longest = max(longest, place.longest)
            failures += place.failures
        say(f"{done.total()} cases, {len(problems)} problems")
    say(f"cases by call: {dict(done)}")
    say(f"{failures} operations failed, as they should; the longest took {longest:.1f} s")
    assert not problems, "\n".join(problems)


def _run_batch(place: Ward, batch: list[Case], until: float, done: Counter[str]) -> list[str]:
    for call in sorted({case.call for case in batch}):
        place.count(call)

    def one(case: Case) -> list[str]:
        if done and time.monotonic() > until:
            return []
        found = place.run(case)
        done[case.call] += 1
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [problem for found in pool.map(one, batch) for problem in found]
