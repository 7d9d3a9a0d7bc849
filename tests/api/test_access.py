"""Keys, roles and projects: who is let in, what each may do, and that nothing is seen across projects."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, update

from api.data_folder import CannotStart
from api.domain.access import Caller, Role
from api.main import create_app
from api.serve import running
from api.settings import BadSettings, Settings, load
from api.store import keys
from api.store.database import utcnow
from api.store.tables import ApiKeyRow, AuditRow
from tests.api.conftest import REHEARSAL, TEXT, Plane, plane_on

_OPEN = {"/livez", "/readyz", "/metrics"}


@pytest.fixture
def keyed(settings: Settings) -> Settings:
    given = {name: getattr(settings, name) for name in type(settings).model_fields}
    return load(**given | {"auth": "keys"})


class Door:
    """A control plane that asks for keys; `admin` has one already."""

    def __init__(self, plane: Plane, admin: str) -> None:
        self.plane = plane
        self.admin = self.by(admin)

    def by(self, key: str | None) -> httpx.AsyncClient:
        """A client with a key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=self.plane.http.base_url, headers=headers, timeout=30)

    async def key(self, role: str = "editor", project: str | None = None, **more: Any) -> dict[str, Any]:
        """A new key, as it is shown once."""
        body = {"name": f"{role}-key", "role": role, "project": project, **more}
        answer = await self.admin.post("/v1/api-keys", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def client(self, role: str = "editor", project: str | None = None) -> httpx.AsyncClient:
        """A client with a new key."""
        return self.by((await self.key(role, project))["key"])

    async def project(self, name: str, **quota: int) -> None:
        """A new project."""
        answer = await self.admin.post("/v1/projects", json={"name": name, "quota": quota})
        assert answer.status_code == 201, answer.text


@pytest.fixture
async def door(keyed: Settings) -> AsyncIterator[Door]:
    async with plane_on(keyed) as plane:
        key = keys.fresh()
        async with plane.control.database.transaction() as session:
            await keys.create(session, key, project="default", name="root", role=Role.ADMIN)
        yield Door(plane, key)


async def submit(client: httpx.AsyncClient, spec: dict[str, Any] | None = None) -> str:
    answer = await client.post("/v1/jobs", json=spec or REHEARSAL)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_no_call_is_answered_without_a_key_but_those_of_health(door: Door) -> None:
    nobody, stranger = door.by(None), door.by("rlhf_" + "x" * 43)
    app = create_app(door.plane.control)
    routes = [route for route in app.state.routes if isinstance(route, APIRoute) and route.path not in _OPEN]
    assert len(routes) > 40
    for route in routes:
        path = route.path.replace("{number}", "1")
        for method in route.methods:
            for client, says in ((nobody, "send an API key"), (stranger, "not known")):
                answer = await client.request(method, path)
                assert (answer.status_code, method, path) == (401, method, path)
                assert says in answer.json()["detail"]
                assert answer.headers["www-authenticate"] == "Bearer"
    for path in _OPEN:
        assert (await nobody.get(path)).status_code == 200


async def test_a_viewer_changes_nothing_and_an_editor_lets_nobody_in(door: Door) -> None:
    viewer, editor = await door.client("viewer"), await door.client("editor")
    job = await submit(editor)
    nothing = dict.fromkeys(("pipeline", "file", "model", "project", "key"), "x")
    app = create_app(door.plane.control)
    for route in (r for r in app.state.routes if isinstance(r, APIRoute) and r.path not in _OPEN):
        path = route.path.replace("{path:path}", "x").format(job=job, number=1, **nothing)
        admins = route.path.startswith(("/v1/audit", "/v1/api-keys")) and route.path != "/v1/api-keys/self"
        admins |= route.path.startswith("/v1/projects") and "GET" not in route.methods
        admins |= route.path.endswith("confirm-dead")
        writes = "GET" not in route.methods and not route.path.startswith("/v1/estimate")
        for method in route.methods:
            if admins or writes:
                answer = await viewer.request(method, path)
                assert (answer.status_code, method, path) == (403, method, path)
            if admins:
                answer = await editor.request(method, path)
                assert (answer.status_code, method, path) == (403, method, path)
                assert "admin" in answer.json()["detail"]
    assert (await viewer.get(f"/v1/jobs/{job}")).status_code == 200
    assert (await editor.post(f"/v1/jobs/{job}/cancel")).status_code == 200


async def test_what_another_project_has_is_not_there(door: Door) -> None:
    await door.project("research")
    ours, theirs = await door.client("editor", "research"), await door.client("editor")
    admin = {"Rlhf-Project": "research"}
    job = await submit(ours)
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", TEXT, "application/jsonl")}}
    file = (await ours.post("/v1/files", **form)).json()["id"]
    pipeline = (await ours.post("/v1/pipelines", json={"name": "p", "steps": {"one": REHEARSAL}})).json()["id"]
    app = create_app(door.plane.control)
    here = {"{job}": job, "{file}": file, "{pipeline}": pipeline}
    seen = 0
    for route in (r for r in app.state.routes if isinstance(r, APIRoute)):
        if not any(part in route.path for part in here) or route.path.endswith("confirm-dead"):
            continue
        path = route.path
        for part, id in here.items():
            path = path.replace(part, id)
        for method in route.methods:
            body = {"json": {}} if method in ("PATCH",) else {}
            answer = await theirs.request(method, path, **body)
            assert (answer.status_code, method, path) == (404, method, path)
            seen += 1
    assert seen > 25
    for path in ("/v1/jobs", "/v1/files", "/v1/pipelines", "/v1/models"):
        assert (await theirs.get(path)).json()["data"] == []
    assert len((await ours.get("/v1/jobs")).json()["data"]) == 2
    assert len((await door.admin.get("/v1/jobs", headers=admin)).json()["data"]) == 2
    assert (await theirs.get("/v1/jobs", headers=admin)).status_code == 404
    assert (await theirs.get("/v1/projects/research")).status_code == 404
    assert [p["name"] for p in (await theirs.get("/v1/projects")).json()["data"]] == ["default"]
    # Nor can a spec reach for it.
    model = {"config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}}
    spec = {"stage": {"type": "pretrain", "model": model, "data": f"files/{file}"}}
    refused = await theirs.post("/v1/jobs", json=spec)
    assert refused.status_code == 422
    assert f"there is no file '{file}'" in refused.text


async def test_an_idempotency_key_is_its_projects(door: Door) -> None:
    await door.project("research")
    ours, theirs = await door.client("editor", "research"), await door.client("editor")
    both = [await c.post("/v1/jobs", json=REHEARSAL, headers={"Idempotency-Key": "same"}) for c in (ours, theirs)]
    assert [answer.status_code for answer in both] == [201, 201]
    assert both[0].json()["id"] != both[1].json()["id"]


async def test_a_key_is_shown_once_and_stored_as_a_hash(door: Door) -> None:
    made = await door.key("viewer", expires_in="30d")
    assert keys.is_strong(made["key"])
    listed = (await door.admin.get("/v1/api-keys")).json()["data"]
    assert made["id"] in [entry["id"] for entry in listed]
    assert made["key"] not in str(listed)
    async with door.plane.control.database.reading() as session:
        rows = (await session.scalars(select(ApiKeyRow))).all()
        notes = (await session.scalars(select(AuditRow))).all()
    assert made["key"] not in str([vars(row) for row in (*rows, *notes)])


async def test_a_key_is_good_until_it_expires_or_is_revoked(door: Door) -> None:
    made = await door.key("viewer", expires_in="1h")
    client = door.by(made["key"])
    assert (await client.get("/v1/jobs")).status_code == 200
    [used] = [k for k in (await door.admin.get("/v1/api-keys")).json()["data"] if k["id"] == made["id"]]
    assert used["last_used_at"] is not None
    async with door.plane.control.database.transaction() as session:
        late = utcnow() - timedelta(seconds=1)
        await session.execute(update(ApiKeyRow).where(ApiKeyRow.id == made["id"]).values(expires_at=late))
    assert (await client.get("/v1/jobs")).status_code == 401
    other = await door.key("viewer")
    client = door.by(other["key"])
    assert (await client.get("/v1/jobs")).status_code == 200
    for _ in range(2):
        assert (await door.admin.delete(f"/v1/api-keys/{other['id']}")).status_code == 204
    assert (await client.get("/v1/jobs")).status_code == 401
    assert (await door.admin.delete("/v1/api-keys/key-none")).status_code == 404


async def test_a_stream_ends_with_its_key(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.trust.KEPT", 0.0)
    monkeypatch.setattr("api.streams.HEARTBEAT", 0.2)
    job, made = await submit(door.admin), await door.key("viewer")
    async with asyncio.timeout(30), door.by(made["key"]).stream("GET", f"/v1/jobs/{job}/events/stream") as answer:
        parts = answer.aiter_text()
        assert "Created" in await anext(parts)
        assert (await door.admin.delete(f"/v1/api-keys/{made['id']}")).status_code == 204
        async for _ in parts:
            pass
    assert (await door.admin.get(f"/v1/jobs/{job}")).json()["phase"] == "queued"


async def test_every_change_is_noted_with_who_made_it(door: Door) -> None:
    made = await door.key("editor")
    editor = door.by(made["key"])
    job = await submit(editor)
    await editor.patch(f"/v1/jobs/{job}", json={"priority": 3})
    for wish in ("pause", "resume", "cancel"):
        assert (await editor.post(f"/v1/jobs/{job}/{wish}")).status_code == 200
    # What is refused changed nothing, and is not noted.
    assert (await editor.post(f"/v1/jobs/{job}/pause")).status_code == 409
    notes = (await door.admin.get("/v1/audit", params={"target": job})).json()["data"]
    assert [note["action"] for note in reversed(notes)] == [
        "job.create", "job.change", "job.pause", "job.resume", "job.cancel",
    ]  # fmt: skip
    assert {(note["who"], note["key"], note["project"]) for note in notes} == {("editor-key", made["id"], "default")}
    first = (await door.admin.get("/v1/audit", params={"limit": 2})).json()
    second = (await door.admin.get("/v1/audit", params={"limit": 100, "after": first["next"]})).json()
    ids = [note["id"] for note in first["data"] + second["data"]]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 6


async def test_an_upload_beyond_what_a_project_may_store_is_refused_and_leaves_nothing(door: Door) -> None:
    await door.project("small", bytes=len(TEXT) + 5)
    small = await door.client("editor", "small")
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", TEXT, "application/jsonl")}}
    assert (await small.post("/v1/files", **form)).status_code == 201
    refused = await small.post("/v1/files", **form)
    assert refused.status_code == 403
    assert f"stores {len(TEXT)} of the {len(TEXT) + 5} bytes" in refused.json()["detail"]
    assert len((await small.get("/v1/files")).json()["data"]) == 1
    store: Path = door.plane.control.store.root
    assert len([path for path in store.rglob("*") if path.is_file()]) == 1
    assert (await door.admin.patch("/v1/projects/small", json={"quota": {}})).status_code == 200
    assert (await small.post("/v1/files", **form)).status_code == 201
    assert (await small.get("/v1/projects/small")).json()["stored"] == 2 * len(TEXT)


async def test_a_project_goes_only_when_it_is_empty_and_takes_its_keys_along(door: Door) -> None:
    await door.project("brief")
    assert (await door.admin.post("/v1/projects", json={"name": "brief"})).status_code == 409
    client = await door.client("editor", "brief")
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", TEXT, "application/jsonl")}}
    file = (await client.post("/v1/files", **form)).json()["id"]
    refused = await door.admin.delete("/v1/projects/brief")
    assert (refused.status_code, "still has files" in refused.text) == (409, True)
    assert (await client.delete(f"/v1/files/{file}")).status_code == 204
    assert (await door.admin.delete("/v1/projects/brief")).status_code == 204
    assert (await client.get("/v1/jobs")).status_code == 401
    assert (await door.admin.delete("/v1/projects/brief")).status_code == 404
    assert (await door.admin.delete("/v1/projects/default")).status_code == 409


async def test_the_admins_key_of_a_file_is_taken_and_replaced(keyed: Settings, tmp_path: Path) -> None:
    file, first, second = tmp_path / "admin-key", keys.fresh(), keys.fresh()
    given = {name: getattr(keyed, name) for name in type(keyed).model_fields} | {"admin_key_file": file}
    for key, gone in ((first, None), (first, None), (second, first)):
        file.write_text(f"{key}\n")
        async with plane_on(load(**given)) as plane:
            door = Door(plane, key)
            assert (await door.admin.get("/v1/api-keys/self")).json()["role"] == "admin"
            if gone is not None:
                assert (await door.by(gone).get("/v1/api-keys/self")).status_code == 401
    file.write_text("password\n")
    with pytest.raises(CannotStart, match="ADMIN_KEY_FILE: .* holds no key"):
        async with running(load(**given), "api"):
            pass


async def test_off_loopback_it_serves_with_keys_alone(keyed: Settings) -> None:
    given = {name: getattr(keyed, name) for name in type(keyed).model_fields} | {"host": "0.0.0.0", "port": 0}
    with pytest.raises(BadSettings, match="AUTH=keys"):
        load(**given | {"auth": "none"})
    with pytest.raises(BadSettings, match="only with AUTH=keys"):
        load(**given | {"host": "127.0.0.1", "auth": "none", "admin_key_file": Path("/x")})
    async with running(load(**given), "api") as this, httpx.AsyncClient(base_url=str(this.url)) as client:
        # Whatever name it is asked by: who has no key gets nowhere.
        assert (await client.get("/readyz", headers={"Host": "rlhf.example"})).status_code == 200
        assert (await client.get("/v1/jobs", headers={"Host": "rlhf.example"})).status_code == 401


@pytest.mark.quick
def test_each_role_may_do_what_the_one_before_it_may() -> None:
    assert [[role.allows(needed) for needed in Role] for role in Role] == [
        [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip
    assert Caller("p", Role.VIEWER, None, "n").role.allows(Role.VIEWER)


async def test_a_project_may_have_a_namespace_that_attempts_may_run_in_and_no_other(door: Door) -> None:
    refused = await door.admin.post("/v1/projects", json={"name": "team", "namespace": "team-a"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "namespace")
    assert "processes of this machine" in refused.json()["errors"][0]["message"]
    served = {"cluster": "kubernetes", "namespace": "runs", "namespaces": ["team-a"]}
    object.__setattr__(door.plane.control, "settings", door.plane.control.settings.model_copy(update=served))
    refused = await door.admin.post("/v1/projects", json={"name": "team", "namespace": "kube-system"})
    assert "attempts may run in runs, team-a" in refused.json()["errors"][0]["message"]
    assert (await door.admin.get("/v1/projects/team")).status_code == 404
    made = await door.admin.post("/v1/projects", json={"name": "team", "namespace": "team-a"})
    assert (made.status_code, made.json()["namespace"]) == (201, "team-a")


@pytest.mark.parametrize("how", ["by its path", "by a link", "by a folder with a link"])
async def test_what_another_project_stores_cannot_be_named_by_its_place(
    keyed: Settings, tmp_path: Path, how: str
) -> None:
    # An administrator allows the folder in which the control plane runs, as is the default.
    async with plane_on(keyed.model_copy(update={"allowed_paths": [tmp_path]})) as plane:
        key = keys.fresh()
        async with plane.control.database.transaction() as session:
            await keys.create(session, key, project="default", name="root", role=Role.ADMIN)
        door = Door(plane, key)
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", TEXT, "application/jsonl")}}
        assert (await door.admin.post("/v1/files", **form)).status_code == 201
        [stored] = (keyed.store_path / "files").iterdir()
        await door.project("others")
        link = tmp_path / "allowed" / "folder" / "link.jsonl"
        link.parent.mkdir()
        link.symlink_to(stored)
        place = {"by its path": stored, "by a link": link, "by a folder with a link": link.parent}[how]
        where = {"model": str(place)} if place.is_dir() else {"model": "org/name", "data": str(place)}
        refused = await (await door.client("editor", "others")).post(
            "/v1/jobs", json={"stage": {"type": "sft", "data": "files/none", **where}}
        )
        said = {error["path"]: error["message"] for error in refused.json()["errors"]}
        assert refused.status_code == 422
        if place.is_dir():
            assert "link.jsonl in it is a link out of the allowed folders" in said["stage.model"]
        else:
            assert "keeps what projects have" in said["stage.data.train"]
