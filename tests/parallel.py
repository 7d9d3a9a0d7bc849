"""How two processes share the tests: whole files, and in one piece what shares something dear."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.cluster.meanwhile import at_hand, needs_programs

_CLUSTER = "cluster"
# Their ranks have imported DeepSpeed, and run one case after another.
_RANKS = ("tests/engine/", "tests/rl/")


class Shared(LoadScopeScheduling):
    """Hands out the tests on the one cluster as soon as it can be started: they take longest."""

    def schedule(self) -> None:
        if self.collection is None:
            compiler = self.config.pluginmanager.getplugin("meanwhile").compiler
            compiler.begin(next(iter(self.registered_collections.values())))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        if needs_programs(nodeid):
            return _CLUSTER
        return "ranks" if nodeid.startswith(_RANKS) else nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if _CLUSTER in self.workqueue:
            self.workqueue.move_to_end(_CLUSTER, last=not at_hand())
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """In the order of collection, not by the number of tests: that says nothing about how long they take."""
    config.option.loadscopereorder = False
    return Shared(config, log)
