"""Migrations: one at a time, and releases that are next to each other work on one database."""

import asyncio
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command, op
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from api.data_folder import CannotStart
from api.migrations import versions
from api.serve import running
from api.settings import load
from api.store import migrate as migrations
from api.store.database import Database
from api.store.migrate import config, migrate
from tests.api.conftest import plane_on
from tests.store.conftest import other_on, until
from tests.store.rules import CONTRACTED, breaches, operations

# What a later release might do: it expands.
LATER = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9000", {before!r}, None, None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("colour", sa.String(8), nullable=False, server_default="red"))
    op.create_table("colours", sa.Column("name", sa.String(8), primary_key=True))
"""


def all_migrations() -> list[ModuleType]:
    """Of this release, in order."""
    names = sorted(module.name for module in pkgutil.iter_modules(versions.__path__))
    return [importlib.import_module(f"{versions.__name__}.{name}") for name in names]


def newest() -> str:
    """This release's last."""
    return str(all_migrations()[-1].revision)


def with_later(connection: Connection | None, folder: Path) -> Any:
    """The later release's configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "v9000_later.py").write_text(LATER.format(before=newest()))
    given = config(connection)
    given.set_main_option("version_locations", os.pathsep.join([versions.__path__[0], str(folder)]))
    return given


async def of_a_later_release(url: str, folder: Path) -> None:
    """Migrates the database as a later release does."""
    database = Database(url)
    await migrate(database)
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(with_later(sync, folder), "head"))
    await database.dispose()


async def stands(database: Database) -> list[str]:
    """What the database says it was migrated to."""
    return await database.look(lambda c: list(c.scalars(text("SELECT version_num FROM alembic_version"))))


async def test_an_older_release_that_meets_a_newer_schema_starts_and_changes_nothing(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await of_a_later_release(database_url, tmp_path / "later")
    settings = load(data=tmp_path / "data", database_url=database_url, port=0)
    caplog.clear()
    async with plane_on(settings) as plane:
        job = (await plane.submit())["id"]
        worker = await plane.start(job)
        assert (await worker.report()).status_code == 200
        assert (await plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"})).status_code == 200
        assert (await plane.get(job))["name"] == "new"
        assert (await plane.http.get("/readyz")).status_code == 200
        colour = text("SELECT colour FROM jobs")
        assert await plane.control.database.look(lambda connection: connection.scalar(colour)) == "red"
        assert await stands(plane.control.database) == ["9000"]
    said = [record.message for record in caplog.records if "a later release" in record.message]
    assert said == [f"a later release has migrated the database to 9000, past {newest()}: it is used as it is"]


async def test_migrate_by_hand_leaves_a_newer_schema_as_it_is(database_url: str, tmp_path: Path) -> None:
    await of_a_later_release(database_url, tmp_path / "later")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", "--data", str(tmp_path / "data"), "migrate",
        stderr=asyncio.subprocess.PIPE, env={**os.environ, "DATABASE_URL": database_url},
    )  # fmt: skip
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, stderr.decode()
    assert stderr.decode().count("a later release has migrated the database to 9000") == 1
    database = Database(database_url)
    assert await stands(database) == ["9000"]
    await database.dispose()


async def test_a_database_of_something_else_is_refused(database_url: str, tmp_path: Path) -> None:
    database = Database(database_url)
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        await connection.execute(text("INSERT INTO alembic_version VALUES ('1975ea83b712')"))
    await database.dispose()
    with pytest.raises(CannotStart, match=r"cannot be used: .*1975ea83b712"):
        async with running(load(data=tmp_path / "data", database_url=database_url, port=0), "api"):
            pass


async def test_of_two_that_start_at_once_one_migrates_and_the_other_waits(
    postgres: Callable[[], str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    url = postgres()
    first, second = Database(url), Database(url)
    holding, go_on = asyncio.Event(), asyncio.Event()
    upgrade = migrations._upgrade
    migrated = 0

    def slowly(connection: Connection) -> bool:
        nonlocal migrated
        more = upgrade(connection)
        migrated += 1
        if migrated == 1:
            # Not committed yet.
            holding.set()
            sa.util.await_only(go_on.wait())
        return more

    monkeypatch.setattr(migrations, "_upgrade", slowly)
    one = asyncio.create_task(migrate(first))
    await asyncio.wait_for(holding.wait(), 30)
    two = asyncio.create_task(migrate(second))

    async def waits() -> bool:
        return "another process migrates the database; waiting for it" in caplog.text

    await until(waits)
    async with other_on(url) as other:
        await other.keeps_waiting()
    assert migrated == 1 and not two.done()
    go_on.set()
    await asyncio.gather(one, two)
    assert await stands(first) == [newest()]
    await first.dispose()
    await second.dispose()


async def test_a_migration_waits_for_a_table_briefly_lets_others_go_and_comes_again(
    postgres: Callable[[], str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres()
    database = Database(url)
    await migrate(database)
    monkeypatch.setattr(migrations, "config", lambda connection: with_later(connection, tmp_path / "later"))
    monkeypatch.setattr(migrations, "_LOCK", "100ms")
    monkeypatch.setattr(migrations, "_LONGEST", 0.1)
    async with other_on(url) as other:
        await other.does("BEGIN", "SELECT FROM jobs")
        migrating = asyncio.create_task(migrate(database))

        async def let_go() -> bool:
            return "it is tried again" in caplog.text

        await until(let_go)
        assert await stands(database) == [newest()]
        await other.does("COMMIT")
        await migrating
        assert await stands(database) == ["9000"]
    await database.dispose()


async def test_reports_under_way_and_the_migrations_of_this_release_do_not_wait_for_each_other(
    postgres: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres()
    database = Database(url)
    async with database.engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(config(sync), "0003"))
    async with other_on(url) as other:
        # As a report begins, and goes on.
        await other.does("BEGIN", "SELECT FROM jobs JOIN attempts ON job_id = id FOR UPDATE")
        migrating = asyncio.create_task(migrate(database))
        await other.keeps_waiting()
        await other.does("UPDATE attempts SET mark = 1", "UPDATE jobs SET event_count = 1", "COMMIT")
        await migrating
    assert "it is tried again" not in caplog.text
    assert await stands(database) == [newest()]
    await database.dispose()


async def test_a_migration_that_fails_has_changed_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(database_url)
    await migrate(database)

    def half(connection: Connection | None) -> Any:
        given = with_later(connection, tmp_path / "later")
        path = tmp_path / "later" / "v9000_later.py"
        path.write_text(path.read_text() + '    op.add_column("no_table", sa.Column("x", sa.Integer()))\n')
        return given

    monkeypatch.setattr(migrations, "config", half)
    with pytest.raises(DBAPIError):
        await migrate(database)
    assert await stands(database) == [newest()]
    columns = await database.look(lambda c: {column["name"] for column in sa.inspect(c).get_columns("jobs")})
    assert "colour" not in columns
    await database.dispose()


@pytest.mark.quick
@pytest.mark.parametrize("migration", all_migrations(), ids=lambda module: str(module.revision))
def test_the_release_before_works_on_what_a_migration_leaves(migration: ModuleType) -> None:
    assert breaches(operations(migration), CONTRACTED.get(migration.revision)) == []


def made(upgrade: Callable[[], None]) -> ModuleType:
    """A migration that does this."""
    module = ModuleType("made")
    module.upgrade = upgrade  # type: ignore[attr-defined]
    return module


@pytest.mark.quick
@pytest.mark.parametrize(
    ("upgrade", "says"),
    [
        (lambda: op.drop_column("jobs", "message"), "drops jobs.message"),
        (lambda: op.drop_table("jobs"), "drops the table jobs"),
        (lambda: op.rename_table("jobs", "tasks"), "renames the table jobs"),
        (lambda: op.alter_column("jobs", "message", new_column_name="said"), "renames jobs.message"),
        (lambda: op.alter_column("jobs", "reason", nullable=False), "makes jobs.reason one that may not be null"),
        (
            lambda: op.alter_column("jobs", "name", existing_type=sa.String(63), type_=sa.String(32)),
            "changes the type of jobs.name",
        ),
        (
            lambda: op.add_column("jobs", sa.Column("x", sa.Integer(), nullable=False)),
            "adds jobs.x, which may not be null, without a server default",
        ),
        (lambda: op.create_unique_constraint("u", "jobs", ["name"]), "adds a unique"),
        (lambda: op.create_index("i", "jobs", ["name"], unique=True), "makes the unique index i on jobs"),
        (lambda: op.execute("ALTER TABLE jobs RENAME TO tasks"), "does SQL of its own"),
    ],
)
def test_a_migration_that_the_release_before_would_not_survive_is_refused(
    upgrade: Callable[[], None], says: str
) -> None:
    [found] = breaches(operations(made(upgrade)))
    assert found.startswith(says)


@pytest.mark.quick
def test_what_expands_may_be_done_and_what_is_contracted_on_purpose_too() -> None:
    def upgrade() -> None:
        op.add_column("jobs", sa.Column("x", sa.Integer(), nullable=False, server_default="0"))
        op.add_column("jobs", sa.Column("y", sa.Integer(), nullable=True))
        op.create_index("i", "jobs", ["x"])
        op.alter_column("jobs", "name", existing_type=sa.String(63), type_=sa.String(100))
        op.create_table("own", sa.Column("id", sa.Integer(), primary_key=True))
        op.create_index("j", "own", ["id"], unique=True)
        op.drop_column("jobs", "old")

    done = operations(made(upgrade))
    assert breaches(done) == ["drops jobs.old"]
    assert breaches(done, {"jobs.old"}) == []
