"""The process: what it says when it is ready, how it stops, and that it is alone."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from api.data_folder import CannotStart
from api.serve import running
from api.settings import BadSettings, Settings, load
from api.store.database import Database
from api.store.migrate import migrate
from api.store.tables import Base
from tests.api.conftest import Plane
from tests.e2e.plane import free_port


async def start(data: Path, *arguments: str) -> asyncio.subprocess.Process:
    environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "STORE", "HOST")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", "--port", "0", "--data", str(data), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip


async def ready(process: asyncio.subprocess.Process) -> str:
    """The address, once it is said."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    assert " listens on http://127.0.0.1:" in line
    return line.split(" listens on ")[1].split(" ")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_when_it_is_ready_and_stops_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    process = await start(tmp_path / "data")
    url = await ready(process)
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{url}/readyz")).status_code == 200
        workers = (tmp_path / "data" / "worker-url").read_text()
        assert (await http.post(f"{workers}/worker/v1/report", json={})).status_code == 401
        # The two listeners keep to themselves.
        assert (await http.get(f"{workers}/v1/jobs")).status_code == 404
        assert (await http.post(f"{url}/worker/v1/report", json={})).status_code == 404
    process.send_signal(number)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, stderr.decode()
    assert b"Traceback" not in stderr


async def test_a_second_one_on_the_same_folder_names_the_first(tmp_path: Path) -> None:
    first = await start(tmp_path / "data", "--role", "api")
    await ready(first)
    second = await start(tmp_path / "data")
    _, stderr = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 1
    assert f"process {first.pid}" in stderr.decode()
    # A lock dies with its holder, whatever it left in the file.
    first.kill()
    await first.communicate()
    third = await start(tmp_path / "data", "--role", "api")
    await ready(third)
    third.terminate()
    await third.communicate()
    assert third.returncode == 0


async def test_an_operator_shares_its_folder_with_no_other_though_their_databases_differ(
    settings: Settings, postgres: Callable[[], str]
) -> None:
    other = settings.model_copy(update={"database_url": postgres()})
    async with running(settings, "operator"):
        with pytest.raises(CannotStart, match=f"in use by process {os.getpid()}"):
            async with running(other, "operator"):
                pass
    async with running(other, "operator"):
        with pytest.raises(CannotStart, match="in use"):
            async with running(settings):
                pass


async def test_an_operator_without_an_api_says_how_it_is_where_it_is_told_to(settings: Settings) -> None:
    port = free_port()
    async with (
        running(settings.model_copy(update={"health_port": port}), "operator") as this,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/v1/jobs")).status_code == 404
        this.control.pulse.watch(lambda: time.monotonic() - 61)
        assert (await http.get("/livez")).status_code == 503
        assert (await http.get("/readyz")).status_code == 200
    assert this.url is None


@pytest.mark.parametrize("name", ["what?", "100%", "a%20b", "c#d", "e&f=g"])
async def test_a_data_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    settings = load(data=folder, database_url="", port=0)
    async with running(settings, "api"):
        pass
    assert (folder / "rlhf.db").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:secret@127.0.0.1:1/x", "Connect call failed"),
        ("postgresql://me:secret@host.invalid/x", "Name or service not known"),
        ("sqlite+aiosqlite:///{folder}/no-database", "file is not a database"),
        ("sqlite+aiosqlite:///{folder}/nowhere/rlhf.db", "unable to open database file"),
    ],
)
async def test_a_database_that_is_away_is_told_in_one_sentence(tmp_path: Path, url: str, says: str) -> None:
    (tmp_path / "no-database").write_text("something else" * 500)
    settings = load(data=tmp_path / "data", database_url=url.format(folder=tmp_path), port=0)
    with pytest.raises(CannotStart) as error:
        async with running(settings, "api"):
            pass
    assert str(error.value).startswith("the database ")
    assert says in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


async def test_a_database_that_does_not_let_us_in_is_told_in_one_sentence(
    settings: Settings, postgres: Callable[[], str]
) -> None:
    other = settings.model_copy(update={"database_url": postgres().replace("/t", "/none", 1)})
    with pytest.raises(CannotStart, match=r"the database .* cannot be used: .*does not exist"):
        async with running(other, "api"):
            pass


async def test_what_cannot_be_opened_in_the_data_folder_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(CannotStart, match=f"the data folder {tmp_path} cannot be used: its file `lock`"):
        async with running(load(data=tmp_path, database_url="", port=0), "api"):
            pass
    (tmp_path / "lock").rmdir()
    (tmp_path / "store").write_text("")
    with pytest.raises(CannotStart, match=f"the store {tmp_path}/store cannot be written"):
        async with running(load(data=tmp_path, database_url="", port=0), "api"):
            pass


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("host", "0.0.0.0", "AUTH=keys"),
        ("store", "gs://bucket/x", "file:///"),
        ("database_url", "mysql://x", "postgresql://"),
        ("database_url", "postgresql://host:port/x", "is no URL"),
        ("port", 70000, "65535"),
        ("cluster", "mesos", "local"),
    ],
)
@pytest.mark.quick
def test_settings_that_cannot_work_are_refused_with_a_sentence(name: str, value: object, says: str) -> None:
    with pytest.raises(BadSettings) as error:
        load(**{name: value})
    assert says in str(error.value)
    assert name.upper() in str(error.value)


async def test_the_migrations_make_the_tables_that_the_code_reads(database_url: str) -> None:
    database = Database(database_url)
    await asyncio.gather(migrate(database), migrate(database))
    async with database.engine.connect() as connection:

        def here(thing: object, name: str | None, *_: object) -> bool:
            # Alembic takes no notice of what one kind of database alone is to have.
            return name != "ix_jobs_metadata" or not database.sqlite

        opts = {"compare_type": True, "include_object": here}
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts=opts), Base.metadata)
        )
    await database.dispose()
    assert differences == []


async def test_figures_for_prometheus_name_routes_and_not_ids(plane: Plane) -> None:
    job = await plane.submit()
    await plane.get(job["id"])
    text = (await plane.http.get("/metrics")).text
    assert 'rlhf_jobs{phase="queued"} 1.0' in text
    # No operator runs here.
    assert "rlhf_operator_leads 0.0" in text
    assert 'route="/v1/jobs/{job}",status="200"' in text
    assert job["id"] not in text
