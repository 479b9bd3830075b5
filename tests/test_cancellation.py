"""A sample of the waits of every operation: `tests/torture/cancellation.py` tries all of them."""

from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.bare_host import Service
from tests.torture.cancellation import OPERATIONS, given_up_everywhere


@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_operation_that_is_given_up_leaves_nothing_held_and_nothing_torn(
    azurite: Azurite, container: str, tmp_path: Path, name: str
) -> None:
    await given_up_everywhere(Service(azurite, container, tmp_path), name, seed=1, stride=20)
