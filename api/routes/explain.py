"""Why a job does not run, and what an admin says of an attempt that nobody can see."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path

from api.auth import Admin, Viewer
from api.control import Control
from api.domain.explain import explain
from api.errors import documented, not_found
from api.routes.again import Again
from api.routes.parameters import JobId, refusing
from api.store import attempts, audit
from api.store.database import utcnow
from api.store.facts import facts
from api.views import AttemptView, ExplanationView

router = APIRouter(prefix="/v1/jobs/{job}", tags=["jobs"], route_class=Again)

Number = Annotated[int, Path(ge=1, le=2**31 - 1, description="the attempt's")]


@router.get("/explain", responses=documented(404, 422))
async def explained(job: JobId, control: Control, caller: Viewer) -> ExplanationView:
    """Why the job is where it is (does not run, failed, or that all is well), in plain sentences, and what to do."""
    places = control.settings.local_jobs if control.settings.cluster == "local" else None
    with refusing():
        known = await control.database.look(partial(facts, id=job, project=caller.project, now=utcnow(), places=places))
    found = explain(known)
    return ExplanationView(
        job=job,
        phase=known.job.phase,
        reason=known.job.reason,
        summary=found.summary,
        because=list(found.because),
        todo=list(found.todo),
    )


@router.post("/attempts/{number}/confirm-dead", responses=documented(404, 409, 422))
async def confirm_dead(job: JobId, number: Number, control: Control, caller: Admin) -> AttemptView:
    """An admin's word that nothing of an attempt runs any more, though the cluster cannot tell (a node that never comes
    back). Taken only while the job is `finishing`; from then on the next attempt may start. May be repeated."""
    try:
        with refusing():
            async with control.database.transaction() as session:
                row = await attempts.confirm_dead(session, job, caller.project, number)
                audit.note(session, caller, "attempt.confirm-dead", f"{job}-a{number}")
    except attempts.NoSuchAttempt as error:
        raise not_found("attempt", str(error)) from None
    await control.wakeups.wake(job)
    return AttemptView.model_validate(row)
