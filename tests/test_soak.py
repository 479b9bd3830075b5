"""Programs that work on one mount at once, briefly: see `tests/torture/soak.py`."""

from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.torture.soak import Sample, Soak, growth


@pytest.mark.mount
def test_programs_at_once_find_what_they_wrote_and_the_daemon_closes_what_it_opened(
    azurite: Azurite, tmp_path: Path
) -> None:
    soak = Soak(azurite, tmp_path, seed=1, programs=12)
    soak.run(seconds=10)
    assert soak.figures["files verified in a fresh mount"] > 12


def test_memory_that_grows_to_the_end_is_told_from_memory_that_fills_a_cache() -> None:
    grows = [Sample(at, 1000 * at, 10, at) for at in range(90)]
    fills = [Sample(at, 1000 * min(at, 20), 10, at) for at in range(90)]
    assert growth(grows) == 30_000
    assert growth(fills) == 0
