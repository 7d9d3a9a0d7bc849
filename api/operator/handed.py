"""What the steps of a pipeline hand over to each other: looked up once all of it is there."""

from api.domain.job import Fault, Job, Need, Reason
from api.fit import unfit
from api.store import models
from api.store.database import Database
from api.store.tables import ModelRow
from api.stores import Store
from api.weights import NotAModel, inspect
from worker.contract.manifest import Damaged
from worker.contract.order import Input
from worker.contract.problem import Problem
from worker.contract.references import references


class Unfit(Exception):
    """What was handed over will not do: the job cannot start, for this reason."""

    def __init__(self, reason: Reason, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.reason, self.fault, self.message = reason, fault, message


async def handed_over(job: Job, database: Database, store: Store) -> dict[str, Input]:
    """The inputs that a job waited for, by their path in its spec. Raises Unfit, OSError.

    Hashes were verified when the models were registered, and the worker verifies them again.
    """
    async with database.reading() as session:
        rows = [(need, await models.handed_over(session, need.job, need.output)) for need in job.needs]
    found: dict[str, Input] = {}
    problems: list[Problem] = []
    for need, row in rows:
        if row is None:
            said = f"the step `{need.step}` succeeded, but there is no `{need.output}` of it, or not any more"
            raise Unfit(Reason.DEPENDENCY_FAILED, Fault.USER, said)
        problems += await store.run(_problems, job, need, row, store)
        found[need.path] = models.as_input(row)
    if problems:
        said = "; ".join(f"{problem.path}: {problem.message}" for problem in problems)
        raise Unfit(Reason.INVALID_SPEC, Fault.USER, said)
    return found


def _problems(job: Job, need: Need, row: ModelRow, store: Store) -> list[Problem]:
    wanted = next(wanted for wanted in references(job.spec) if wanted.path == need.path)
    if wanted.kind == "tokenizer":
        return []
    try:
        with store.described(row.path) as folder:
            known = inspect(folder)
    except (NotAModel, Damaged) as error:
        return [Problem(need.path, f"what `{need.step}` handed over {error}")]
    return unfit(job.spec, wanted, f"{need.step}.{need.output}", known)
