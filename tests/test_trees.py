"""Hosts move directories under each other's files: `scripts/torture trees` does so for longer."""

from tests.bare_host import Service
from tests.torture.trees import played


async def test_no_file_is_lost_while_hosts_move_and_remove_directories(service: Service) -> None:
    figures = await played(service, seed="1", operations=12)
    assert figures["rename_directory"], "no directory was renamed"
    assert figures["write"], "nothing was stored"
