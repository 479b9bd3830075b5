"""The daemon is killed at random moments: nothing that was closed is lost, nothing is a mixture.

`scripts/torture crash` does the same for longer, from other seeds.
"""

from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.torture.crash import rounds

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_closed_survives_a_killed_daemon(
    azurite: Azurite, tmp_path: Path, seed: int
) -> None:
    figures = rounds(azurite, tmp_path, seed, number=3)
    assert figures["kills"] == 3
    assert figures["cut short"] >= 3, "the kills hit nothing that was under way"
