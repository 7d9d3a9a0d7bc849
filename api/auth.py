"""Who calls: what routes ask for before they do anything. Keys are looked up at each call, so that one that was revoked
is good nowhere from that moment on."""

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError

from api.control import Control, ControlPlane
from api.domain.access import Caller, Role
from api.errors import Refusal
from api.store import keys, projects
from api.store.database import DEFAULT_PROJECT, utcnow
from worker.contract.problem import Problem

HEADER = "Rlhf-Project"
# Whoever reaches a control plane without keys is on its machine, and may do all.
_SOMEBODY = Caller(DEFAULT_PROJECT, Role.ADMIN, None, "somebody on this machine")
_bearer = HTTPBearer(auto_error=False, description="an API key", scheme_name="key")


async def _caller(
    control: Control,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    meant: Annotated[
        str | None, Header(alias=HEADER, max_length=63, description="an admin's: the project that is meant")
    ] = None,
) -> Caller:
    """Who calls. Raises Refusal 401, 404."""
    if control.settings.auth == "none":
        caller = _SOMEBODY
    elif credentials is None:
        raise _unknown("send an API key as `Authorization: Bearer rlhf_…`")
    else:
        now = utcnow()
        found = await control.database.look(partial(keys.find, key=credentials.credentials, now=now))
        if found is None:
            raise _unknown("this API key is not known, or has expired, or was revoked")
        caller = found.caller
        if found.unnoted and caller.key is not None:
            # Who only reads is answered also by a database that takes no changes.
            with contextlib.suppress(SQLAlchemyError):
                await control.database.put(partial(keys.use, id=caller.key, now=now))
    return caller if meant is None else await _in(control, caller, meant)


async def _in(control: ControlPlane, caller: Caller, project: str) -> Caller:
    """The caller, in the project of this name."""
    refusal = Refusal(404, f"there is no project {project!r}", [Problem(HEADER, "there is no such project")])
    try:
        async with control.database.reading() as session:
            id = (await projects.get(session, project)).id
    except projects.NoSuchProject:
        raise refusal from None
    if id != caller.project and not caller.role.allows(Role.ADMIN):
        raise refusal
    return Caller(id, caller.role, caller.key, caller.name)


def _unknown(detail: str) -> Refusal:
    return Refusal(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _needing(role: Role) -> Callable[[Caller], Awaitable[Caller]]:
    async def allowed(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if not caller.role.allows(role):
            raise Refusal(403, f"this takes a key of role {role}, and {caller.name!r} is {caller.role}")
        return caller

    return allowed


Viewer = Annotated[Caller, Depends(_needing(Role.VIEWER))]
Editor = Annotated[Caller, Depends(_needing(Role.EDITOR))]
Admin = Annotated[Caller, Depends(_needing(Role.ADMIN))]


async def still_good(control: ControlPlane, caller: Caller) -> bool:
    """Whether who began to follow something may go on with it."""
    if caller.key is None:
        return True
    return await control.trust.good(caller.key)
