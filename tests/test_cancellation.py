"""A sample of what `scripts/torture cancellation` and `rivals` try for longer."""

from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.bare_host import Service
from tests.torture.cancellation import OPERATIONS, given_up_everywhere
from tests.torture.rivals import pairs


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_is_given_up_leaves_nothing_held_and_nothing_torn(
    azurite: Azurite, container: str, tmp_path: Path, name: str
) -> None:
    await given_up_everywhere(Service(azurite, container, tmp_path), name, seed=1, stride=20)


async def test_of_two_on_the_same_files_the_one_that_goes_on_is_right_when_the_other_is_given_up(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    """`scripts/torture rivals` does the same for longer, from other seeds."""
    assert await pairs(Service(azurite, container, tmp_path), seed="1", count=40)
