"""What the operator writes and asks about the steps of pipelines."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession

from api.domain.job import Job
from api.domain.pipeline import broken
from api.store import events, operations_load
from api.store.operations import Stale, locked
from api.store.operations_leader import Lease
from api.store.tables import JobRow, PipelineRow
from worker.contract.order import Input


async def resolve(session: AsyncSession, lease: Lease, job: Job, inputs: Mapping[str, Input]) -> None:
    """Records what a job waited for; from now on it waits for a place alone. Raises NotLeader, Stale."""
    row = await locked(session, lease, job)
    row.inputs = {**row.inputs, **{path: given.model_dump() for path, given in inputs.items()}}
    row.waiting = False
    row.reason, row.fault, row.message = None, None, ""
    told = "; ".join(f"{path}: {given.reference}" for path, given in inputs.items())
    await events.add(session, row, "InputsReady", told)


def check_broken(connection: Connection, job: Job) -> None:
    """Raises Stale unless what the job needs will still not come: its owner may just have asked for a retry, which
    waits here until this transaction is over, or was quicker."""
    of_job = select(PipelineRow.id).join(JobRow, JobRow.pipeline_id == PipelineRow.id).where(JobRow.id == job.id)
    connection.execute(of_job.with_for_update(read=True, of=PipelineRow))
    now = operations_load.one(connection, job.id)
    if now is None or broken(now.needs) is None:
        raise Stale(f"what {job.id} needs may come after all")


def waiting_beside(connection: Connection, job_id: str) -> Sequence[str]:
    """The jobs of the same pipeline that wait for others."""
    pipeline = select(JobRow.pipeline_id).where(JobRow.id == job_id).scalar_subquery()
    return connection.scalars(select(JobRow.id).where(JobRow.pipeline_id == pipeline, JobRow.waiting)).all()
