"""A database that is away, full, or takes no changes: told as such, waited for, and found again."""

import asyncio
import logging
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api.data_folder import CannotStart
from api.domain.access import Role
from api.once import create_key
from api.serve import running
from api.settings import Settings
from api.store import operations_leader, postgres
from api.store.trouble import Trouble, trouble
from tests.api.conftest import REHEARSAL, Plane, plane_on
from tests.disks import small_disk
from tests.postgres import Server
from tests.store.conftest import Other, other_on, until

ROWS = b'{"text": "a row"}\n'


async def status(plane: Plane, path: str = "/readyz") -> int:
    """What a GET is answered with."""
    return (await plane.http.get(path)).status_code


async def test_a_server_that_is_stopped_and_started_is_told_and_found_again(settings: Settings, server: Server) -> None:
    server.does("CREATE DATABASE stopped")
    async with plane_on(settings.model_copy(update={"database_url": server.url("stopped")})) as plane:
        job = (await plane.submit())["id"]
        worker = await plane.start(job)
        await asyncio.to_thread(server.stop)
        for answer in (
            await plane.http.get(f"/v1/jobs/{job}"),
            await plane.http.post("/v1/jobs", json=REHEARSAL),
            await plane.http.get("/readyz"),
            await worker.report(),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.json()["detail"] == Trouble.AWAY
            assert answer.headers["retry-after"] == "1"
        assert await status(plane, "/livez") == 200
        await asyncio.to_thread(server.start)
        assert await status(plane) == 200
        assert (await worker.report()).status_code == 200
        assert (await plane.http.post("/v1/jobs", json=REHEARSAL)).status_code == 201


async def test_an_operator_finds_its_server_again(
    settings: Settings, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.does("CREATE DATABASE operated")
    mine = settings.model_copy(update={"database_url": server.url("operated"), "lease": 1.0})
    async with running(mine, "operator") as this:
        leads = partial(this.control.database.look, operations_leader.led)

        async def led() -> bool:
            return (await leads()).now

        await until(led)
        await asyncio.to_thread(server.stop)

        async def waits() -> bool:
            return f"the operator waits: {Trouble.AWAY}" in caplog.text

        await until(waits)
        await asyncio.to_thread(server.start)
        await until(led)
        assert not this.stopping.is_set()
    assert caplog.text.count("the operator waits: ") == 1, "it says so once"


async def test_a_server_that_takes_no_changes_is_told_as_such(plane: Plane, other: Other) -> None:
    job = (await plane.submit())["id"]
    worker = await plane.start(job)
    await other.only_reads(True)
    await other.ends()
    for answer in (
        await plane.http.post("/v1/jobs", json=REHEARSAL),
        await plane.http.patch(f"/v1/jobs/{job}", json={"name": "new"}),
        await plane.http.post("/v1/files", data={"purpose": "sft"}, files={"file": ("a.jsonl", ROWS)}),
        await worker.report(),
        await plane.http.get("/readyz"),
    ):
        assert answer.status_code == 503, answer.text
        assert answer.json()["detail"] == Trouble.READ_ONLY
    assert await status(plane, f"/v1/jobs/{job}") == 200, "what is there can be read"
    assert await status(plane, "/livez") == 200


async def test_a_key_is_not_made_on_a_server_that_takes_no_changes_and_that_is_told_in_one_sentence(
    plane: Plane, settings: Settings, other: Other
) -> None:
    await other.only_reads(True)
    with pytest.raises(CannotStart, match="cannot be used: cannot execute .* in a read-only transaction"):
        await create_key(settings, "default", "me", Role.ADMIN)
    await other.only_reads(False)
    assert (await create_key(settings, "default", "me", Role.ADMIN)).startswith("rlhf_")


async def test_connections_to_a_server_that_takes_no_changes_any_more_are_made_anew(plane: Plane, other: Other) -> None:
    job = (await plane.submit())["id"]
    await other.only_reads(True)
    await other.ends()
    # As after a failover: all connections are good, and lead to where nothing can be changed.
    await asyncio.gather(*(plane.get(job) for _ in range(20)))
    await other.only_reads(False)
    for number in range(8):
        answer = await plane.http.patch(f"/v1/jobs/{job}", json={"priority": number})
        assert answer.status_code == 200, answer.text
    assert await status(plane) == 200
    # Those who read have gone with them.
    for _ in range(20):
        async with plane.control.database.reading() as session:
            assert await session.scalar(text("SELECT current_setting('transaction_read_only')")) == "off"


async def test_a_server_that_takes_no_changes_is_not_asked_for_new_connections_at_every_request(
    plane: Plane, other: Other
) -> None:
    job = (await plane.submit())["id"]
    await other.only_reads(True)
    await other.ends()
    made = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
    for number in range(8):
        assert (await plane.http.patch(f"/v1/jobs/{job}", json={"priority": number})).status_code == 503
    before = await other.value(made)
    for number in range(40):
        assert (await plane.http.patch(f"/v1/jobs/{job}", json={"priority": number})).status_code == 503
    assert await other.value(made) - before < 20


async def test_an_operator_waits_for_a_server_that_takes_no_changes(
    plane: Plane, settings: Settings, other: Other, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_ELSEWHERE", 0.1)
    caplog.set_level(logging.INFO)
    mine = settings.model_copy(update={"lease": 1.0})
    async with running(mine, "operator") as this:

        async def led() -> bool:
            return (await this.control.database.look(operations_leader.led)).now

        async def waits() -> bool:
            return f"the operator waits: {Trouble.READ_ONLY}" in caplog.text

        await until(led)
        await other.only_reads(True)
        await other.ends()
        await until(waits)
        await other.only_reads(False)
        await until(led)
        assert "the operator waits no more" in caplog.text
        assert not this.stopping.is_set()
    assert caplog.text.count("the operator waits: ") == 1, "it says so once"
    assert "Traceback" not in caplog.text


async def test_a_control_plane_starts_on_a_server_that_takes_no_changes_and_waits_for_it(
    plane: Plane, settings: Settings, other: Other, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_ELSEWHERE", 0.1)
    key = settings.data / "key"
    key.write_text("rlhf_" + "a" * 40)
    await other.only_reads(True)
    mine = settings.model_copy(update={"auth": "keys", "admin_key_file": key})
    async with running(mine, "all") as this:
        assert "ADMIN_KEY_FILE" in caplog.text

        async def waits() -> bool:
            return f"the operator waits: {Trouble.READ_ONLY}" in caplog.text

        await until(waits)
        assert not (await this.control.database.look(operations_leader.led)).now
        await other.only_reads(False)

        async def led() -> bool:
            return (await this.control.database.look(operations_leader.led)).now

        await until(led)
        assert not this.stopping.is_set()


async def test_a_database_whose_disk_is_full_is_told_as_such_and_goes_on_once_there_is_room(
    settings: Settings, server: Server
) -> None:
    with small_disk(server.folder.with_name(f"{server.folder.name}-small"), "24m") as disk:
        server.owns(disk)
        server.does(f"CREATE TABLESPACE small LOCATION '{disk}'")
        server.does("CREATE DATABASE small TABLESPACE small")
        try:
            async with (
                plane_on(settings.model_copy(update={"database_url": server.url("small")})) as plane,
                other_on(server.url("small")) as other,
            ):
                job = (await plane.submit())["id"]
                (disk / "filler").write_bytes(b"")
                await fill(disk)
                posts = [await plane.http.post("/v1/jobs", json=big(n)) for n in range(40)]
                refused = [answer for answer in posts if answer.status_code != 201]
                assert refused, "the disk was not full"
                for answer in refused:
                    assert answer.status_code == 507, answer.text
                    assert answer.json()["detail"] == Trouble.FULL
                assert await status(plane, f"/v1/jobs/{job}") == 200
                (disk / "filler").unlink()
                assert (await plane.http.post("/v1/jobs", json=big(99))).status_code == 201
                count = await other.value("SELECT count(*) FROM jobs")
                assert count == 2 + len(posts) - len(refused), "none is half there"
        finally:
            server.does("DROP DATABASE small WITH (FORCE)")
            server.does("DROP TABLESPACE small")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("57P03", Trouble.AWAY),  # starting up
        ("57P01", Trouble.AWAY),  # shutting down
        ("08006", Trouble.AWAY),
        ("53300", Trouble.CROWDED),
        ("53200", Trouble.CROWDED),
        ("22012", None),  # these are mistakes
        ("42P01", None),
        ("23505", None),
        ("XX000", None),
    ],
)
async def test_what_a_server_says_of_itself_is_its_trouble_and_a_mistake_is_none(
    plane: Plane, state: str, expected: Trouble | None
) -> None:
    said = text(f"DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{state}'; END $$")
    with pytest.raises(DBAPIError) as error:
        await plane.control.database.look(lambda connection: connection.execute(said))
    assert trouble(error.value) is expected


def big(number: int) -> dict[str, object]:
    """A spec that takes some room."""
    return {**REHEARSAL, "metadata": {f"k{n}": f"{number}-{n}" * 40 for n in range(16)}}


async def fill(disk: Path) -> None:
    """Leaves next to no room."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            return
