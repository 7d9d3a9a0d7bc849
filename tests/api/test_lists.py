"""Lists: pages that stay true while jobs are made, and filters."""

import base64
from typing import Any

from tests.api.conftest import REHEARSAL, Plane, paths


async def walk(plane: Plane, **params: Any) -> list[str]:
    """The names of all jobs, page by page."""
    names, after = [], None
    while True:
        page = (await plane.http.get("/v1/jobs", params={**params, **({"after": after} if after else {})})).json()
        names += [job["name"] for job in page["data"]]
        if (after := page["next"]) is None:
            return names


async def test_pages_hold_every_job_once_while_others_are_made(plane: Plane) -> None:
    for number in range(7):
        await plane.submit({**REHEARSAL, "name": f"j{number}"})
    first = (await plane.http.get("/v1/jobs", params={"limit": 3})).json()
    await plane.submit({**REHEARSAL, "name": "new"})
    second = (await plane.http.get("/v1/jobs", params={"limit": 3, "after": first["next"]})).json()
    await plane.submit({**REHEARSAL, "name": "newer"})
    third = (await plane.http.get("/v1/jobs", params={"limit": 3, "after": second["next"]})).json()
    names = [job["name"] for page in (first, second, third) for job in page["data"]]
    assert names == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
    assert third["next"] is None
    assert await walk(plane, limit=2, order="created_at") == [*(f"j{n}" for n in range(7)), "new", "newer"]


async def test_filters_may_be_joined(plane: Plane) -> None:
    one = await plane.submit({**REHEARSAL, "name": "one", "metadata": {"team": "a", "x.y": "z"}})
    await plane.submit({**REHEARSAL, "name": "two", "metadata": {"team": "b"}})
    await plane.set(one["id"], phase="failed")
    assert await walk(plane, phase="failed") == ["one"]
    assert await walk(plane, phase=["failed", "queued"]) == ["two", "one"]
    assert await walk(plane, name="two", stage="rehearse") == ["two"]
    assert await walk(plane, stage="sft") == []
    assert await walk(plane, **{"metadata.team": "a", "metadata.x.y": "z"}) == ["one"]
    assert await walk(plane, **{"metadata.team": "c"}) == []


async def test_parameters_that_make_no_sense_are_named(plane: Plane) -> None:
    early = base64.urlsafe_b64encode(b"0001-01-01T00:00:00+23:59 x").decode()
    nowhere = base64.urlsafe_b64encode(b"2026-01-01T00:00:00 x").decode()
    late = base64.urlsafe_b64encode(b"9999-12-31T23:59:59-23:59 x").decode()
    for params in (
        {"limit": 0},
        {"limit": "x"},
        {"phase": "odd"},
        {"after": "odd"},
        {"after": early},
        {"after": late},
        {"after": nowhere},
        {"order": "odd"},
        {"name": "\0"},
    ):
        answer = await plane.http.get("/v1/jobs", params=params)
        assert answer.status_code == 422, params
        assert paths(answer)[0].split(".")[0] == next(iter(params))
