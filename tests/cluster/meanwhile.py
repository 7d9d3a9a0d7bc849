"""The cluster's programs are compiled beside the tests that need none of them; those that do run last."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

from tests.cluster.build import build, built, cache
from tests.cluster.given import KUBECONFIG
from tests.cluster.machine import ClusterError, prepare

ROOT = Path(__file__).parents[2]
# Of these some use a program, such as `helm`, and no cluster.
_FOLDERS = tuple(f"tests/{name}/" for name in ("behaviour", "chart", "images", "kubernetes"))


def needs_programs(test: str) -> bool:
    """Whether a test, such as `tests/kubernetes/test_path.py::test_…`, needs what the cluster is made of."""
    return test.startswith(_FOLDERS)


def at_hand() -> bool:
    """Whether nothing has to be compiled: it is there, or a cluster is given."""
    return bool(os.environ.get(KUBECONFIG)) or built()


class Compiler:
    """Compiles with what the tests leave of the processor: from nothing it takes a quarter of an hour."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = cache() / "build.log"

    def begin(self, tests: Iterable[str]) -> None:
        """Begins, where something is left to compile that one of them needs."""
        if not at_hand() and any(map(needs_programs, tests)):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            command = ["nice", "-n", "5", sys.executable, "-m", "tests.cluster", "build"]
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def end(self) -> None:
        """Nobody waits any more."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


class Meanwhile:
    """The compiler in a session of tests."""

    def __init__(self, compiler: Compiler, *, starts: bool) -> None:
        self.compiler, self._starts = compiler, starts
        self._waited = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Puts those that need it last, in the order in which they were."""
        items.sort(key=lambda item: needs_programs(item.nodeid))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begins."""
        if self._starts and not session.config.option.collectonly:
            self.compiler.begin(item.nodeid for item in session.items)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Waits for the end of it before the first test that needs it, and before that one's time is counted."""
        if needs_programs(item.nodeid) and not self._waited:
            self._waited = True
            if not at_hand():
                self._wait(item.config)
        return (yield)

    def pytest_unconfigure(self) -> None:
        """The session is over."""
        self.compiler.end()

    def _wait(self, config: pytest.Config) -> None:
        """For whoever compiles; what failed is tried again where it can be seen.

        If it fails once more, the tests that need it do, with the same sentence.
        """
        reporter = config.pluginmanager.getplugin("terminalreporter")
        say = reporter.write_line if reporter else lambda _: None
        try:
            prepare(say)
            build(say)
        except ClusterError as error:
            say(f"✗ {error}")


def pytest_configure(config: pytest.Config) -> None:
    """Made for each session. Where several processes share the tests, the one that hands them out compiles."""
    compiler = Compiler()
    shared = hasattr(config, "workerinput") or bool(getattr(config.option, "tx", None))
    config.pluginmanager.register(Meanwhile(compiler, starts=not shared), "meanwhile")
