"""Hosts in networks of their own change the same files at random: see `tests/torture/hosts.py`."""

from pathlib import Path

import pytest

from tests.azurite import Azurite
from tests.torture.hosts import Round, piece, pieces

pytestmark = pytest.mark.mount


@pytest.mark.parametrize(("hosts", "seed"), [(2, 1), (3, 2)])
def test_every_final_state_is_explained_by_an_order_of_the_closes(
    azurite: Azurite, tmp_path: Path, hosts: int, seed: int
) -> None:
    figures = Round(azurite, tmp_path, seed, hosts).run()
    assert figures["conflicts, both versions found"], "no two hosts wrote at once"


def test_a_content_tells_who_wrote_it_and_whether_it_is_whole() -> None:
    data = piece(3, 100) + piece(12, 0)
    assert pieces(data) == [3, 12]
    for wrong in (data[:-1], data[:60] + data[61:], data + b"x", data[:50] + piece(4, 60)):
        with pytest.raises(AssertionError):
            pieces(wrong)
