"""One rank and two ranks, shared by all tests of the engine."""

import os
from collections.abc import Iterator

import pytest

from tests.engine.pool import Pool


@pytest.fixture(scope="session")
def _environment() -> Iterator[None]:
    ours = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def one(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A world of one rank."""
    pool = Pool(1, tmp_path_factory.mktemp("one"))
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def two(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A world of two ranks."""
    pool = Pool(2, tmp_path_factory.mktemp("two"))
    yield pool
    pool.close()
