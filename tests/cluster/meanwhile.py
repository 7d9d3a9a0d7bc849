"""The cluster's programs are compiled beside the tests that need none of them; those that do run last."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster.build import build, built, cache
from tests.cluster.given import KUBECONFIG
from tests.cluster.machine import ClusterError, prepare

ROOT = Path(__file__).parents[2]
# Of these some use a program, such as `helm`, and no cluster.
_FOLDERS = tuple(ROOT / "tests" / name for name in ("behaviour", "chart", "images", "kubernetes"))


def needs_programs(item: pytest.Item) -> bool:
    """Whether a test needs what the cluster is made of."""
    given = getattr(item, "fixturenames", ())
    return "cluster" in given or any(item.path.is_relative_to(folder) for folder in _FOLDERS)


class Meanwhile:
    """Compiles with what the tests leave of the processor: from nothing it takes a quarter of an hour."""

    def __init__(self) -> None:
        self._builder: subprocess.Popen[bytes] | None = None
        self._log = cache() / "build.log"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Puts those that need it last, in the order in which they were."""
        items.sort(key=needs_programs)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begins, where something is left to compile that somebody needs."""
        if session.config.option.collectonly or os.environ.get(KUBECONFIG) or built():
            return
        if any(map(needs_programs, session.items)):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            command = ["nice", "-n", "19", sys.executable, "-m", "tests.cluster", "build"]
            with self._log.open("wb") as log:
                self._builder = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            # Linux shares the processor between sessions first, and looks at `nice` within each alone (sched(7)).
            with contextlib.suppress(OSError):
                Path(f"/proc/{self._builder.pid}/autogroup").write_text("19")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Waits for the end of it before the first test that needs it, and before that one's time is counted."""
        if self._builder is not None and needs_programs(item):
            failed = self._builder.wait() != 0
            self._builder = None
            if failed:
                self._again(item.config)
        return (yield)

    def pytest_unconfigure(self) -> None:
        """Nobody waits any more."""
        if self._builder is not None:
            os.killpg(self._builder.pid, signal.SIGTERM)
            self._builder.wait()

    def _again(self, config: pytest.Config) -> None:
        """Where it can be seen. If it fails again, the tests that need it do, with the same sentence."""
        reporter = config.pluginmanager.getplugin("terminalreporter")
        reporter.write_line(self._log.read_text(errors="replace")[-2000:])
        try:
            prepare(reporter.write_line)
            build(reporter.write_line)
        except ClusterError as error:
            reporter.write_line(f"✗ {error}")


def pytest_configure(config: pytest.Config) -> None:
    """Made for each session."""
    config.pluginmanager.register(Meanwhile(), "meanwhile")
