"""What a rank's process finds in its environment."""

from pathlib import Path

import pytest

from tests.process.attempts import Attempt
from worker.contract.spec import Resources
from worker.ranks import environment, threads

pytestmark = pytest.mark.quick


def test_ranks_share_the_cores() -> None:
    assert threads(Resources(), 8) == 8
    assert threads(Resources(per_node=2), 8) == 4
    assert threads(Resources(per_node=2, cpu="2"), 8) == 1
    assert threads(Resources(per_node=4, cpu="500m"), 8) == 1


def test_a_rank_knows_its_place_its_threads_and_its_allocator(tmp_path: Path) -> None:
    order = Attempt(tmp_path, resources={"per_node": 2, "cpu": "2"}).order
    given = environment(order, 1)
    expected = {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    assert given.items() >= expected.items()
