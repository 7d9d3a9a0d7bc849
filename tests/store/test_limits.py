"""Nothing waits for ever: statements, locks, connections that a firewall has forgotten, and too many at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoneFree

from api.control import limits
from api.settings import BadSettings, Settings, load
from api.store import postgres
from api.store.database import Database
from api.store.postgres import Limits
from api.store.trouble import Trouble, trouble
from api.store.wakeups import Wakeups
from tests.api.conftest import REHEARSAL, Plane, plane_on
from tests.store.conftest import other_on, until

# A listing that takes as long as that of a table no index of which helps.
RUNAWAY = ("ALTER TABLE jobs RENAME TO jobs_", "CREATE VIEW jobs AS SELECT jobs_.* FROM jobs_, pg_sleep(60)")


class Firewall:
    """Lets connections to a server through, until it forgets those that there are: not even their end is told."""

    def __init__(self) -> None:
        self.forgotten: set[object] = set()
        self._open: set[object] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def forget(self) -> None:
        """All connections that there are."""
        self.forgotten |= self._open

    async def passes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: str) -> None:
        """One connection, both ways."""
        inner, outer = await asyncio.open_unix_connection(socket)
        this = object()
        self._open.add(this)
        for source, sink in ((reader, outer), (inner, writer)):
            task = asyncio.create_task(self._pump(this, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, this: object, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if this not in self.forgotten:
                    sink.write(data)
                    await sink.drain()
        if this not in self.forgotten:
            sink.close()

    async def close(self) -> None:
        """Ends all of it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def firewall_before(url: str) -> AsyncIterator[Firewall]:
    """A firewall before the server of `url`."""
    there = make_url(url)
    made = Firewall()
    socket = f"{there.query['host']}/.s.PGSQL.5432"
    listening = await asyncio.start_server(lambda r, w: made.passes(r, w, socket), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    made.url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{there.database}"
    async with listening:
        yield made
        await made.close()


async def test_a_listing_that_runs_away_ends_with_a_sentence_and_leaves_its_connection_well(
    settings: Settings, url: str
) -> None:
    quick = settings.model_copy(update={"statement_timeout": 0.5, "database_pool": 2})
    async with plane_on(quick) as plane, other_on(url) as other:
        await plane.submit()
        await other.does(*RUNAWAY)
        answers = await asyncio.gather(*(plane.http.get("/v1/jobs") for _ in range(4)))
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"] == "10"
            assert "for longer than it may be" in answer.json()["detail"]
        await other.does("DROP VIEW jobs", "ALTER TABLE jobs_ RENAME TO jobs")
        assert len((await plane.http.get("/v1/jobs")).json()["data"]) == 1


async def test_operators_and_migrations_have_limits_of_their_own(settings: Settings, plane: Plane, url: str) -> None:
    mine = settings.model_copy(update={"statement_timeout": 3.0, "operator_statement_timeout": 7.0})
    asked = text("SELECT current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')")
    for operates, expected in ((False, "3s 20s"), (True, "7s 20s")):
        database = Database(url, limits(mine, operates=operates))
        try:
            assert await database.look(lambda connection: connection.scalar(asked)) == expected
        finally:
            await database.dispose()


async def test_what_somebody_else_holds_is_waited_for_only_for_a_while(settings: Settings, url: str) -> None:
    async with plane_on(settings.model_copy(update={"lock_timeout": 0.3})) as plane, other_on(url) as other:
        job = (await plane.submit())["id"]
        await other.does("BEGIN", "SELECT FROM jobs FOR UPDATE")
        answer = await plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == Trouble.LOCKED
        assert (await plane.get(job))["name"] != "new", "who only reads waits for nobody"
        await other.does("COMMIT")
        assert (await plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"})).status_code == 200


async def test_connections_that_a_firewall_has_forgotten_are_made_anew(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_PING", 0.3)
    async with (
        firewall_before(url) as firewall,
        plane_on(settings.model_copy(update={"database_url": firewall.url})) as plane,
    ):
        job = (await plane.submit())["id"]
        await asyncio.gather(*(plane.get(job) for _ in range(20)))
        firewall.forget()
        answers = await asyncio.gather(plane.http.get("/v1/jobs"), plane.http.post("/v1/jobs", json=REHEARSAL))
        assert [answer.status_code for answer in answers] == [200, 201]


async def test_a_statement_on_a_connection_that_is_forgotten_meanwhile_ends_and_is_asked_anew(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_SILENCE", 0.3)
    calls = 0
    async with firewall_before(url) as firewall:
        database = Database(firewall.url, Limits(connections=2, statement=0.3))

        def forgotten(connection: Connection) -> int:
            nonlocal calls
            calls += 1
            connection.execute(text("SELECT 1"))
            if calls == 1:
                firewall.forget()
            return int(connection.scalar(text("SELECT 2")) or 0)

        started = time.monotonic()
        assert await database.look(forgotten) == 2
        assert calls == 2
        assert time.monotonic() - started < 20
        await database.dispose()


async def test_who_reads_waits_for_no_connection_that_writers_hold(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_POOL", 0.3)
    database = Database(url, Limits(connections=6, apart=True))
    try:
        async with contextlib.AsyncExitStack() as writers:
            for _ in range(4):
                session = await writers.enter_async_context(database.transaction())
                await session.execute(text("SELECT 1"))
            with pytest.raises(NoneFree):  # though two are left
                async with database.transaction() as session:
                    await session.execute(text("SELECT 1"))
            assert await asyncio.wait_for(database.look(lambda connection: connection.scalar(text("SELECT 2"))), 5) == 2
    finally:
        await database.dispose()


@pytest.mark.parametrize("connections", [3, 9, 15])
def test_readers_and_writers_share_what_a_process_may_have(connections: int) -> None:
    readers, writers = Limits(connections).shared()
    assert readers.connections + writers.connections == connections
    assert min(readers.connections, writers.connections) >= 1


async def test_wake_ups_are_heard_again_over_a_new_connection(
    plane: Plane, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.store.wakeups._LOOK", 0.2)
    monkeypatch.setattr("api.store.wakeups._ANEW", 0.1)
    monkeypatch.setattr("api.store.wakeups._PATIENCE", 0.3)
    async with firewall_before(url) as firewall, other_on(url) as other:
        heard, said = Database(firewall.url), plane.control.wakeups
        hearing = Wakeups(heard)
        await hearing.listen()

        async def hears() -> bool:
            await said.wake("job-x")
            return "job-x" in await hearing.wait(0.1)

        await until(hears)
        await other.ends()
        await until(hears)
        await hearing.close()
        await heard.dispose()


async def test_a_wake_up_that_nobody_answers_keeps_no_request_waiting(
    url: str, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.store.wakeups._PATIENCE", 0.3)
    async with firewall_before(url) as firewall:
        database = Database(firewall.url)
        wakeups = Wakeups(database)
        await wakeups.wake("job-x")
        firewall.forget()
        # A statement on it would be waited for longer.
        async with asyncio.timeout(5):
            await asyncio.gather(*(wakeups.wake("job-x") for _ in range(20)))
        await wakeups.wake("job-x")
        await wakeups.close()
        await database.dispose()


async def test_more_requests_than_connections_wait_and_then_are_told(
    settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_POOL", 0.3)
    async with plane_on(settings.model_copy(update={"database_pool": 2})) as plane, other_on(url) as other:
        job = (await plane.submit())["id"]
        await other.does("BEGIN", "SELECT FROM jobs FOR UPDATE")
        held = [asyncio.ensure_future(plane.http.patch(f"/v1/jobs/{job}", json={"priority": n})) for n in range(2)]
        await other.keeps_waiting(2)
        answer = await plane.http.get(f"/v1/jobs/{job}")
        assert (answer.status_code, answer.json()["detail"]) == (503, Trouble.CROWDED)
        await other.does("COMMIT")
        assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200]


async def test_a_server_without_a_connection_to_spare_says_so(url: str) -> None:
    name = make_url(url).database
    async with other_on(url) as other:
        # Administrators are let in all the same.
        role = f"few_{name}"
        await other.does(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1")
        first, second = (Database(make_url(url).set(username=role)) for _ in range(2))
        async with first.reading() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(DBAPIError) as error:
                await second.ping()
        assert trouble(error.value) is Trouble.CROWDED
        await first.dispose()
        await second.dispose()
        await other.does(f"DROP ROLE {role}")


@pytest.mark.quick
def test_two_replicas_of_each_fit_a_hundred_connections_while_an_upgrade_has_one_more() -> None:
    settings = load(database_url="postgresql://db/x")
    # One more of each is there while an upgrade runs; each has one connection beside its pool, and migrates with one.
    api, operator = settings.database_pool + 1, settings.operator_pool + 1
    reserved_for_administrators = 3
    assert 3 * (api + operator) + 2 <= 100 - reserved_for_administrators


@pytest.mark.quick
@pytest.mark.parametrize("name", ["database_pool", "operator_pool", "statement_timeout", "lock_timeout"])
def test_limits_that_cannot_work_are_refused_by_their_name(name: str) -> None:
    with pytest.raises(BadSettings, match=name.upper()):
        load(**{name: 0})


@pytest.mark.quick
@pytest.mark.parametrize("query", ["sslmode=require", "host=a,b&target_session_attrs=read-write", "host=/run/socket"])
async def test_a_url_may_say_what_those_of_other_programs_say(query: str) -> None:
    database = Database(load(database_url=f"postgresql://me:secret@/x?{query}").database)
    await database.dispose()
