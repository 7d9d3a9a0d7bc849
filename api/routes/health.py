"""Is it alive, can it serve, and how is it doing."""

import asyncio

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api import telemetry
from api.control import Control
from api.errors import Refusal, documented
from api.store import jobs
from api.store.operations_leader import led

router = APIRouter(tags=["health"])
_PATIENCE = 2.0
_SILENCE = 60.0


class Health(BaseModel):
    """All is well."""

    status: str = "ok"


@router.get("/livez", responses=documented(503))
async def live(control: Control) -> Health:
    """The process answers, and its operator's loop turns."""
    if control.pulse.silence > _SILENCE:
        raise Refusal(503, f"the operator's loop has not turned for {_SILENCE:g} s; restart the process")
    return Health()


@router.get("/readyz", responses=documented(503))
async def ready(control: Control) -> Health:
    """The database answers too."""
    if control.streams.closing:
        raise Refusal(503, "the control plane is stopping")
    try:
        async with asyncio.timeout(_PATIENCE):
            await control.database.ping()
    except TimeoutError:
        raise Refusal(503, "the database does not answer", headers={"Retry-After": "1"}) from None
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(control: Control) -> Response:
    """Figures, for Prometheus."""
    async with control.database.reading() as session:
        for phase, count in (await jobs.by_phase(session)).items():
            control.telemetry.jobs.labels(phase).set(count)
        operators = await (await session.connection()).run_sync(led)
    control.telemetry.leads.set(operators.now)
    control.telemetry.troubled.set(operators.trouble is not None)
    control.telemetry.streams.set(control.streams.open)
    return Response(control.telemetry.exposed(), media_type=telemetry.CONTENT_TYPE)
